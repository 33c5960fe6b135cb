"""Figure 3 of the paper on a two-dimensional data set: two classes with two modes each.

Trains a class-conditional (standard) and a latent-augmented model with the project's own loss, prior, guidance and
sampler, and counts how many samples of each class land on each mode as gamma grows.
"""

import dataclasses
import functools
import json
import logging
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int

from kaleido_jax.annotate.vokens.quantizer import fit_quantizer
from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.schema import Config
from kaleido_jax.config.stored import open_workdir
from kaleido_jax.latents.types import Latents
from kaleido_jax.models.decode import shift_right
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.runtime.files import replacing, write_atomically
from kaleido_jax.runtime.mesh import make_mesh, put_batch
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.train.metrics import Averages, Progress
from kaleido_jax.train.optimizer import make_optimizer
from kaleido_jax.train.state import create_state
from kaleido_jax.train.step import make_train_step

log = logging.getLogger(__name__)

GAMMAS = (1.0, 2.0, 4.0, 8.0)
CLASSES = ("a", "b")
# Each class has one mode beside the other class and one far from it: guidance, which moves away from the other
# class, has a side to prefer. Centers in the model range; the first mode of a class is the near one.
MODES = np.asarray([[[-0.10, 0.10], [-0.60, 0.60]], [[0.10, -0.10], [0.60, -0.60]]], np.float32)
SHARES = (0.4, 0.6)  # true share of each mode in its class
NUM_POINTS = 20_000  # of the training set
SPREAD = 0.06  # standard deviation of a mode


def draw_points(number: int, seed: int) -> tuple[Float[np.ndarray, "n 2"], Int[np.ndarray, "n"]]:
    """(points, classes) of the data set, classes in equal parts."""
    rng = np.random.default_rng((seed, 3))
    classes = np.arange(number) % len(CLASSES)
    modes = (rng.uniform(size=number) >= SHARES[0]).astype(int)
    return MODES[classes, modes] + SPREAD * rng.standard_normal((number, 2), np.float32), classes


def mode_shares(points: Float[np.ndarray, "n 2"], classes: Int[np.ndarray, "n"]) -> list[list[float]]:
    """For each class the share of its points nearest to each of its modes."""
    shares = []
    for c in range(len(CLASSES)):
        distance = np.linalg.norm(points[classes == c][:, None] - MODES[c], axis=-1)
        nearest = distance.argmin(1)
        shares.append([float(np.mean(nearest == m)) for m in range(MODES.shape[1])])
    return shares


def run(config: Config, workdir: Path) -> str:
    """Trains both models, writes eval/figure3.png and eval/figure3.json; returns what to tell the user.

    A workdir that already holds the result of this config is left as it is.
    """
    path = workdir / "eval" / "figure3.json"
    open_workdir(config, workdir)
    told = {"seed": config.seed, "train": dataclasses.asdict(config.train), "sample": dataclasses.asdict(config.sample)}
    told = json.loads(json.dumps(told))
    if path.exists() and json.loads(path.read_text())["of"] == told:
        return f"{path}: {_summary(json.loads(path.read_text()))}"

    points, classes = draw_points(NUM_POINTS, config.seed)
    standard = dataclasses.replace(config, latents=dataclasses.replace(config.latents, segments=()))
    clouds = {}
    for name, c in (("standard", standard), ("latent_augmented", config)):
        pipeline = _train(c, points, classes, name)
        clouds[name] = {gamma: _sample(pipeline, gamma) for gamma in GAMMAS}
    shares = {
        name: {f"{gamma:g}": mode_shares(*cloud) for gamma, cloud in by_gamma.items()}
        for name, by_gamma in clouds.items()
    }
    report = {"of": told, "classes": CLASSES, "true_share": SHARES, "share_of_each_mode": shares}
    with replacing(path.with_suffix(".png")) as temporary:
        _figure(clouds, points, temporary)
    write_atomically(path, json.dumps(report, indent=2).encode())
    return f"{path}: {_summary(report)}"


def _summary(report):
    lines = [f"share of each mode, classes {' and '.join(report['classes'])}"]
    for name, by_gamma in report["share_of_each_mode"].items():
        for gamma, shares in by_gamma.items():
            told = "  ".join(" / ".join(f"{share:.1%}" for share in of_class) for of_class in shares)
            lines.append(f"{name:>16} gamma {gamma}: {told}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------ training, sampling
def _train(config, points, classes, name):
    codec = open_codec(config)
    mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()))
    model = build_model(config, codec.tokenizer.base_vocab_size)
    optimizer = make_optimizer(config.train)
    state, frozen, (shardings, _) = create_state(config, model, optimizer, mesh)
    pipeline = functools.partial(KaleidoPipeline, config, codec=codec, chunk=config.eval.num_samples)
    data = _tokenized(config, codec, pipeline(params={}), points, classes)
    train_step = jax.jit(make_train_step(model, config, optimizer), donate_argnums=0, out_shardings=(shardings, None))
    progress = Progress(config.train.num_steps, 0, config.train.batch_size, name)
    averages, rng = Averages(), np.random.default_rng((config.seed, 4))
    for step in range(1, config.train.num_steps + 1):
        rows = rng.integers(0, len(points), config.train.batch_size)
        state, scalars = train_step(state, frozen, put_batch({k: v[rows] for k, v in data.items()}, mesh))
        averages.add(scalars)
        progress.tick(step)
        if step % config.train.log_every_steps == 0:
            progress.report(step, averages.compute())
    progress.close()
    return pipeline(params=state.ema, step=config.train.num_steps)


def _tokenized(config, codec, pipeline, points, classes):
    """The whole data set as one batch: q(z | x) is the nearest of k-means' four centers."""
    captions = pipeline.caption_tokens(list(CLASSES))[classes]
    data = {"image": points, "encoder_input_tokens": captions}
    if config.latents.segments:
        quantizer = fit_quantizer(
            points, vokens_per_image=1, codebook_size=config.latents.codebook_size, seed=config.seed
        )
        codes = quantizer.encode(points)[:, 0]
        table = np.asarray([codec.encode(Latents(voken=(k,))) for k in range(config.latents.codebook_size)], np.int32)
        target = table[codes]
        data |= {"decoder_target_tokens": target, "decoder_input_tokens": shift_right(target)}
        data["decoder_loss_weights"] = np.ones(target.shape, np.float32)
    return data


def _sample(pipeline, gamma):
    config = pipeline.config
    classes = np.arange(config.eval.num_samples) % len(CLASSES)
    captions = [CLASSES[c] for c in classes]
    tokens = None
    if config.latents.segments:
        tokens = [row.tokens for row in pipeline.sample_latents(captions, seed=config.seed)]
    log.info("sampling %d points at gamma %g", len(captions), gamma)
    settings = dataclasses.replace(config.sample, gamma=gamma)
    return pipeline.sample_images(captions, tokens, seed=config.seed, sample=settings), classes


# -------------------------------------------------------------------------------------------- the figure
def _figure(clouds, data, path):
    from matplotlib.figure import Figure

    colors, titles = ("#0072B2", "#D55E00"), {"standard": "standard", "latent_augmented": "latent-augmented"}
    figure = Figure(figsize=(13, 6.6), layout="constrained")
    axes = figure.subplots(len(clouds), len(GAMMAS), sharex=True, sharey=True)
    for row, (name, by_gamma) in zip(axes, clouds.items(), strict=True):
        for axis, (gamma, (points, classes)) in zip(row, by_gamma.items(), strict=True):
            axis.scatter(*data[:1500].T, s=3, c="#cccccc", linewidths=0)
            for c, color in enumerate(colors):
                share = mode_shares(points, classes)[c]
                label = f"class {CLASSES[c]}: {share[0]:.0%} near, {share[1]:.0%} far mode"
                axis.scatter(*points[classes == c][:600].T, s=5, c=color, linewidths=0, alpha=0.6, label=label)
            axis.set(aspect="equal", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xticks=[], yticks=[])
            axis.set_title(f"gamma = {gamma:g}" if name == "standard" else "")
            axis.legend(loc="upper left", fontsize=7, markerscale=2.5, framealpha=0.9)
        row[0].set_ylabel(titles[name], fontsize=12)
    figure.savefig(path, format="png", dpi=110)
