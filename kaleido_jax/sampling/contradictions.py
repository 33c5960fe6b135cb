"""Contradictions between the segments of z: objects that differ in number, name or place, and words against boxes."""

from collections.abc import Iterator
from dataclasses import dataclass

from kaleido_jax.data.scene_words import misfits
from kaleido_jax.latents import segments as registry
from kaleido_jax.latents.geometry import box_iou, ellipse_to_box
from kaleido_jax.latents.render.shapes import Ellipse, Rectangle
from kaleido_jax.latents.types import Latents, segments_of

# Below it, box and ellipse are of different places. Scenes of emoji have 0.61 and more (1,931 sprites).
LEAST_IOU = 0.4
_Object = tuple[str, tuple[float, float, float, float]]  # phrase, box (x1, y1, x2, y2) in 0..1000


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """Two segments that do not say the same; the earlier one first."""

    segments: tuple[str, str]
    message: str  # one line


def contradictions(z: Latents) -> list[Contradiction]:
    """Where the segments of valid latents contradict each other.

    Any two segments that outline objects are compared by number, phrases and places; a text as `emoji.describe` writes
    it is compared with the first of them. Other texts are not read, and vokens say nothing that could be compared.
    """
    outlined = {name: objects for name in segments_of(z) if (objects := _objects(z, name)) is not None}
    found = []
    for i, first in enumerate(outlined):
        for second in list(outlined)[i + 1 :]:
            lines = _compare(first, outlined[first], second, outlined[second])
            found += [Contradiction(segments=(first, second), message=line) for line in lines]
    if z.text is not None and outlined:
        name, objects = next(iter(outlined.items()))
        found += [Contradiction(segments=("text", name), message=line) for line in misfits(z.text, objects)]
    return found


def _objects(z: Latents, name: str) -> list[_Object] | None:
    """The objects of a segment that outlines some; None for one that does not."""
    value = getattr(z, name)
    outlines = [s for s in registry.get(name).render(value).square if isinstance(s, Rectangle | Ellipse)]
    if not outlines and value != ():  # an empty list of objects is one all the same
        return None
    return [
        (o.phrase, tuple(map(float, o.box if isinstance(o, Rectangle) else ellipse_to_box(o.blob)))) for o in outlines
    ]


def _compare(first: str, ones: list[_Object], second: str, others: list[_Object]) -> Iterator[str]:
    if len(ones) != len(others):
        yield f"{len(ones)} of {first}, {len(others)} of {second}"
    for i, ((phrase, box), (other_phrase, other_box)) in enumerate(zip(ones, others, strict=False)):
        if phrase != other_phrase:
            yield f"{first}.{i} is {phrase!r}, {second}.{i} is {other_phrase!r}"
        iou = float(box_iou(box, other_box))
        if iou < LEAST_IOU:
            yield f"{first}.{i} and {second}.{i} of {phrase!r} are in different places (IoU {iou:.2f})"
