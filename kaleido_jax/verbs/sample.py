"""sample: captions -> latents, images and one grid in samples/step_<N>/."""

from pathlib import Path

from kaleido_jax.config.schema import Config
from kaleido_jax.config.stored import check_workdir
from kaleido_jax.errors import user_error
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
    Flag(
        name="caption",
        value="TEXT",
        help='what to sample, e.g. --caption="a dog"; any number of these flags. The default: config.sample.captions, '
        "or else captions of the data",
        repeated=True,
    ),
    Flag(name="seed", value="N", help="of latents and noise; another one gives other samples", kind=int),
    Flag(name="gamma", value="G,...", help="guidance weights; several, e.g. 1,4,8, stand side by side in one grid"),
    *PROCESSES,
)


def run(
    config: Config,
    workdir: Path,
    model: str | None = None,
    caption: list[str] | None = None,
    seed: int | None = None,
    gamma: str | None = None,
) -> None:
    """Writes samples/step_<N>/gamma<G>_seed<S>/: the grid, each image with its recipe, and a JSON for each row."""
    gammas = _gammas(gamma)
    check_backend()
    from kaleido_jax.sampling.gallery import captions_to_sample, write_samples
    from kaleido_jax.sampling.pipeline import KaleidoPipeline
    from kaleido_jax.sampling.recipe import check_seed

    check_seed(config.seed if seed is None else seed)
    check_workdir(config, workdir)  # also with --model, whose samples must not be taken for those of another run
    captions = caption or captions_to_sample(config, workdir)  # a lack of them is told before weights are loaded
    pipeline = KaleidoPipeline.from_pretrained(model or workdir, config)
    for one in gammas:
        pipeline.override({"gamma": one})
    say(f"grid: {write_samples(pipeline, workdir, captions=captions, gammas=gammas, seed=seed)}")


def _gammas(text: str | None) -> list[float]:
    try:
        return [float(one) for one in text.split(",")] if text else []
    except ValueError as error:
        raise user_error(f"--gamma={text}", "a number or several, such as 1,4,8", "correct it") from error
