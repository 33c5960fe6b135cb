"""Quickstart's measures: an independent judge's accuracy, the parse rate, and box overlap.

Does the judge recognize the caption's class, do the latents parse, is the garment inside its sampled box? The judge is
a small classifier trained here on real placed garments; the report has its accuracy on held-out ones.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from kaleido_jax.annotate.vokens.features import FOREGROUND_FROM
from kaleido_jax.array_types import Images
from kaleido_jax.config.schema import Config
from kaleido_jax.data.loader import to_model_range
from kaleido_jax.data.sources import open_source
from kaleido_jax.evaluate.latents import latents_report
from kaleido_jax.latents.geometry import box_iou, mask_to_box
from kaleido_jax.runtime.files import write_atomically
from kaleido_jax.runtime.progress import progress
from kaleido_jax.runtime.randomness import purpose_key
from kaleido_jax.sampling.output import KaleidoOutput
from kaleido_jax.sampling.pipeline import KaleidoPipeline

log = logging.getLogger(__name__)

JUDGE_BATCH = 128
NOT_MEASURED = ("captions", "images_per_caption", "num_steps", "gamma")  # of `sample`; `eval` has the last two
Classify = Callable[[Images], Int[np.ndarray, "n"]]


class Judge(nn.Module):
    """Four convolutions; independent of captions and latents."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b n"]:
        """Logits."""
        for width, stride in ((16, 1), (32, 2), (64, 2), (96, 2)):
            x = nn.relu(nn.GroupNorm(8)(nn.Conv(width, (3, 3), (stride, stride))(x)))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def measure(config: Config, workdir: Path) -> dict[str, Any]:
    """The report in eval/quickstart.json, measured unless it belongs to the latest checkpoint and this eval.

    Its keys: `judge_accuracy_real` on held-out real images, `judge_accuracy_samples` (share of samples seen as their
    caption's class), those of `latents_report` (`latents_parsed`, ...), `box_iou_median` and `box_iou_count` (sampled
    bbox against the box of the drawn garment, over samples whose latents parse), `no_garment` (images without
    foreground, counted as IoU 0).
    """
    path = workdir / "eval" / "quickstart.json"
    pipeline = KaleidoPipeline.from_pretrained(workdir, config)
    metadata = measured_with(config, pipeline.step)
    if path.exists():
        report = json.loads(path.read_text())
        if report["of"] == metadata:
            return report
    class_names = open_source(dataclasses.replace(config.data, split="test")).class_names
    judge, real_accuracy = train_judge(config, class_names)
    labels = np.arange(config.eval.num_samples) % len(class_names)
    captions = [class_names[label] for label in labels]
    log.info("sampling %d images at gamma %g", len(captions), config.eval.gamma)
    settings = {"num_steps": config.eval.num_steps, "gamma": config.eval.gamma, "grammar": config.sample.grammar}
    out = pipeline(captions, seed=config.seed, **settings)
    report = {"of": metadata, "judge_accuracy_real": real_accuracy}
    report["judge_accuracy_samples"] = float(np.mean(judge(out.pixels[:, 0]) == labels))
    if out.samples:
        report |= latents_report(out.samples) | box_report(out)
    write_atomically(path, json.dumps(report, indent=2).encode())
    return report


def measured_with(config: Config, step: int) -> dict[str, Any]:
    """Everything that the numbers depend on, in the form read back from JSON; stored in the report as `of`."""
    sample = {k: v for k, v in dataclasses.asdict(config.sample).items() if k not in NOT_MEASURED}
    metadata = {"step": step, "seed": config.seed, "eval": dataclasses.asdict(config.eval), "sample": sample}
    return json.loads(json.dumps(metadata))


def box_report(out: KaleidoOutput) -> dict[str, float | None]:
    """How well the first sampled box of each caption fits the garment of its first image."""
    boxed = [(z.bbox[0].box, image) for z, image in zip(out.latents, out.pixels[:, 0], strict=True) if z and z.bbox]
    overlaps = [foreground_iou(image, box) for box, image in boxed]
    return {
        "box_iou_median": float(np.median([overlap or 0.0 for overlap in overlaps])) if overlaps else None,
        "box_iou_count": len(overlaps),
        "no_garment": sum(overlap is None for overlap in overlaps),
    }


def foreground_iou(image: UInt8[np.ndarray, "h w 3"], box: tuple[int, ...]) -> float | None:
    """IoU of a box and that of the bright foreground; None without one."""
    mask = image.mean(-1) >= FOREGROUND_FROM
    return float(box_iou(np.asarray(mask_to_box(mask)), np.asarray(box))) if mask.any() else None


# --------------------------------------------------------------------------------------------- the judge
def train_judge(config: Config, class_names: tuple[str, ...]) -> tuple[Classify, float]:
    """(images -> labels, accuracy on held-out real images)."""
    size = config.model.denoiser.image_size
    judge, steps = Judge(len(class_names)), config.eval.classifier_steps
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    params = judge.init(purpose_key(config.seed, "judge"), jnp.zeros((1, size, size, 3)))

    @jax.jit
    def step(state: tuple[Any, Any], images: Array, labels: Array) -> tuple[Any, Any]:
        def loss(params: Any) -> Array:
            logits = judge.apply(params, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        grads = jax.grad(loss)(state[0])
        updates, opt_state = optimizer.update(grads, state[1])
        return optax.apply_updates(state[0], updates), opt_state

    state = (params, optimizer.init(params))
    images, labels = _real_images(config, "train", config.eval.real_images[0])
    with progress("judge", steps, "step") as advance:
        for i in range(steps):
            key = jax.random.fold_in(purpose_key(config.seed, "judge batch"), i)
            rows = np.asarray(jax.random.randint(key, (JUDGE_BATCH,), 0, len(labels)))
            state = step(state, to_model_range(images[rows]), labels[rows])
            advance(1)
    predict = jax.jit(lambda x: judge.apply(state[0], x).argmax(-1))

    def classify(images: Images) -> Int[np.ndarray, "n"]:
        parts = np.array_split(images, max(1, len(images) // 250))  # small enough for any memory
        return np.concatenate([np.asarray(predict(to_model_range(part))) for part in parts])

    images, labels = _real_images(config, "test", config.eval.real_images[1])
    return classify, float(np.mean(classify(images) == labels))


def _real_images(config: Config, split: str, number: int) -> tuple[Images, Int[np.ndarray, "n"]]:
    data, size = dataclasses.replace(config.data, split=split), config.model.denoiser.image_size
    source = open_source(data, seed=config.seed, image_size=size)
    indices = range(min(number, len(source)))
    return np.stack([source[i].image for i in indices]), np.asarray([source.label(i) for i in indices])
