"""The paper's claim as a picture: guidance makes a baseline lose modes, latents keep them. `sweep` measures it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from kaleido_jax import array_types as at
from kaleido_jax.data.sources.emoji import KINDS
from kaleido_jax.errors import user_error
from kaleido_jax.evaluate.emoji import (
    draw_captions,
    image_size_of,
    modes_of_caption,
)
from kaleido_jax.evaluate.scene_reading import see
from kaleido_jax.evaluate.sprite_reader import SpriteReader, open_reader
from kaleido_jax.latents.render.layout import load_font
from kaleido_jax.runtime.files import replacing
from kaleido_jax.sampling.pipeline import KaleidoPipeline

log = logging.getLogger(__name__)

GAMMAS = (1.0, 4.0, 8.0)  # rows of the picture, unless told otherwise
SHOWN_IMAGES = 8  # the first of each model in a row, in lines of four
# The picture is 1080 px wide and is read at about 390 on a phone, where its letters are 13 px high.
_WIDTH, _MARGIN, _GAP, _FONT_PX = 1080, 24, 8, 36
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 24), (96, 98, 108)


def compare(
    models: Mapping[str, KaleidoPipeline],
    folder: Path,
    *,
    gammas: Sequence[float] = GAMMAS,
    seed: int = 0,
    caption: str = KINDS[0],
    **sample: Any,
) -> Path:
    """Eight images of one caption from each model at each gamma, in less than a minute on a CPU.

    Args:
      models: by the name that the picture shows, e.g. {"baseline": ..., "Kaleido": ...}; at most two, of images of one
        size.
      folder: gets compare.png.
      gammas: guidance weights.
      seed: of all samples.
      caption: one of the ten kinds.
      **sample: fields of config.sample for all models, e.g. num_steps=20; each model's own where none is given.

    Returns:
      The path of the picture.

    Raises:
      UserError: images of several sizes, an unknown kind, or a field that is unknown or out of range.
      FloatingPointError: samples are not finite.
    """
    reader = _open_reader(models, caption, folder)
    rows: dict[float, list[at.Images]] = {}
    notes: dict[float, list[str]] = {}
    for gamma in dict.fromkeys(gammas):
        for pipeline in models.values():
            pixels = draw_captions(
                pipeline, pipeline.override(sample | {"gamma": gamma}), [caption] * SHOWN_IMAGES, seed
            )
            rows.setdefault(gamma, []).append(pixels)
            notes.setdefault(gamma, []).append(_note(modes_of_caption(see(pixels, reader), KINDS.index(caption))))
    _save(picture(caption, list(models), rows, notes), folder / "compare.png")
    return folder / "compare.png"


def _open_reader(models: Mapping[str, KaleidoPipeline], caption: str, folder: Path) -> SpriteReader:
    sizes = {image_size_of(pipeline.config) for pipeline in models.values()}
    if len(sizes) != 1 or len(models) > 2:
        raise user_error(f"{len(models)} models of {sorted(sizes)} px", "one or two of one size", "choose others")
    if caption not in KINDS:
        raise user_error(f"caption {caption!r}", f"one of {', '.join(KINDS)}", "choose one of them")
    return open_reader(sizes.pop(), folder)


def _save(sheet: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        sheet.save(temporary, "png")


def _note(one: Mapping[str, Any] | None) -> str:
    # With few samples not every caption has some.
    return "" if one is None else f"{one['modes_found']} of 12 modes in {one['samples']} images"


# ------------------------------------------------------------------------------------------ picture
def picture(
    caption: str, names: Sequence[str], rows: Mapping[float, Sequence[at.Images]], notes: Mapping[float, Sequence[str]]
) -> Image.Image:
    """One row for each gamma, one block of images for each model, side by side.

    Args:
      caption: of all images.
      names: of the models.
      rows: for each gamma the images of each model.
      notes: for each gamma what stands above each model's images.
    """
    font, small = load_font(_FONT_PX), load_font(round(0.8 * _FONT_PX))
    block = (_WIDTH - _MARGIN * (len(names) + 1)) // len(names)
    across = 4 if len(names) > 1 else 8
    side = (block - _GAP * (across - 1)) // across
    lines = -(-SHOWN_IMAGES // across)
    step = round(1.4 * _FONT_PX)
    row_height = 2 * step + lines * (side + _GAP) + _MARGIN
    sheet = Image.new("RGB", (_WIDTH, 2 * _MARGIN + 2 * step + len(rows) * row_height), _PAPER)
    ink = ImageDraw.Draw(sheet)
    lefts = [_MARGIN + i * (block + _MARGIN) for i in range(len(names))]
    ink.text((_MARGIN, _MARGIN), f'"{caption}"', font=font, fill=_INK)
    top = _MARGIN + step
    for left, name in zip(lefts, names, strict=True):
        ink.text((left, top), name, font=font, fill=_INK)
    top += step + _MARGIN // 2
    for gamma, blocks in rows.items():
        ink.line((_MARGIN, top, _WIDTH - _MARGIN, top), fill=_FAINT, width=2)
        ink.text((_MARGIN, top + 6), f"gamma {gamma:g}", font=font, fill=_INK)
        for left, note, images in zip(lefts, notes[gamma], blocks, strict=True):
            ink.text((left, top + step + 4), note, font=small, fill=_FAINT)
            for i, pixels in enumerate(images[:SHOWN_IMAGES]):
                corner = (left + (i % across) * (side + _GAP), top + 2 * step + 6 + (i // across) * (side + _GAP))
                sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), corner)
        top += row_height
    return sheet
