"""What a model draws, for people: a grid of latents and images, every image, and the JSON of every latents."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image, ImageDraw

from kaleido_jax.config.schema import Config
from kaleido_jax.data.sources.base import FashionSource
from kaleido_jax.errors import user_error
from kaleido_jax.latents.render.image import render_panel
from kaleido_jax.latents.render.layout import BACKGROUND, INK, font_for, wrap
from kaleido_jax.runtime.files import replacing, write_atomically
from kaleido_jax.sampling.pipeline import KaleidoPipeline, SampledLatents, to_uint8

PANEL_PX, IMAGE_PX, GAP_PX = 256, 192, 12


def write_samples(pipeline: KaleidoPipeline, config: Config, workdir: Path) -> Path:
    """Samples latents for each caption and several images from each, and writes them to samples/step_<N>/.

    Row i of the grid is sample index i; its images share the latents and differ in noise. A folder that already
    holds this recipe's grid is left as it is.

    Returns:
      The path of the grid.
    """
    folder = workdir / "samples" / f"step_{pipeline.step:08d}"
    grid_path, recipe = folder / "grid.png", _recipe(config, pipeline.step)
    recipe_path = folder / "recipe.json"
    if grid_path.exists() and recipe_path.exists() and json.loads(recipe_path.read_text()) == recipe:
        return grid_path

    captions, each = captions_to_draw(config), config.sample.images_per_latents
    logging.info("sampling latents and %d images for %d captions", each, len(captions))
    rows = pipeline.sample_latents(captions, seed=config.seed) if config.latents.segments else None
    repeated = [caption for caption in captions for _ in range(each)]
    tokens = [row.tokens for row in rows for _ in range(each)] if rows else None
    images = to_uint8(pipeline.draw(repeated, tokens, seed=config.seed))
    images = images.reshape(len(captions), each, *images.shape[1:])

    for i, caption in enumerate(captions):
        _write_row(folder, i, caption, rows[i] if rows else None, images[i], recipe)
    with replacing(grid_path) as temporary:
        grid(captions, rows, images).save(temporary, "png")
    write_atomically(recipe_path, json.dumps(recipe, indent=2).encode())
    return grid_path


def grid(captions: list[str], rows: list[SampledLatents] | None, images: np.ndarray) -> Image.Image:
    """Rows = captions: the latents drawn on an empty canvas with their text and vokens, then the images.

    Args:
      captions: n of them.
      rows: their latents; None for the baseline.
      images: uint8 (n, k, H, W, 3).
    """
    panels = [_panel(caption, rows[i] if rows else None) for i, caption in enumerate(captions)]
    heights = [max(panel.height, IMAGE_PX) + GAP_PX for panel in panels]
    width = GAP_PX + PANEL_PX + (GAP_PX + IMAGE_PX) * images.shape[1] + GAP_PX
    sheet, top = Image.new("RGB", (width, sum(heights) + GAP_PX), BACKGROUND), GAP_PX
    for panel, row, height in zip(panels, images, heights, strict=True):
        sheet.paste(panel, (GAP_PX, top))
        for j, image in enumerate(row):
            shown = Image.fromarray(image).resize((IMAGE_PX, IMAGE_PX), Image.Resampling.NEAREST)
            sheet.paste(shown, (2 * GAP_PX + PANEL_PX + j * (IMAGE_PX + GAP_PX), top))
        top += height
    return sheet


def _panel(caption, row):
    font = font_for(PANEL_PX)
    title = Image.new("RGB", (PANEL_PX, 30), BACKGROUND)
    ImageDraw.Draw(title).text((0, 4), caption, font=font, fill=INK)
    if row is None:
        return title
    body = render_panel(row.latents, PANEL_PX) if row.latents else _problem_panel(row.problem)
    joined = Image.new("RGB", (PANEL_PX, title.height + body.height), BACKGROUND)
    joined.paste(title, (0, 0))
    joined.paste(body, (0, title.height))
    return joined


def _problem_panel(problem):
    font = font_for(PANEL_PX)
    lines = wrap(f"not parsable: {problem}", font, PANEL_PX - 8)
    panel = Image.new("RGB", (PANEL_PX, 24 * len(lines) + 8), BACKGROUND)
    ImageDraw.Draw(panel).multiline_text((4, 4), "\n".join(lines), font=font, fill=INK)
    return panel


def _write_row(folder, index, caption, row, images, recipe):
    name = f"{index:02d}-{re.sub(r'[^a-z0-9]+', '-', caption.lower()).strip('-')[:40]}"
    files = []
    for j, image in enumerate(images):
        files.append(f"{name}-{j}.png")
        with replacing(folder / files[-1]) as temporary:
            Image.fromarray(image).save(temporary, "png")
    told = {"caption": caption, "index": index, "images": files, "recipe": recipe}
    if row is not None:
        latents = row.latents.to_json() if row.latents else None
        told |= {"latents": latents, "tokens": list(row.tokens), "problem": row.problem}
    write_atomically(folder / f"{name}.json", json.dumps(told, indent=2).encode())


def _recipe(config, step):
    return json.loads(json.dumps({"step": step, "seed": config.seed, "sample": dataclasses.asdict(config.sample)}))


def captions_to_draw(config: Config) -> list[str]:
    """Those of config.sample, or the shipped source's class names.

    Raises:
      UserError: there are neither.
    """
    if config.sample.captions:
        return list(config.sample.captions)
    if config.data.source == "fashion":
        return list(FashionSource.class_names)
    raise user_error(
        "no captions to sample", "config.sample.captions", "set it, e.g. --config.sample.captions=\"('a dog',)\""
    )
