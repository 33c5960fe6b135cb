"""Figure 3 of the paper on a two-dimensional data set: two classes with two modes each.

    python examples/figure3.py --workdir=runs/toy [--config.KEY=VALUE ...]

Trains a class-conditional (standard) and a latent-augmented model with the project's own loss, prior, guidance and
sampler, and counts the samples of each class on each mode as gamma grows: guidance collapses the standard model to one
mode, latents keep both. Takes about 100 s on two CPU cores, including compilation. Writes eval/figure3.png and
eval/figure3.json.
"""

import dataclasses
import functools
import json
import logging
import sys
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from kaleido_jax.annotate.vokens.quantizer import fit_quantizer
from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.load import config_from_flags
from kaleido_jax.config.schema import Config, PointNet, default_config, to_config_dict
from kaleido_jax.config.stored import open_workdir
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.types import Latents
from kaleido_jax.main import start_logging
from kaleido_jax.models.decode import shift_right
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.runtime.files import replacing, write_atomically
from kaleido_jax.runtime.mesh import make_mesh, put_batch
from kaleido_jax.runtime.xla_flags import set_cpu_flag
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.train.metrics import Averages, Progress
from kaleido_jax.train.optimizer import make_optimizer
from kaleido_jax.train.state import create_state
from kaleido_jax.train.step import make_train_step
from kaleido_jax.verbs.verb import say

log = logging.getLogger("kaleido_jax.figure3")

GAMMAS = (1.0, 2.0, 4.0, 8.0)
CLASSES = ("a", "b")
# Each class has one mode near the other class and one far from it, so guidance, which moves away from the other class,
# prefers the far one. Centers are in the model range; the first mode of a class is the near one.
MODES = np.asarray([[[-0.10, 0.10], [-0.60, 0.60]], [[0.10, -0.10], [0.60, -0.60]]], np.float32)
SHARES = (0.4, 0.6)  # true share of each mode in its class
NUM_POINTS = 20_000  # of the training set
SPREAD = 0.06  # standard deviation of a mode


def get_config() -> ConfigDict:
    """Sizes of both models, their training and sampling."""
    config = default_config()
    config.name = "toy"

    config.latents.segments = ("voken",)  # z = the mode, found by k-means on the points
    config.latents.codebook_size = 4
    config.latents.vokens_per_image = 1
    config.latents.max_latents_tokens = 2  # the voken and eos

    t5 = config.model.t5
    t5.vocabulary = "emoji"
    t5.d_model, t5.d_ff, t5.num_heads, t5.head_dim = 32, 64, 2, 16
    t5.num_encoder_layers, t5.num_decoder_layers = 1, 1
    t5.encoder.trainable = True
    config.model.denoiser = None
    config.model.point_denoiser = to_config_dict(PointNet())
    config.model.precision = "float32"

    config.data.max_caption_tokens = 4

    config.diffusion.p_uncond = 0.2  # guidance needs a good unconditional model

    train = config.train
    train.batch_size = 256
    train.num_steps = 1_500
    train.learning_rate = 2e-3
    train.lr_schedule = "cosine"
    train.warmup_steps = 100
    train.ema_decay = 0.995
    train.log_every_steps = 250

    config.sample.sampler = "ddim"
    config.sample.num_steps = 100
    config.eval.num_samples = 2_000  # points in each panel of the figure
    return config


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
    """Trains both models, writes eval/figure3.png and eval/figure3.json; returns a summary.

    A workdir that already holds the result of this config is not changed.
    """
    path = workdir / "eval" / "figure3.json"
    open_workdir(config, workdir)
    parts = {
        "seed": config.seed,
        "train": dataclasses.asdict(config.train),
        "sample": dataclasses.asdict(config.sample),
    }
    metadata = json.loads(json.dumps(parts))
    if path.exists() and json.loads(path.read_text())["of"] == metadata:
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
    report = {"of": metadata, "classes": CLASSES, "true_share": SHARES, "share_of_each_mode": shares}
    with replacing(path.with_suffix(".png")) as temporary:
        _figure(clouds, points, temporary)
    write_atomically(path, json.dumps(report, indent=2).encode())
    return f"{path}: {_summary(report)}"


def _summary(report: dict) -> str:
    lines = [f"share of each mode, classes {' and '.join(report['classes'])}"]
    for name, by_gamma in report["share_of_each_mode"].items():
        for gamma, shares in by_gamma.items():
            columns = "  ".join(" / ".join(f"{share:.1%}" for share in of_class) for of_class in shares)
            lines.append(f"{name:>16} gamma {gamma}: {columns}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------ training, sampling
def _train(config: Config, points: np.ndarray, classes: np.ndarray, name: str) -> KaleidoPipeline:
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


def _tokenized(
    config: Config, codec: Codec, pipeline: KaleidoPipeline, points: np.ndarray, classes: np.ndarray
) -> dict[str, np.ndarray]:
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


def _sample(pipeline: KaleidoPipeline, gamma: float) -> tuple[Float[np.ndarray, "n 2"], Int[np.ndarray, "n"]]:
    config = pipeline.config
    classes = np.arange(config.eval.num_samples) % len(CLASSES)
    log.info("sampling %d points at gamma %g", len(classes), gamma)
    out = pipeline([CLASSES[c] for c in classes], seed=config.seed, gamma=gamma, grammar=config.sample.grammar)
    return out.x[:, 0], classes


# -------------------------------------------------------------------------------------------- the figure
def _figure(clouds: dict, data: np.ndarray, path: Path) -> None:
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
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), fontsize=8, markerscale=3, frameon=False)
        row[0].set_ylabel(titles[name], fontsize=12)
    figure.savefig(path, format="png", dpi=110)


def main(argv: list[str]) -> None:
    """Parses the flags as the command line does, runs, and prints the summary."""
    overrides = [arg for arg in argv if arg.startswith("--config.")]
    workdirs = [arg.removeprefix("--workdir=") for arg in argv if arg.startswith("--workdir=")]
    if not workdirs or len(overrides) + len(workdirs) != len(argv):
        raise user_error(" ".join(argv) or "no flags", "--workdir=DIR [--config.KEY=VALUE ...]", "correct the command")
    config = config_from_flags(__file__, overrides)
    set_cpu_flag()  # before jax starts its backend
    start_logging()
    say(run(config, Path(workdirs[-1]).expanduser()))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"figure3: error: {error}")
