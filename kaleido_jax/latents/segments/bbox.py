"""The bbox segment: boxes of objects on the square training crop."""

from dataclasses import dataclass
from typing import Any

from kaleido_jax.latents.nodes import Bounds
from kaleido_jax.latents.render.shapes import Rectangle
from kaleido_jax.latents.segments.objects import ObjectList
from kaleido_jax.latents.validity import MAX_COORDINATE, check_ints, latents_error, nearest_multiple, plain_numbers


@dataclass(frozen=True)
class Box:
    """One object's box: phrase and (x1, y1, x2, y2), x1 < x2, y1 < y2, each 0..1000. Lists and arrays become tuples."""

    phrase: str
    box: tuple[int, int, int, int] | list[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", plain_numbers(self.box))


def check_box(box: Any) -> None:
    """Raises LatentsError unless box is (x1, y1, x2, y2) with x1 < x2 and y1 < y2, ints 0..1000."""
    check_ints(box, 4, "box")
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= MAX_COORDINATE and 0 <= y1 < y2 <= MAX_COORDINATE):
        raise latents_error(f"box {tuple(box)}", "x1 < x2 and y1 < y2, each 0..1000", "correct the corners")


def snap_box(box: tuple[int, ...], step: int) -> tuple[int, ...]:
    """A valid box with corners at the nearest multiples of a step that divides 1000; at least a step wide and high."""
    x1, y1, x2, y2 = (nearest_multiple(v, step) for v in box)
    x1, y1 = min(x1, MAX_COORDINATE - step), min(y1, MAX_COORDINATE - step)
    return x1, y1, max(x2, x1 + step), max(y2, y1 + step)


def _outline(item: Box, index: int) -> Rectangle:
    return Rectangle(box=item.box, phrase=item.phrase, index=index)


SEGMENT = ObjectList(
    name="bbox",
    kind=Box,
    field="box",
    bounds=(
        Bounds(low=0, high=MAX_COORDINATE - 1, keep="a"),  # x1
        Bounds(low=0, high=MAX_COORDINATE - 1, keep="b"),  # y1
        Bounds(above="a", high=MAX_COORDINATE),  # x2 > x1
        Bounds(above="b", high=MAX_COORDINATE),  # y2 > y1
    ),
    check_numbers=check_box,
    shape=_outline,
    snap_numbers=snap_box,
)
