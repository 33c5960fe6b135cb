"""Output of the pipeline: images, latents and recipes; shown as a grid, saved as PNG and JSON."""

import functools
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin

from kaleido_jax.errors import user_error
from kaleido_jax.latents.types import Latents
from kaleido_jax.runtime.files import make_folder, replacing, write_atomically
from kaleido_jax.runtime.text import file_stem
from kaleido_jax.sampling.grid import Row, render_grid
from kaleido_jax.sampling.recipe import CHUNK, Recipe
from kaleido_jax.sampling.tokens import SampledLatents

GRID, RECIPE = "grid.png", "recipe.json"


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
        return pixels_of(self.x)

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
        lists = {name: one.get(name) for name in ("noise_indices", "pixels", "batch")}
        return self.recipe | {"rows": [one | {name: v and [v[image]] for name, v in lists.items()}]}

    def grid(self) -> Image.Image:
        """The latents and images of each caption as one picture, with gamma, sampler, steps and seed written on it."""
        parts = zip(self.captions, self.latents, self.problems, self.images, strict=True)
        rows = [Row(caption=c, latents=z, problem=problem, images=[images]) for c, z, problem, images in parts]
        return render_grid(rows, [self.recipe])

    def save(self, folder: str | Path) -> Path:
        """Writes each image with its recipe inside, a JSON for each caption, grid.png and recipe.json.

        Files of the same name are replaced. recipe.json is written last, so its presence means that the folder is
        complete.

        Returns:
          The path of the grid.
        """
        folder, rows = make_folder(Path(folder).expanduser(), "folder"), []
        for i, (caption, images) in enumerate(zip(self.captions, self.images, strict=True)):
            stem = f"{i:02d}-{file_stem(caption) or 'picture'}"
            files = [f"{stem}-{j}.png" for j in range(len(images))]
            for j, (image, file) in enumerate(zip(images, files, strict=True)):
                save_png(image, folder / file, self.recipe_of(i, j))
            rows.append(self.recipe["rows"][i] | {"files": files})
            _write_json(folder / f"{stem}.json", self.recipe | {"rows": rows[-1:]})
        with replacing(folder / GRID) as temporary:
            self.grid().save(temporary, "png")
        _write_json(folder / RECIPE, self.recipe | {"rows": rows})
        return folder / GRID


def pixels_of(x: Float[np.ndarray, "*n h w 3"]) -> UInt8[np.ndarray, "*n h w 3"]:
    """Images in the model range as 0..255: 128 x + 127, rounded."""
    return np.clip(np.round(x * 128 + 127), 0, 255).astype(np.uint8)


def save_png(image: Image.Image, path: Path, recipe: Recipe) -> None:
    """Writes an image with its recipe in a text chunk, which `load_recipe` reads."""
    write_atomically(path, png_bytes(image, recipe))


def png_bytes(image: Image.Image, recipe: Recipe | None = None) -> bytes:
    """An image as a PNG file, with its recipe in a text chunk."""
    chunks, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    if recipe is not None:
        text = json.dumps(recipe)
        chunks.add_text(CHUNK, text, zip=len(text) < 2**20)  # Pillow reads no more than that from a compressed chunk
    image.save(buffer, "png", pnginfo=chunks)
    return buffer.getvalue()


def _write_json(path: Path, value: Recipe) -> None:
    write_atomically(path, json.dumps(value, indent=2).encode())
