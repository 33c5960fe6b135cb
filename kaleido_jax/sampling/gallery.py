"""Sample folders of a workdir, samples/step_N/gammaG_seedS/, which the verb `sample` writes; grids over gammas."""

import itertools
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kaleido_jax.config.schema import Config
from kaleido_jax.data.records import default_captions, spread
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents.types import Latents
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.compile_times import compiling
from kaleido_jax.runtime.files import fingerprint, make_folder, new_folder, write_atomically
from kaleido_jax.sampling.grid import Row, render_grid
from kaleido_jax.sampling.output import GRID, RECIPE, KaleidoOutput, png_bytes
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.recipe import Recipe, load_recipe

log = logging.getLogger(__name__)

MOST_CAPTIONS = 12  # of a grid whose captions nobody has chosen
_SAVE_SEC = 3600  # for the main process to write many large images


def write_samples(
    pipeline: KaleidoPipeline,
    workdir: Path,
    *,
    captions: Sequence[str] = (),
    gammas: Sequence[float] = (),
    seed: int | None = None,
) -> Path:
    """Samples the grid of the pipeline's config for each gamma, and saves it in a folder of its own.

    A folder is named by gamma and seed, "gamma4_seed1"; where that one holds samples of another recipe, "_" and a
    fingerprint of the recipe follow. A folder that holds the samples of the recipe is kept as it is; of one that lost
    some, a grid is made from its images, and lost images are sampled again with the others. Several gammas also get
    one picture of all, "gamma1-4-8_seed1.png" beside the folders.

    Args:
      pipeline: its config.sample says what is sampled; each caption gets config.sample.latents_per_caption latents.
      workdir: receives samples/step_N/.
      captions: instead of the config's; if it has none either, those of the data.
      gammas: instead of the config's; each once.
      seed: instead of the config's.

    Returns:
      The path of the grid.

    Raises:
      UserError: there are no captions, or one is too long; a gamma or seed out of range; the folder is not writable.
    """
    config, parent = pipeline.config, workdir / "samples" / f"step_{pipeline.step:08d}"
    chosen = list(captions) or captions_to_sample(config, workdir)
    pipeline.caption_tokens(chosen)  # one that is too long is found before anything is sampled
    each = config.sample.latents_per_caption if config.latents.segments else 1
    repeated = [caption for caption in chosen for _ in range(each)]
    seed = config.seed if seed is None else seed
    gammas = list(dict.fromkeys(gammas)) or [config.sample.gamma]
    folders = [_write_one(pipeline, parent, repeated, gamma, seed) for gamma in gammas]
    if len(folders) == 1:
        return folders[0] / GRID
    path = parent / f"{_name(gammas, seed)}{_suffix(folders)}.png"
    if distributed.is_main():
        write_atomically(path, png_bytes(grid_of(folders)))
    return path


def _write_one(pipeline: KaleidoPipeline, parent: Path, captions: Sequence[str], gamma: float, seed: int) -> Path:
    """The folder of one gamma, sampled unless it is there."""
    settings, images = pipeline.config.sample, pipeline.config.sample.images_per_caption
    sample = pipeline.override({"gamma": gamma})
    wanted = pipeline.recipe(captions, images, seed, sample)  # in every process: it sums up all weights
    name = _name([gamma], seed)
    found, lost = distributed.tell("samples are there", lambda: _mended(parent, name, wanted), distributed.START_SEC)
    folder = parent / found
    if lost == []:
        log.info("%s holds the samples of this recipe", folder)
        return folder
    if lost:
        log.warning("%s lost %d of its files (%s): sampling all again", folder, len(lost), ", ".join(lost[:3]))
    what = f"{images} images" if not pipeline.config.latents.segments else f"latents and {images} images of each"
    log.info("gamma %g: sampling %s for %d rows", gamma, what, len(captions))
    given = {"gamma": gamma, "grammar": settings.grammar}
    with compiling("the sampler", *pipeline.compiled_for(sample), min(len(captions) * images, pipeline.chunk)):
        out = pipeline(captions, images_per_caption=images, seed=seed, **given)
    return parent / distributed.tell("samples are written", lambda: _save(out, parent, name, wanted), _SAVE_SEC)


def _save(out: KaleidoOutput, parent: Path, name: str, wanted: Recipe) -> str:
    """Writes the samples and returns their folder's name; those that another run has written meanwhile are kept."""
    while True:
        found, lost = _place(parent, name, wanted)
        if lost:
            out.save(parent / found)
            return found
        if lost == []:
            log.info("%s holds the samples of this recipe, which another run drew", parent / found)
            return found
        try:
            with new_folder(parent / found, "samples") as temporary:
                out.save(temporary)
            return found
        except UserError:
            if not (parent / found).exists():  # otherwise another run was faster, maybe with the same recipe
                raise


def _name(gammas: Sequence[float], seed: int) -> str:
    return f"gamma{'-'.join(f'{gamma:g}' for gamma in gammas)}_seed{seed}"


def _mended(parent: Path, name: str, wanted: Recipe) -> tuple[str, list[str] | None]:
    """`_place`, after the grid of a folder that lost nothing else is made from its images."""
    found, lost = _place(parent, name, wanted)
    if lost != []:
        make_folder(parent, "--workdir")  # what cannot be written is not sampled
    if lost != [GRID]:
        return found, lost
    write_atomically(parent / found / GRID, png_bytes(grid_of([parent / found])))
    log.info("%s had lost its grid, which is there again", parent / found)
    return found, []


def _place(parent: Path, name: str, wanted: Recipe) -> tuple[str, list[str] | None]:
    """(name of the folder for these samples, which of its files are lost; None: the folder is not there).

    A folder with another recipe is never taken.
    """
    request = _request(wanted)
    other = f"{name}_{fingerprint(json.dumps(request))[:6]}"
    for candidate in itertools.chain((name, other), (f"{other}-{i}" for i in itertools.count(2))):
        folder = parent / candidate
        if not folder.exists():
            return candidate, None
        if (folder / RECIPE).exists():
            try:
                if _request(recipe := load_recipe(folder / RECIPE)) == request:
                    files = [GRID, *(file for row in recipe["rows"] for file in row.get("files", ()))]
                    return candidate, [file for file in files if not os.path.exists(folder / file)]
            except UserError as error:  # of an earlier version, or damaged
                log.info("%s", error)
    raise AssertionError("names do not end")


def _request(recipe: Recipe) -> list[Any]:
    """The part of a recipe that decides the samples; the latents are a result."""
    rows = [(row["caption"], row.get("latents_index"), row["noise_indices"]) for row in recipe["rows"]]
    return json.loads(json.dumps([recipe["model"], recipe["seed"], recipe["sample"], rows]))


def _suffix(folders: Sequence[Path]) -> str:
    """Tells pictures of several folders apart as the folders' own names are."""
    plain = all(folder.name.count("_") == 1 for folder in folders)
    return "" if plain else f"_{fingerprint(*(folder.name for folder in folders))[:6]}"


def grid_of(folders: Sequence[Path]) -> Image.Image:
    """The picture of several sample folders side by side, whose recipes differ in gamma alone.

    Raises:
      UserError: a folder is damaged.
    """
    recipes = [load_recipe(folder / RECIPE) for folder in folders]
    rows = []
    for i, row in enumerate(recipes[0]["rows"]):
        images = [
            [_opened(folder / name) for name in _files_in(recipe, i, folder)]
            for folder, recipe in zip(folders, recipes, strict=True)
        ]
        z = row.get("latents") and Latents.from_json(row["latents"])
        rows.append(Row(caption=row["caption"], latents=z or None, problem=row.get("problem", ""), images=images))
    return render_grid(rows, recipes)


def _files_in(recipe: Recipe, row: int, folder: Path) -> list[str]:
    names = recipe["rows"][row].get("files")
    if names is None:
        found = f"{folder / RECIPE} without the files of row {row}"
        raise user_error(found, "what `sample` wrote", f"remove {folder} and sample again")
    return names


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        do = f"remove {path.parent} and sample again"
        raise user_error(f"{path} cannot be read ({str(error):.100})", "an image that `sample` wrote", do) from error


def captions_to_sample(config: Config, workdir: Path) -> list[str]:
    """The captions of config.sample, or the class names of the data, or some captions of the records.

    Of more than MOST_CAPTIONS class names, evenly spaced ones.

    Raises:
      UserError: there are none of these.
    """
    if config.sample.captions:
        return list(config.sample.captions)
    if names := default_captions(config, workdir):
        if len(names) > MOST_CAPTIONS:
            log.info("%d of %d class names; config.sample.captions or --caption choose", MOST_CAPTIONS, len(names))
            return spread(names, MOST_CAPTIONS)
        return names
    raise user_error("no captions to sample", "config.sample.captions", "set it, or give --caption='a dog'")
