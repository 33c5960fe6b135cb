"""Output of the pipeline: images, latents and recipes; shown as a grid, saved as PNG and JSON, read back."""

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, PngImagePlugin

from kaleido_jax.config.schema import Sample
from kaleido_jax.errors import user_error
from kaleido_jax.latents.render.image import render_panel
from kaleido_jax.latents.render.layout import BACKGROUND, INK, font_for, wrap
from kaleido_jax.latents.types import Latents
from kaleido_jax.runtime.files import make_folder, replacing, write_atomically
from kaleido_jax.sampling.batched import OF_THE_GRID
from kaleido_jax.sampling.tokens import SampledLatents

PANEL_PX, IMAGE_PX, GAP_PX = 256, 192, 12
GRID, RECIPE = "grid.png", "recipe.json"
SAVED = "a PNG or JSON that KaleidoOutput.save wrote"
CHUNK = "kaleido_jax"  # keyword of the PNG text chunk that holds the recipe


class ModelRecipe(TypedDict):
    """Which model it was."""

    name: str  # config.name
    step: int  # of the checkpoint
    config: str  # fingerprint of the networks, the process and the latents
    weights: str  # checksum of every parameter


class RowRecipe(TypedDict, total=False):
    """One caption with its latents and images."""

    caption: str
    latents_index: int | None  # sample index with which z was sampled; None = z was given, or the model has no z
    tokens: list[int] | None  # of z; they also reproduce a z that does not parse; None for a baseline
    latents: dict[str, Any] | None  # z in JSON; None if it does not parse, or for a baseline
    problem: str  # why it does not parse
    noise_indices: list[int]  # sample index of each image's noise
    files: list[str]  # of the images, in a folder


class Recipe(TypedDict):
    """Everything that reproduces some images; the recipe of one image has one row with one noise index."""

    model: ModelRecipe
    seed: int
    sample: dict[str, Any]  # the fields of config.sample that matter to it
    rows: list[RowRecipe]


def new_recipe(
    model: ModelRecipe, captions: Sequence[str], *, images_per_caption: int, seed: int, sample: Sample, has_z: bool
) -> Recipe:
    """The recipe of a call before its latents are known; `has_z` says whether they will be sampled.

    Raises:
      UserError: no captions, or a number out of range.
    """
    if not captions:
        raise user_error("no captions", "at least one", "give some")
    for name, value, least, most in (
        ("images_per_caption", images_per_caption, 1, 2**31 - 1),
        ("seed", seed, 0, 2**32 - 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise user_error(f"{name} = {value!r}", f"a whole number from {least} to {most}", "correct it")
    rows: list[RowRecipe] = [
        {
            "caption": caption,
            "latents_index": i if has_z else None,
            "tokens": None,
            "latents": None,
            "problem": "",
            "noise_indices": list(range(i * images_per_caption, (i + 1) * images_per_caption)),
        }
        for i, caption in enumerate(captions)
    ]
    settings = {name: v for name, v in dataclasses.asdict(sample).items() if name not in OF_THE_GRID}
    return {"model": model, "seed": seed, "sample": json.loads(json.dumps(settings)), "rows": rows}


@dataclass(frozen=True, kw_only=True)
class KaleidoOutput:
    """What a call of the pipeline sampled; row i of every field belongs to caption i."""

    x: Float[np.ndarray, "n k ..."]  # images (n, k, h, w, 3) in the model range, k for each caption; or points
    samples: list[SampledLatents]  # tokens, latents, and why they do not parse; empty for a baseline
    recipe: Recipe

    @functools.cached_property
    def images(self) -> list[list[Image.Image]]:
        """The images of each caption."""
        return [[Image.fromarray(pixels) for pixels in row] for row in self.pixels]

    @property
    def pixels(self) -> UInt8[np.ndarray, "n k h w 3"]:
        """The images as arrays, 128 x + 127.

        Raises:
          UserError: the model samples points.
        """
        if self.x.ndim != 5:
            raise user_error("a model of points", "one of images", "use `x`")
        return np.clip(np.round(self.x * 128 + 127), 0, 255).astype(np.uint8)

    @property
    def captions(self) -> list[str]:
        """The captions, in order."""
        return [row["caption"] for row in self.recipe["rows"]]

    @property
    def latents(self) -> list[Latents | None]:
        """The z that all images of a caption share; None if it does not parse, and for a baseline."""
        return [sample.latents for sample in self.samples] or [None] * len(self.x)

    @property
    def problems(self) -> list[str]:
        """Why a z does not parse; "" if it does."""
        return [sample.problem for sample in self.samples] or [""] * len(self.x)

    def recipe_of(self, row: int, image: int) -> Recipe:
        """The recipe of one image."""
        one = self.recipe["rows"][row]
        return self.recipe | {"rows": [one | {"noise_indices": [one["noise_indices"][image]]}]}

    def grid(self) -> Image.Image:
        """One row for each caption: its latents on an empty canvas with text and vokens, then its images."""
        panels = [_panel(*row) for row in zip(self.captions, self.latents, self.problems, strict=True)]
        heights = [max(panel.height, IMAGE_PX) + GAP_PX for panel in panels]
        width = GAP_PX + PANEL_PX + (GAP_PX + IMAGE_PX) * self.x.shape[1] + GAP_PX
        sheet, top = Image.new("RGB", (width, sum(heights) + GAP_PX), BACKGROUND), GAP_PX
        for panel, row, height in zip(panels, self.images, heights, strict=True):
            sheet.paste(panel, (GAP_PX, top))
            for j, image in enumerate(row):
                shown = image.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.NEAREST)
                sheet.paste(shown, (2 * GAP_PX + PANEL_PX + j * (IMAGE_PX + GAP_PX), top))
            top += height
        return sheet

    def save(self, folder: str | Path) -> Path:
        """Writes each image with its recipe inside, a JSON for each caption, grid.png and recipe.json.

        Files of the same name are replaced. recipe.json is written last, so its presence means that the folder is
        complete.

        Returns:
          The path of the grid.
        """
        folder, rows = make_folder(Path(folder).expanduser(), "folder"), []
        for i, (caption, images) in enumerate(zip(self.captions, self.images, strict=True)):
            stem = f"{i:02d}-{re.sub(r'[^a-z0-9]+', '-', caption.lower()).strip('-')[:40]}"
            files = [f"{stem}-{j}.png" for j in range(len(images))]
            for j, (image, file) in enumerate(zip(images, files, strict=True)):
                chunks = PngImagePlugin.PngInfo()
                chunks.add_text(CHUNK, json.dumps(self.recipe_of(i, j)))
                with replacing(folder / file) as temporary:
                    image.save(temporary, "png", pnginfo=chunks)
            rows.append(self.recipe["rows"][i] | {"files": files})
            _write_json(folder / f"{stem}.json", self.recipe | {"rows": rows[-1:]})
        with replacing(folder / GRID) as temporary:
            self.grid().save(temporary, "png")
        _write_json(folder / RECIPE, self.recipe | {"rows": rows})
        return folder / GRID


def load_recipe(path: str | Path) -> Recipe:
    """The recipe inside a saved PNG, or in a JSON beside it.

    Raises:
      UserError: no such file, or one without a recipe.
    """
    path = Path(path).expanduser()
    try:
        if path.suffix.lower() == ".png":
            with Image.open(path) as image:
                image.load()  # the text may also come after the pixels
                content = image.info.get(CHUNK, "null")
        else:
            content = path.read_text(encoding="utf-8")
        recipe = json.loads(content)
    except (OSError, ValueError, SyntaxError) as error:  # PIL raises SyntaxError for a broken PNG
        reason = getattr(error, "strerror", None) or "damaged"
        raise user_error(f"{path} cannot be read ({reason})", SAVED, "name another file") from error
    if not isinstance(recipe, dict) or not Recipe.__required_keys__ <= recipe.keys():
        raise user_error(f"{path} holds no recipe", SAVED, "name another file")
    return recipe


def _write_json(path: Path, value: Recipe) -> None:
    write_atomically(path, json.dumps(value, indent=2).encode())


def _panel(caption: str, z: Latents | None, problem: str) -> Image.Image:
    font = font_for(PANEL_PX)
    title = Image.new("RGB", (PANEL_PX, 30), BACKGROUND)
    ImageDraw.Draw(title).text((0, 4), caption, font=font, fill=INK)
    if z is not None:
        body = render_panel(z, PANEL_PX)
    elif problem:
        lines = wrap(f"not parsable: {problem}", font, PANEL_PX - 8)
        body = Image.new("RGB", (PANEL_PX, 24 * len(lines) + 8), BACKGROUND)
        ImageDraw.Draw(body).multiline_text((4, 4), "\n".join(lines), font=font, fill=INK)
    else:
        return title
    joined = Image.new("RGB", (PANEL_PX, title.height + body.height), BACKGROUND)
    joined.paste(title, (0, 0))
    joined.paste(body, (0, title.height))
    return joined
