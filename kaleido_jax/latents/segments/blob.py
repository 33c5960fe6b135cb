"""The blob segment: ellipses of objects on the square training crop."""

from dataclasses import dataclass
from typing import Any

from kaleido_jax.latents.nodes import Bounds
from kaleido_jax.latents.render.shapes import Ellipse
from kaleido_jax.latents.segments.objects import ObjectList
from kaleido_jax.latents.validity import (
    HALF_TURN,
    MAX_COORDINATE,
    check_ints,
    latents_error,
    nearest_multiple,
    plain_numbers,
)


@dataclass(frozen=True)
class Blob:
    """One object's ellipse: phrase and (xc, yc, r_major, r_minor, theta). Lists and arrays become tuples.

    Center 0..1000, semi-axes 1..1000, r_major >= r_minor, theta in degrees [0, 180), +x towards +y (down).
    """

    phrase: str
    blob: tuple[int, int, int, int, int] | list[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "blob", plain_numbers(self.blob))


def check_blob(blob: Any) -> None:
    """Raises LatentsError unless blob is (xc, yc, r_major, r_minor, theta) in the ranges of Blob."""
    check_ints(blob, 5, "blob")
    xc, yc, major, minor, theta = blob
    inside = 0 <= xc <= MAX_COORDINATE and 0 <= yc <= MAX_COORDINATE
    if not (inside and 1 <= minor <= major <= MAX_COORDINATE and 0 <= theta < HALF_TURN):
        raise latents_error(
            f"blob {tuple(blob)}",
            "center 0..1000, 1 <= r_minor <= r_major <= 1000, 0 <= theta < 180",
            "correct the numbers",
        )


def snap_blob(blob: tuple[int, ...], step: int) -> tuple[int, ...]:
    """A valid blob, its numbers at the nearest multiples of a step that divides 1000 and 180; axes at least a step."""
    xc, yc, major, minor, theta = (nearest_multiple(v, step) for v in blob)
    return xc, yc, max(major, step), max(minor, step), theta % HALF_TURN


def _outline(item: Blob, index: int) -> Ellipse:
    return Ellipse(blob=item.blob, phrase=item.phrase, index=index)


SEGMENT = ObjectList(
    name="blob",
    kind=Blob,
    field="blob",
    bounds=(
        Bounds(low=0, high=MAX_COORDINATE),  # xc
        Bounds(low=0, high=MAX_COORDINATE),  # yc
        Bounds(low=1, high=MAX_COORDINATE, keep="a"),  # r_major
        Bounds(low=1, upto="a"),  # r_minor <= r_major
        Bounds(low=0, high=HALF_TURN - 1),  # theta
    ),
    check_numbers=check_blob,
    shape=_outline,
    snap_numbers=snap_blob,
)
