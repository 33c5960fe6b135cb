"""What an image of a scene shows and what its z says of it, in the same words, and how often the two agree."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kaleido_jax import array_types as at
from kaleido_jax.data.scene_words import Said, placed_in, said_by, upright_mask
from kaleido_jax.data.sources.emoji import KINDS, SPRITE_NAMES, SPRITES_PER_KIND, place_word, size_word, tilt_word
from kaleido_jax.evaluate.scene_pixels import background_of, box_of
from kaleido_jax.evaluate.sprite_reader import SpriteReader
from kaleido_jax.latents.geometry import box_iou, mask_to_ellipse
from kaleido_jax.latents.types import Latents

LONG_BELOW = 0.8  # minor / major axis of a sprite's ellipse; nearer to a circle its angle says little about the tilt


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is read in one image, which is taken to show one sprite."""

    sprite: int  # index into SPRITE_NAMES
    tilt: float  # degrees, clockwise
    background: str
    # None where there is nothing but background:
    box: tuple[float, float, float, float] | None  # (x1, y1, x2, y2), 0..1000
    size: str | None
    place: str | None

    @property
    def kind(self) -> int:
        """Index into KINDS."""
        return self.sprite // SPRITES_PER_KIND


def see(images: at.Images, reader: SpriteReader) -> list[Seen]:
    """Reads images: sprite and tilt with the reader, background and box from the pixels, place and size from all.

    Raises:
      UserError: images of another size than the reader's.
    """
    read, found = reader(images), []
    for image, sprite, tilt in zip(images, read.sprite.tolist(), read.tilt.tolist(), strict=True):
        box, size, place = box_of(image), None, None
        if box is not None:
            x, y, side = placed_in(box, sprite, tilt)
            size, place = size_word(side), place_word(x, y)
        background = background_of(image)
        found.append(Seen(sprite=sprite, tilt=tilt, background=background, box=box, size=size, place=place))
    return found


# ---------------------------------------------------------------------------------------- agreement
def agreement(seen: Sequence[Seen], latents: Sequence[Latents | None], kinds: Sequence[int]) -> dict[str, Any]:
    """How far images are as their z says, over the images whose z parses; None where no z has the segment.

    Shares of images: `phrase_of_kind` (the first box names a sprite of the caption's kind: the prior), `sprite_as_said`
    (the sprite that is read is the one that the first box names), `no_foreground` (counted as IoU 0), `text_readable`
    (as the source writes it; other texts count as wrong in the next), `background_as_said`, `size_as_said`,
    `place_as_said` and `tilt_as_said`. `box_iou_median` is that of the foreground's box with the first box of z.
    `blob_tilt_error_degrees_median` is the angle, 0..90, between the first ellipse of z and that of the sprite that is
    read, turned by the tilt that is read, over sprites that are longer than wide.

    Args:
      seen: of each image.
      latents: z of each image; None where it does not parse.
      kinds: index into KINDS of each caption.
    """
    rows = [(s, z, kind) for s, z, kind in zip(seen, latents, kinds, strict=True) if z is not None]
    boxes = [(s, z.bbox[0], kind) for s, z, kind in rows if z.bbox]
    texts = [(s, said_by(z.text)) for s, z, _ in rows if z.text is not None]
    blobs = [(s, z.blob[0].blob[4]) for s, z, _ in rows if z.blob]
    turned = [error for s, theta in blobs if (error := _angle_error(s, theta)) is not None]

    def as_said(same: Callable[[Seen, Said], bool]) -> float | None:
        return _mean(said is not None and same(s, said) for s, said in texts)

    return {
        "phrase_of_kind": _mean(box.phrase in _names(kind) for _, box, kind in boxes),
        "sprite_as_said": _mean(SPRITE_NAMES[s.sprite] == box.phrase for s, box, _ in boxes),
        "box_iou_median": _median(0.0 if s.box is None else float(box_iou(s.box, box.box)) for s, box, _ in boxes),
        "no_foreground": _mean(s.box is None for s, _, _ in boxes),
        "text_readable": _mean(said is not None for _, said in texts),
        "background_as_said": as_said(lambda s, said: s.background == said.background),
        "size_as_said": as_said(lambda s, said: s.size == said.size),
        "place_as_said": as_said(lambda s, said: s.place == said.place),
        "tilt_as_said": as_said(lambda s, said: tilt_word(s.tilt) == said.tilt),
        "blob_tilt_error_degrees_median": _median(turned),
    }


def _names(kind: int) -> tuple[str, ...]:
    if not 0 <= kind < len(KINDS):
        raise IndexError(f"kind {kind} of {len(KINDS)}")
    return SPRITE_NAMES[SPRITES_PER_KIND * kind : SPRITES_PER_KIND * (kind + 1)]


def _angle_error(seen: Seen, theta: float) -> float | None:
    upright, ratio = _upright_ellipse(seen.sprite)
    if ratio >= LONG_BELOW:
        return None
    return abs((upright + seen.tilt - theta + 90) % 180 - 90)  # theta and theta + 180 are the same ellipse


@functools.cache
def _upright_ellipse(sprite: int) -> tuple[float, float]:
    """(theta in degrees, minor / major axis) of a sprite that is not tilted."""
    _, _, major, minor, theta = mask_to_ellipse(upright_mask(sprite))
    return float(theta), float(minor / major)


def _mean(values: Iterable[bool]) -> float | None:
    known = list(values)
    return float(np.mean(known)) if known else None


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return float(np.median(known)) if known else None
