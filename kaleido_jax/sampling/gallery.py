"""Sample folders of a workdir, samples/step_N/, which the verb `sample` writes."""

import logging
from pathlib import Path
from typing import Any

from kaleido_jax.config.schema import Config
from kaleido_jax.data.records import class_names
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime import distributed
from kaleido_jax.sampling.output import GRID, RECIPE
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.recipe import Recipe, load_recipe

log = logging.getLogger(__name__)


def write_samples(pipeline: KaleidoPipeline, workdir: Path) -> Path:
    """Samples the grid of the pipeline's config and saves it; a folder that already holds this grid is kept.

    Returns:
      The path of the grid.
    """
    config, folder = pipeline.config, workdir / "samples" / f"step_{pipeline.step:08d}"
    captions, each = captions_to_sample(config, workdir), config.sample.images_per_caption
    wanted = pipeline.recipe(captions, each, config.seed, config.sample)  # in every process: it sums up all weights
    if distributed.tell("samples are there", lambda: _are_there(folder, wanted), distributed.START_SEC):
        return folder / GRID
    log.info("sampling latents and %d images for %d captions", each, len(captions))
    out = pipeline(captions, images_per_caption=each, seed=config.seed, grammar=config.sample.grammar)
    return out.save(folder) if distributed.is_main() else folder / GRID


def _are_there(folder: Path, wanted: Recipe) -> bool:
    """Whether the folder holds the samples of a recipe; those of another are removed."""
    if not (folder / RECIPE).exists():
        return False
    try:
        if _request(load_recipe(folder / RECIPE)) == _request(wanted):
            return True
    except UserError as error:  # of an earlier version, or damaged: it is drawn again
        log.info("%s", error)
    for file in folder.glob("[0-9]*-*"):  # otherwise images of two recipes would be beside one grid
        file.unlink()
    return False


def _request(recipe: Recipe) -> list[Any]:
    """The part of a recipe that decides the samples; the latents are a result."""
    rows = [(row["caption"], row["latents_index"], row["noise_indices"]) for row in recipe["rows"]]
    return [recipe["model"], recipe["seed"], recipe["sample"], rows]


def captions_to_sample(config: Config, workdir: Path) -> list[str]:
    """The captions of config.sample, or the class names of the data.

    Raises:
      UserError: there are neither.
    """
    if config.sample.captions:
        return list(config.sample.captions)
    if names := class_names(config, workdir):
        return names
    raise user_error(
        "no captions to sample", "config.sample.captions", "set it, e.g. --config.sample.captions=\"('a dog',)\""
    )
