"""export: an EMA of a workdir, by default its latest checkpoint's, as a folder for inference and for other programs."""

from pathlib import Path

from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.verbs.verb import OUTPUT, WORKDIR, Flag, say

HELP = "a run's latest checkpoint -> a folder for inference: config, weights, model card; needs no config"
FLAGS = (
    WORKDIR,  # or what was exported before, e.g. emoji-tiny, in another precision or for other programs
    OUTPUT,
    Flag(
        name="precision",
        value="DTYPE",
        help="float16 (the default), bfloat16 or float32, of the stored weights",
        words=("float16", "bfloat16", "float32"),
    ),
    Flag(
        name="step", value="N", help="the checkpoint, or with --sigma_rel the snapshot, instead of the latest", kind=int
    ),
    Flag(
        name="sigma_rel",
        value="WIDTH",
        help="another average than the EMA, e.g. 0.08, made of the snapshots of config.train.ema_profiles",
        kind=float,
    ),
    Flag(
        name="orbax",
        value="yes",
        help="also the weights as an Orbax checkpoint in orbax/, for other programs",
        bare="yes",
        words=("yes",),
    ),
    Flag(
        name="stablehlo",
        value="yes",
        help="also sampling as StableHLO in stablehlo/, to draw pictures without this package",
        bare="yes",
        words=("yes",),
    ),
)


def run(
    workdir: Path,
    output: Path,
    precision: str | None,
    step: int | None = None,
    sigma_rel: float | None = None,
    orbax: str | None = None,
    stablehlo: str | None = None,
) -> None:
    """Writes the folder, which `from_pretrained` and `sample --model` read."""
    check_backend()
    from kaleido_jax.export.folder import export_folder

    formats = {"orbax": bool(orbax), "stablehlo": bool(stablehlo)}
    folder = export_folder(workdir, output, precision or "float16", step, sigma_rel, **formats)
    say(f"exported to {folder}")
