"""How good a model of the emoji scenes is, where the truth is known.

Each caption is one of ten kinds, and its hidden modes are the kind's twelve sprites, whose true shares are known. So
every sample says whether its kind is the caption's and whether sprite, box, words and background are those of its z;
and many samples of one caption say how many of its modes the model draws, and how often.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from kaleido_jax import array_types as at
from kaleido_jax.annotate.annotator import Annotator
from kaleido_jax.annotate.labels import LabeledBlobs, LabeledBoxes, LabeledText
from kaleido_jax.config.schema import Config, Data, DataEmoji, Sample
from kaleido_jax.data.sources import open_source
from kaleido_jax.data.sources.emoji import BACKGROUNDS, KINDS, PLACES, SHARES, SIZES, SPRITE_NAMES, SPRITES_PER_KIND
from kaleido_jax.errors import user_error
from kaleido_jax.evaluate import modes
from kaleido_jax.evaluate.latents import latents_report
from kaleido_jax.evaluate.parts import draw_captions_in_parts, draw_rows, remove_samples, stored_report
from kaleido_jax.evaluate.scene_reading import Seen, agreement, see
from kaleido_jax.evaluate.sprite_reader import VERSION, SpriteReader, open_reader
from kaleido_jax.latents.types import Latents
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.files import fingerprint, write_atomically
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.tokens import SampledLatents

log = logging.getLogger(__name__)

READING_SEC = 3600  # for the main process to read all samples, while the others wait
PART = 200  # samples that are stored together; a run that was stopped loses at most as many


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images and the z of each."""

    kinds: Int[np.ndarray, "n"]  # of the captions, indices into KINDS
    pixels: at.Images
    z: list[SampledLatents]  # empty for a baseline

    @property
    def latents(self) -> list[Latents | None]:
        """The readable z of each; None where it does not parse."""
        return [row.latents for row in self.z]


def measure(config: Config, workdir: Path) -> dict[str, Any]:
    """The report in eval/emoji.json, measured unless it belongs to the latest checkpoint and this eval.

    Its keys are those of `report_of`, and: `of` (what the numbers depend on), `reader` (the metadata of the reader:
    what it reached on held-out scenes), `real` (the same measures of real scenes with their true z: the ceiling).

    Raises:
      UserError: a model without images, or no checkpoint.
    """
    path = workdir / "eval" / "emoji.json"
    pipeline = KaleidoPipeline.from_pretrained(workdir, config)
    sample = pipeline.override({"gamma": config.eval.gamma, "num_steps": config.eval.num_steps})
    metadata = measured_with(pipeline, sample, config.eval.num_samples, config.seed)
    metadata |= {"real_scenes": config.eval.real_scenes, "reader_steps": config.eval.reader_steps}
    if (report := stored_report(path, metadata)) is not None:
        return report
    image_size = image_size_of(config)
    parts = workdir / "eval" / "emoji_samples" / fingerprint(json.dumps(metadata))
    samples = draw(pipeline, sample, config.eval.num_samples, config.seed, parts)

    def make() -> dict[str, Any]:
        reader = open_reader(image_size, workdir / "eval", config.eval.reader_steps)
        accuracy = 100 * reader.metadata["accuracy"]
        log.info("the reader of %d px is right on %.1f %% of held-out scenes", reader.image_size, accuracy)
        report = {"of": metadata, "reader": reader.metadata} | report_of(samples, reader)
        report["real"] = report_of(
            real_samples(config.eval.real_scenes, config.seed, image_size, config.data.emoji), reader
        )
        write_atomically(path, json.dumps(report, indent=2).encode())
        remove_samples(parts.parent, [parts])
        return json.loads(json.dumps(report))

    return distributed.tell("the report", make, READING_SEC)


def measured_with(pipeline: KaleidoPipeline, sample: Sample, num_samples: int, seed: int) -> dict[str, Any]:
    """All that the numbers depend on, as it comes back from JSON."""
    recipe = pipeline.recipe(KINDS, 1, seed, sample)
    of = {"model": recipe["model"], "seed": seed, "num_samples": num_samples, "reader": VERSION}
    return json.loads(json.dumps(of | {"sample": recipe["sample"]}))


def image_size_of(config: Config) -> int:
    """Px of the model's images.

    Raises:
      UserError: a model of points.
    """
    if config.model.denoiser is None:
        raise user_error("a model of points", "one of images", "set config.eval.protocol to none")
    return config.model.denoiser.image_size


# ---------------------------------------------------------------------------------------- samples
def draw(pipeline: KaleidoPipeline, sample: Sample, number: int, seed: int, folder: Path) -> Samples:
    """Images of the kinds in turn, each from a z of its own; parts that `folder` holds already are not drawn again.

    Raises:
      FloatingPointError: samples are not finite.
    """
    allowed = np.array([KINDS.index(kind) for kind in pipeline.config.data.emoji.kinds or KINDS])
    kinds = allowed[np.arange(number) % len(allowed)]
    log.info("%d samples at gamma %g", number, sample.gamma)

    z, pixels = draw_captions_in_parts(pipeline, sample, [KINDS[kind] for kind in kinds], seed, PART, folder)
    return Samples(kinds=kinds, pixels=pixels, z=z)


def draw_captions(pipeline: KaleidoPipeline, sample: Sample, captions: list[str], seed: int) -> at.Images:
    """One image of each caption, uint8, each from a z of its own.

    Raises:
      FloatingPointError: samples are not finite.
    """
    return draw_rows(pipeline, sample, list(range(len(captions))), captions, seed)[1]


def real_samples(number: int, seed: int, image_size: int, views: DataEmoji | None = None) -> Samples:
    """Scenes of the training split with one sprite and their true text, box and ellipse; `views` as in config.data."""
    scenes = dataclasses.replace(views or DataEmoji(), num_train=number, two_share=0.0)
    data = Data(source="emoji", split="train", emoji=scenes)
    source = open_source(data, seed=seed, image_size=image_size)
    examples, kinds = [source[i] for i in range(number)], [source.scene(i).sprites[0].kind for i in range(number)]
    annotators: tuple[Annotator, ...] = (LabeledText(), LabeledBoxes(1), LabeledBlobs(1))
    segments = zip(*(annotator(examples, [Latents()] * number) for annotator in annotators), strict=True)
    z = [Latents(text=text.text, bbox=box.bbox, blob=blob.blob) for text, box, blob in segments]
    pixels = np.stack([example.image for example in examples])
    return Samples(kinds=np.asarray(kinds), pixels=pixels, z=[SampledLatents(tokens=(), latents=one) for one in z])


# ---------------------------------------------------------------------------------------- measures
def report_of(samples: Samples, reader: SpriteReader) -> dict[str, Any]:
    """All measures of some samples.

    `kind_right` (share of images whose sprite is of the caption's kind); with z the keys of `agreement` and of
    `latents_report`; the means over the captions of what `modes_of_caption` counts; and those by caption, under
    `captions`.

    Raises:
      UserError: images of another size than the reader's.
    """
    seen = see(samples.pixels, reader)
    report: dict[str, Any] = {"kind_right": _share(s.kind == k for s, k in zip(seen, samples.kinds, strict=True))}
    if samples.z:
        report |= agreement(seen, samples.latents, samples.kinds.tolist())
    if any(row.tokens for row in samples.z):  # real scenes are given in readable form
        report |= latents_report(samples.z)
    captions = {
        KINDS[kind]: modes_of_caption([s for s, k in zip(seen, samples.kinds, strict=True) if k == kind], kind)
        for kind in sorted(set(samples.kinds.tolist()))
    }
    for name in next(iter(captions.values())):
        values = [counted[name] for counted in captions.values() if counted[name] is not None]
        if name not in ("samples", "kind_right", "shares"):
            report[name] = float(np.mean(values)) if values else None
    return report | {"captions": captions}


def modes_of_caption(seen: Sequence[Seen], kind: int) -> dict[str, Any]:
    """The hidden modes among the samples of one caption.

    Over the samples of the right kind: what `modes.counts_of` counts of the twelve sprites. Over all samples in which
    something is seen: entropies in nats of the words for background, place and size.
    """
    first = SPRITES_PER_KIND * kind
    right = [s.sprite - first for s in seen if s.kind == kind]
    counted = modes.counts_of(right, SHARES[kind])
    shares, names = counted.pop("shares"), SPRITE_NAMES[first : first + SPRITES_PER_KIND]
    return {
        "samples": len(seen),
        "kind_right": len(right) / len(seen),
        **counted,
        "entropy_background": _entropy([s.background for s in seen], list(BACKGROUNDS)),
        "entropy_place": _entropy([s.place for s in seen], PLACES),
        "entropy_size": _entropy([s.size for s in seen], SIZES),
        "shares": dict(zip(names, shares, strict=True)) if shares else None,
    }


def _entropy(found: Sequence[str | None], words: Sequence[str]) -> float | None:
    known = [words.index(word) for word in found if word is not None]
    return modes.entropy(modes.shares_of(known, len(words))) if known else None


def _share(values: Any) -> float:
    return float(np.mean(list(values)))
