"""sample: captions -> latents, images and one grid in samples/step_<N>/."""

from pathlib import Path

from kaleido_jax.config.schema import Config
from kaleido_jax.config.stored import check_workdir
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.verbs.verb import CONFIG, WORKDIR, say

HELP = "captions -> latents, images and one grid, from the workdir's latest checkpoint"
FLAGS = (CONFIG, WORKDIR)


def run(config: Config, workdir: Path) -> None:
    """Writes samples/step_<N>/: the grid, each image with its recipe, and a JSON for each caption."""
    check_backend()
    from kaleido_jax.sampling.gallery import write_samples
    from kaleido_jax.sampling.pipeline import KaleidoPipeline

    check_workdir(config, workdir)
    pipeline = KaleidoPipeline.from_pretrained(workdir, config)
    say(f"grid: {write_samples(pipeline, workdir)}")
