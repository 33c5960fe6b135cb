"""sample: captions -> latents, images and one grid in samples/step_<N>/."""

from pathlib import Path

from kaleido_jax.config.schema import Config
from kaleido_jax.config.stored import check_workdir
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.verbs.verb import CONFIG, PROCESSES, WORKDIR, Flag, say

HELP = "captions -> latents, images and one grid, from the workdir's latest checkpoint or from --model"
FLAGS = (
    CONFIG,
    WORKDIR,
    Flag(
        name="model",
        value="DIR",
        help="an exported folder, or the name of a bundled model, to sample from instead; its config is the default",
        configures=True,
    ),
    *PROCESSES,
)


def run(config: Config, workdir: Path, model: str | None = None) -> None:
    """Writes samples/step_<N>/: the grid, each image with its recipe, and a JSON for each caption."""
    check_backend()
    from kaleido_jax.sampling.gallery import write_samples
    from kaleido_jax.sampling.pipeline import KaleidoPipeline

    check_workdir(config, workdir)  # also with --model, whose samples must not replace those of another run
    pipeline = KaleidoPipeline.from_pretrained(model or workdir, config)
    say(f"grid: {write_samples(pipeline, workdir)}")
