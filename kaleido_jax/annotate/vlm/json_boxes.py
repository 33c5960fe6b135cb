"""JSON grounding: labels and boxes of an answer's JSON objects, under the keys and in the shapes that models use."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kaleido_jax.annotate.vlm.lenient_json import NUMBER, Value

# Qwen's key, Gemini's, and those that other models use instead of the requested one. Qwen labels objects and written
# text with different keys.
BOX_KEYS = {
    "bbox_2d": "xy",
    "box_2d": "yx",
    "bbox": "unknown",
    "box": "unknown",
    "bounding_box": "unknown",
    "boundingbox": "unknown",
}
LABEL_KEYS = ("label", "text_content", "name", "object", "phrase", "object_name", "class_name", "category", "class")
LABEL_KEYS += ("description", "caption", "text")
_CORNER_KEYS = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
    ("x0", "y0", "x1", "y1"),
)
_SIZE_KEYS = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
_NUMBER_WORD = re.compile(r"[^\s,;()\[\]\uff0c\uff1b\u3001\uff08\uff09\uff3b\uff3d\u3010\u3011]++")

Order = Literal["xy", "yx", "unknown"]


@dataclass(frozen=True, kw_only=True)
class LabeledBox:
    """One box as in an answer; None for a missing label or missing numbers."""

    label: str | None
    box: list[float] | None
    order: Order  # "xy": (x1, y1, x2, y2); "yx": (y1, x1, y2, x2); "unknown": may be either, or with a width and height


def boxes_of(found: dict[str, Value]) -> Iterator[LabeledBox]:
    """The boxes of one JSON object; [] if it has none of BOX_KEYS and not the four keys of two corners."""
    fields = {key.strip().lower(): value for key, value in found.items()}
    labels = next((texts for key in LABEL_KEYS if (texts := _strings(fields.get(key)))), [None])
    key = next((key for key in BOX_KEYS if key in fields), None)
    if key is not None:
        value = fields[key]
        # Named sides are unambiguous.
        order = "xy" if isinstance(value, dict) else BOX_KEYS[key]
        boxes = _boxes(value)
        if len(labels) == 1:  # of all boxes
            labels = labels * len(boxes)
        for i, box in enumerate(boxes):
            yield LabeledBox(label=labels[i] if len(labels) == len(boxes) else None, box=box, order=order)
    elif (box := _from_sides(fields)) is not None:
        yield LabeledBox(label=labels[0], box=box, order="xy")


def numbers_in(text: str) -> list[float] | None:
    """All words of the text as floats, [] for an empty text; None if a word is not a plain number."""
    numbers = []
    for match in _NUMBER_WORD.finditer(text):
        if not NUMBER.fullmatch(match[0]) or not math.isfinite(float(match[0])):
            return None
        numbers.append(float(match[0]))
    return numbers


def _strings(value: Value) -> list[str | None]:
    """A label, or a list of them; [] if it is neither."""
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(v, str) for v in values) else []


def _boxes(value: Value) -> list[list[float] | None]:
    """One box, or several in a list; None if the value is not a box."""
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        [value] = value
    if isinstance(value, str):
        numbers = numbers_in(value) or []
        return [numbers[i : i + 4] for i in range(0, len(numbers), 4)] if numbers and len(numbers) % 4 == 0 else [None]
    one = _box(value)
    several = isinstance(value, list) and all(isinstance(v, list | dict) and len(v) >= 4 for v in value)
    return [_box(v) for v in value] if one is None and several and value else [one]


def _box(value: Value) -> list[float] | None:
    """Four numbers, two pairs of them, or named sides."""
    if isinstance(value, dict):
        return _from_sides({key.strip().lower(): side for key, side in value.items()})
    if not isinstance(value, list):
        return None
    if len(value) == 2 and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        value = [number for pair in value for number in pair]
    return _four(value)


def _from_sides(fields: dict[str, Value]) -> list[float] | None:
    for keys in _CORNER_KEYS:
        if all(key in fields for key in keys):
            return _four([fields[key] for key in keys])
    for keys in _SIZE_KEYS:
        if all(key in fields for key in keys) and (four := _four([fields[key] for key in keys])):
            x, y, width, height = four
            return [x, y, x + width, y + height]
    return None


def _four(values: list[Value]) -> list[float] | None:
    """The values as floats, numbers in strings too, if there are four and all are finite."""
    words = [float(v) if isinstance(v, str) and NUMBER.fullmatch(v.strip()) else v for v in values]
    is_box = len(words) == 4 and all(isinstance(v, float) and math.isfinite(v) for v in words)
    return words if is_box else None
