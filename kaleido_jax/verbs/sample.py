"""sample: captions -> latents, images and one grid in samples/step_<N>/."""

from pathlib import Path

from kaleido_jax.config.schema import Config
from kaleido_jax.config.stored import check_workdir
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.verbs.verb import CONFIG, WORKDIR, Flag, say

HELP = "captions -> latents, images and one grid, from the workdir's latest checkpoint or a bundled model"
FLAGS = (
    CONFIG,
    WORKDIR,
    Flag(
        name="model",
        value="NAME",
        help="a bundled model such as emoji-tiny, or an exported folder, instead of the workdir's; brings its config",
        configures=True,
    ),
)


def run(config: Config, workdir: Path, model: str | None = None) -> None:
    """Writes samples/step_<N>/: the grid, each image with its recipe, and a JSON for each caption."""
    check_backend()
    from kaleido_jax.sampling.gallery import write_samples
    from kaleido_jax.sampling.pipeline import KaleidoPipeline

    if model is None:
        check_workdir(config, workdir)
    pipeline = KaleidoPipeline.from_pretrained(model or workdir, config)
    say(f"grid: {write_samples(pipeline, workdir)}")
