"""What grounding models print -> phrases and boxes; tolerant, since it is a model's text, and linear in its length.

| format | looks like | coordinates |
|---|---|---|
| tags | `<ref>a dog</ref><box>(12,40),(800,960)</box>`, also `<|box_start|>` (Qwen2-VL) | answer's |
| json | `{"bbox_2d": [12, 40, 800, 960], "label": "a dog"}`, Qwen2.5-VL and Qwen3-VL | answer's |
| kosmos | `<phrase>a dog</phrase><object><patch_index_0044><patch_index_0863></object>` | cells of a 32 x 32 grid |
| florence | `a dog<loc_52><loc_333><loc_932><loc_774>` | 1000 bins a side |
| plain | `a dog (12, 40, 800, 960)`, also with square brackets | answer's |

The answer's coordinates are thousandths of the image (Qwen-VL, Qwen2-VL, Qwen3-VL, InternVL) unless the caller says
that they are pixels (Qwen2.5-VL, of the image after its own resizing). Always (x1, y1, x2, y2).
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from kaleido_jax.errors import user_error
from kaleido_jax.latents.geometry import round_box
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.validity import MAX_COORDINATE, LatentsError, clean_phrase

MAX_PHRASE = 400  # characters; what is longer names no object
KOSMOS_CELLS = 32  # a side
FLORENCE_BINS = 1000  # a side

_TAG = re.compile(r"<(/?)(ref|box|quad)>|<\|(?:object_)?(ref|box|quad)_(start|end)\|>")
_KOSMOS_TAG = re.compile(r"<(/?)(phrase|object)>|<patch_index_([0-9]{1,6})>", re.ASCII)
_LOC_RUN = re.compile(r"(?:<loc_[0-9]{1,6}>\s*+)++", re.ASCII)
_LOC = re.compile(r"<loc_([0-9]{1,6})>", re.ASCII)
_ANY_TAG = re.compile(r"<[^<>]{0,40}>")
_BRACKETS = re.compile(r"[(\[]([^()\[\]]*+)[)\]]")
_NUMBER_WORD = re.compile(r"[^\s,;()\[\]]++")
_NUMBER = re.compile(r"[+-]?[0-9]{1,12}(?:\.[0-9]{0,20})?", re.ASCII)
_NUMBER_START = re.compile(r"(?<![\w.])[+-]?[0-9]", re.ASCII)
_JSON_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*+"?|[{}]')
_TRAILING_COMMA = re.compile(r",(\s*+[\]}])")
_LIST_MARK = re.compile(r"\s*+(?:[-*\u2022]|[0-9]{1,3}[.)])\s++")
# As floats, because the digits of an int are limited and those of a float are not.
_JSON = json.JSONDecoder(parse_int=float)
_LABEL_KEYS = ("label", "text_content")  # Qwen's for objects and for written text
_MAX_JSON_LISTS = 64  # of one object; more than any answer has, and too few to exhaust the parser's stack


@dataclass(frozen=True, kw_only=True)
class FoundObject:
    """A phrase, clean, and its box (x1, y1, x2, y2): floats 0..1000 of the image the model saw, x1 < x2, y1 < y2."""

    phrase: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one answer holds."""

    format: str | None  # a key of FORMATS; None if it looks like none of them
    objects: tuple[FoundObject, ...]  # in the answer's order
    remarks: tuple[str, ...]  # what was mended or left out, a kind each: "boxes beyond the image, clipped: 3"

    def boxes(self) -> tuple[Box, ...]:
        """The objects as bbox latents, if the image the model saw was the square crop."""
        return tuple(Box(phrase=found.phrase, box=round_box(found.box)) for found in self.objects)


def read(answer: str, *, format: str | None = None, seen_px: tuple[int, int] | None = None) -> Reading:
    """Reads any string; what is no box is left out with a remark.

    Args:
      answer: the model's whole text, of any length.
      format: a key of FORMATS; None recognizes it.
      seen_px: (width, height) of the image as the model saw it, for models that answer in pixels; None for
        thousandths. Kosmos-2 and Florence-2 do without.

    Raises:
      UserError: unknown format, or a size that is not positive. Never for the answer.
    """
    if format is not None and format not in FORMATS:
        raise user_error(f"format {format!r}", f"one of {', '.join(FORMATS)}", "correct the name")
    if seen_px is not None and not min(seen_px) > 0:
        raise user_error(f"an image of {seen_px[0]} x {seen_px[1]} px", "a size above 0", "correct seen_px")
    format = format or recognize(answer)
    collected = _Collector(seen_px)
    if format is not None:
        FORMATS[format](answer, collected)
    return Reading(format=format, objects=tuple(collected.objects), remarks=collected.remarks())


def recognize(answer: str) -> str | None:
    """Which format an answer is in, by its marks; None if it has no box that could be read."""
    for mark, format in _MARKS:
        if mark in answer:
            return format
    # Braces tell of JSON with other keys, whose boxes may be of another order.
    has_box = "{" not in answer and any(len(_numbers(match[1]) or ()) == 4 for match in _BRACKETS.finditer(answer))
    return "plain" if has_box else None


# ----------------------------------------------------------------------------------------------- formats
def _read_tags(answer: str, collected: "_Collector") -> None:
    phrase, opened, start = None, None, 0  # opened: the tag whose content runs from start
    for match in _TAG.finditer(answer):
        name, closes = match[2] or match[3], match[1] == "/" or match[4] == "end"
        if opened == "box":
            # A box that another tag ends is still whole.
            collected.add_numbers(phrase, answer[start : match.start()])
        elif opened == "quad":
            collected.remark("quadrangles, left out")
        elif opened == "ref" and closes and name == "ref":
            phrase = collected.clean(answer[start : match.start()])
        opened, start = (None, 0) if closes else (name, match.end())
        if opened == "ref":
            phrase = None
    if opened in ("box", "quad"):
        collected.remark("boxes cut off by the end of the answer, left out")


def _read_json(answer: str, collected: "_Collector") -> None:
    for text in _json_objects(answer, collected):
        if "bbox_2d" not in text:
            continue
        value = _load_json(text)
        if value is None:
            collected.remark("objects that are no JSON, left out")
        elif "bbox_2d" in value:  # else the mark stood in some text
            label = next((value[key] for key in _LABEL_KEYS if isinstance(value.get(key), str)), None)
            phrase = None if label is None else collected.clean(label)
            for box in _boxes_of_json(value["bbox_2d"]):
                collected.add(phrase, box)


def _read_kosmos(answer: str, collected: "_Collector") -> None:
    phrase, opened, start, patches = None, None, 0, []
    for match in _KOSMOS_TAG.finditer(answer):
        closing, name, patch = match.groups()
        if patch is not None:
            patches.append(int(patch))
        elif closing:
            if name == "phrase" and opened == "phrase":
                phrase = collected.clean(answer[start : match.start()])
            elif name == "object" and opened == "object":
                collected.add_pairs(phrase, patches)
                phrase = None
            opened = None
        else:
            opened, start, patches = name, match.end(), []
            phrase = phrase if name == "object" else None
    if opened == "object":
        collected.remark("boxes cut off by the end of the answer, left out")


def _read_florence(answer: str, collected: "_Collector") -> None:
    start = 0
    for match in _LOC_RUN.finditer(answer):
        phrase = collected.clean(_ANY_TAG.sub(" ", answer[start : match.start()]).strip(" ,.;:\n"))
        # The middle of the bin, as the model's own post-processing has it.
        places = [(int(k) + 0.5) * (MAX_COORDINATE / FLORENCE_BINS) for k in _LOC.findall(match[0])]
        whole = len(places) // 4 * 4
        for i in range(0, whole, 4):
            collected.add(phrase, places[i : i + 4], thousandths=True)
        if whole != len(places):
            collected.remark("boxes without four numbers, left out")
        start = match.end()


def _read_plain(answer: str, collected: "_Collector") -> None:
    start = 0
    for match in _BRACKETS.finditer(answer):
        numbers = _numbers(match[1])
        if numbers is None and len(_NUMBER_START.findall(match[1])) < 2:
            continue  # "(brown)" is part of a phrase, "(12, nan, 3, 4)" is none
        if numbers is not None and len(numbers) == 4:
            collected.add(collected.clean(_last_line(answer[start : match.start()])), numbers)
        else:
            collected.remark("boxes without four numbers, left out")
        start = match.end()


FORMATS = {
    "tags": _read_tags,
    "json": _read_json,
    "kosmos": _read_kosmos,
    "florence": _read_florence,
    "plain": _read_plain,
}
_MARKS = (
    ("<patch_index_", "kosmos"),
    ("<loc_", "florence"),
    ("<box>", "tags"),
    ("<|box_start|>", "tags"),
    ("bbox_2d", "json"),
)


# ----------------------------------------------------------------------------------------------- collecting
class _Collector:
    """Checks and counts what the formats' readers find."""

    def __init__(self, seen_px: tuple[int, int] | None):
        self.objects: list[FoundObject] = []
        self._counts: Counter[str] = Counter()
        self._scale = (1.0, 1.0) if seen_px is None else tuple(MAX_COORDINATE / side for side in seen_px)

    def remark(self, kind: str) -> None:
        self._counts[kind] += 1

    def remarks(self) -> tuple[str, ...]:
        return tuple(f"{kind}: {count}" for kind, count in sorted(self._counts.items()))

    def clean(self, phrase: str) -> str | None:
        """The phrase as latents hold it; None if it has no readable character or is too long."""
        if len(phrase) > MAX_PHRASE:
            self.remark(f"phrases of more than {MAX_PHRASE} characters, left out")
            return None
        try:
            return clean_phrase(phrase)
        except LatentsError:
            return None

    def add_numbers(self, phrase: str | None, text: str) -> None:
        numbers = _numbers(text)
        if not numbers or len(numbers) % 4:
            self.remark("boxes without four numbers, left out")
            return
        for i in range(0, len(numbers), 4):
            self.add(phrase, numbers[i : i + 4])

    def add_pairs(self, phrase: str | None, patches: list[int]) -> None:
        if not patches or len(patches) % 2 or max(patches) >= KOSMOS_CELLS**2:
            self.remark("boxes without two cells of the grid, left out")
            return
        for i in range(0, len(patches), 2):
            self.add(phrase, _cells_to_box(patches[i], patches[i + 1]), thousandths=True)

    def add(self, phrase: str | None, box: list[float] | None, thousandths: bool = False) -> None:
        """One box; `thousandths` if its numbers are those already, whatever the answer's are."""
        if box is None:
            self.remark("boxes without four numbers, left out")
            return
        if phrase is None:
            self.remark("boxes without a phrase, left out")
            return
        scale = (1.0, 1.0) if thousandths else self._scale
        ordered, is_swapped = _order(box)
        scaled = [value * scale[i % 2] for i, value in enumerate(ordered)]
        clipped = [min(max(value, 0.0), float(MAX_COORDINATE)) for value in scaled]
        x1, y1, x2, y2 = clipped
        if not (x1 < x2 and y1 < y2):
            self.remark("boxes without an area inside the image, left out")
            return
        if is_swapped:
            self.remark("boxes with swapped corners, put in order")
        if clipped != scaled:
            self.remark("boxes beyond the image, clipped")
        self.objects.append(FoundObject(phrase=phrase, box=(x1, y1, x2, y2)))


def _order(box):
    x1, y1, x2, y2 = box
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], x1 > x2 or y1 > y2


def _numbers(text):
    """All words of the text as floats; None if one is no plain number, [] if there is none."""
    numbers = []
    for match in _NUMBER_WORD.finditer(text):
        if not _NUMBER.fullmatch(match[0]):
            return None
        numbers.append(float(match[0]))
    return numbers


def _last_line(text):
    """The phrase before a box: the last line that says something, without list mark and joining punctuation."""
    line = text.strip(" \t\r\n,.;:").rpartition("\n")[2]
    mark = _LIST_MARK.match(line)
    return line[mark.end() if mark else 0 :].strip(" ,.;:*\"'`")


def _cells_to_box(first, last):
    """Kosmos-2's: the middles of the corner cells, or their outer edges where they share a row or column."""
    (y1, x1), (y2, x2) = divmod(first, KOSMOS_CELLS), divmod(last, KOSMOS_CELLS)
    (x1, y1, x2, y2), _ = _order((x1, y1, x2, y2))
    low, high = (0, 1) if x1 == x2 or y1 == y2 else (0.5, 0.5)
    return [v * (MAX_COORDINATE / KOSMOS_CELLS) for v in (x1 + low, y1 + low, x2 + high, y2 + high)]


# ----------------------------------------------------------------------------------------------- JSON
def _json_objects(answer: str, collected: _Collector) -> Iterator[str]:
    """The innermost {...} of the answer, whatever stands around them, in one pass."""
    start = answer.find("{")
    position = start + 1
    while start >= 0:
        match = _JSON_TOKEN.search(answer, position)
        if match is None:
            collected.remark("objects cut off by the end of the answer, left out")
            return
        position = match.end()
        if match[0] == "{":
            start = match.start()
        elif match[0] == "}":
            yield answer[start:position]
            # Outside objects quotes mean nothing: prose may hold a stray one.
            start = answer.find("{", position)
            position = start + 1


def _load_json(text):
    if text.count("[") > _MAX_JSON_LISTS:
        return None
    for attempt in (text, _TRAILING_COMMA.sub(r"\1", text)):
        try:
            return _JSON.decode(attempt)
        except ValueError:
            continue
    return None


def _boxes_of_json(value):
    nested = isinstance(value, list) and value and all(isinstance(v, list) for v in value)
    for box in value if nested else [value]:
        is_box = isinstance(box, list) and len(box) == 4 and all(type(v) is float and math.isfinite(v) for v in box)
        yield box if is_box else None
