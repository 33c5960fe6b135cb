"""Words of the emoji scenes: what a text says of each sprite, and whether boxes show the same."""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from kaleido_jax import array_types as at
from kaleido_jax.data.sources.emoji import (
    BACKGROUNDS,
    PLACES,
    SIZES,
    SPRITE_NAMES,
    TILTS,
    PlacedSprite,
    Scene,
    place_word,
    render,
    size_word,
    tilt_word,
)

_UPRIGHT_SIDE = 0.9  # of the sprites on which angles and outlines are measured, in parts of the canvas
_DEGREES = (-40, -29, -18, -10, 0, 10, 18, 29, 40)  # tilts that are tried where a text says one of three words
_SLACK = 0.05  # of centers and sides (0..1): boxes are rounded, cut by the border, and hidden by other sprites


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a text says about one sprite, in the source's words."""

    name: str
    size: str
    place: str
    tilt: str
    background: str


# ------------------------------------------------------------------------------------------------ the text
def _any_of(words: Iterable[str]) -> str:
    return "(" + "|".join(sorted(words, key=len, reverse=True)) + ")"


_OBJECT = rf"[Aa] {_any_of(SIZES)} ([^,]+), {_any_of(PLACES)}, {_any_of(TILTS)}"
_TEXT = re.compile(rf"{_OBJECT}(?:,? and .*)?, on {_any_of(BACKGROUNDS)}\.?")


def all_said_by(text: str) -> list[Said]:
    """The words of a text as `emoji.describe` writes it, of each sprite in order; empty where it is no such text.

    As people type it, it may begin with "A", end in a full stop and have a comma before "and".
    """
    whole = _TEXT.fullmatch(text)
    if not whole:
        return []
    parts = (match.groups() for match in re.finditer(_OBJECT, text))
    background = whole.groups()[-1]
    return [Said(name=name, size=s, place=p, tilt=t, background=background) for s, name, p, t in parts]


def said_by(text: str) -> Said | None:
    """The words of a text about the first sprite; None where `emoji.describe` writes no such text."""
    return next(iter(all_said_by(text)), None)


def text_of(said: Said) -> str:
    """The text of one sprite as `emoji.describe` writes it."""
    return f"a {said.size} {said.name}, {said.place}, {said.tilt}, on {said.background}"


def same_objects(one: str | None, other: str | None) -> bool:
    """Whether two texts as `emoji.describe` writes them differ in the background alone; False for other texts."""
    ones, others = ([replace(said, background="") for said in all_said_by(text or "")] for text in (one, other))
    return bool(ones) and ones == others


# ----------------------------------------------------------------------------------------------- the boxes
def misfits(text: str, objects: Sequence[tuple[str, tuple[float, float, float, float]]]) -> Iterator[str]:
    """Where a text contradicts objects (phrase, box 0..1000) in the same order, one line each; none for other texts.

    A word of place or size contradicts a box only if no tilt that the text allows, and no shift of a twentieth of the
    image, gives this word.
    """
    said = all_said_by(text)
    if said and len(said) != len(objects):
        yield f"the text names {len(said)} and there {'is' if len(objects) == 1 else 'are'} {len(objects)}"
    for one, (phrase, box) in zip(said, objects, strict=False):
        if one.name != phrase:
            yield f"the text says {one.name!r}, not {phrase!r}"
        places, sizes = _words_of(box, phrase, one.tilt)
        if one.place not in places:
            yield f"the text says {one.place!r} of {one.name!r}, which stands {_in_words(places)}"
        if one.size not in sizes:
            yield f"the text says {one.size!r} of {one.name!r}, which is {_in_words(sizes)}"


def _in_words(words: Iterable[str]) -> str:
    return " or ".join(repr(word) for word in words)


def _words_of(box: tuple[float, float, float, float], phrase: str, tilt: str) -> tuple[list[str], list[str]]:
    """The words of PLACES and of SIZES that a box may have, the likeliest first."""
    if phrase in SPRITE_NAMES:
        sprite = SPRITE_NAMES.index(phrase)
        found = [placed_in(box, sprite, t) for t in _DEGREES if tilt_word(t) == tilt]
    else:  # an unknown outline: taken to fill its box
        x1, y1, x2, y2 = (v / 1000 for v in box)
        found = [((x1 + x2) / 2, (y1 + y2) / 2, max(x2 - x1, y2 - y1))]
    shifts = (0, -_SLACK, _SLACK)
    places = [place_word(x + dx, y + dy) for dx in shifts for dy in shifts for x, y, _ in found]
    sizes = [size_word(side + more) for more in shifts for *_, side in found]
    return list(dict.fromkeys(places)), list(dict.fromkeys(sizes))


def placed_in(box: tuple[float, float, float, float], sprite: int, tilt: float) -> tuple[float, float, float]:
    """(x, y, side), 0..1, of a tilted sprite that fills a box (0..1000).

    A network's own reading of the center was off by three times as much.
    """
    points = _outline(sprite)
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    turned = points @ np.array([[cos, sin], [-sin, cos]])
    low, high = turned.min(axis=0), turned.max(axis=0)  # of a sprite of side 1 around its center
    corners = np.asarray(box).reshape(2, 2) / 1000
    side = float(np.sqrt(np.prod(corners[1] - corners[0]) / np.prod(high - low)))
    x, y = (corners[0] + corners[1]) / 2 - side * (low + high) / 2
    return float(x), float(y), side


@functools.cache
def _outline(sprite: int) -> Float[np.ndarray, "n 2"]:
    """Corners (x, y) of the pixels that a sprite of side 1, not tilted, shows around its center."""
    mask = upright_mask(sprite)
    rows, columns = np.nonzero(mask)
    corners = np.stack([columns, rows], axis=-1)[:, None] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    points = np.unique(corners.reshape(-1, 2), axis=0)
    return (points / len(mask) - 0.5) / _UPRIGHT_SIDE


def upright_mask(sprite: int) -> at.ImageMask:
    """The pixels of a sprite that is not tilted, on 128 px."""
    upright = PlacedSprite(sprite=sprite, x=0.5, y=0.5, side=_UPRIGHT_SIDE, tilt=0)
    return render(Scene(sprites=(upright,), background="white"), 128)[1][0]
