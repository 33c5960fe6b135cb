"""Grounding formats: the phrases and boxes in what vision-language models print, read tolerantly and in linear time.

| format | looks like | coordinates |
|---|---|---|
| tags | `<ref>a dog</ref><box>(12,40),(800,960)</box>`; `<|box_start|>` (Qwen2-VL), `<|det|>` (DeepSeek) | answer's |
| json | `{"bbox_2d": [12, 40, 800, 960], "label": "a dog"}`, Qwen2.5-VL and Qwen3-VL; other keys see below | answer's |
| kosmos | `<phrase>a dog</phrase><object><patch_index_0044><patch_index_0863></object>` | cells of a 32 x 32 grid |
| florence | `a dog<loc_52><loc_333><loc_932><loc_774>` | 1000 bins a side |
| plain | `a dog (12, 40, 800, 960)`, also with square brackets | answer's |

The answer's coordinates are thousandths of the image (Qwen-VL, Qwen2-VL, Qwen3-VL, InternVL) unless the caller says
that they are pixels (Qwen2.5-VL, of the image after its own resizing). Fractions, as LLaVA has them, are recognized.
The order is (x1, y1, x2, y2), except under Gemini's key `box_2d`, (y1, x1, y2, x2). A box under `bbox`, `box` or
`bounding_box` is taken in the order that the prompt asks for; one whose corners would then be swapped may be
(x, y, width, height) and is left out.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kaleido_jax.annotate.vlm.json_boxes import LABEL_KEYS, boxes_of, numbers_in
from kaleido_jax.annotate.vlm.lenient_json import read_objects
from kaleido_jax.errors import user_error
from kaleido_jax.latents.geometry import round_box
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.validity import MAX_COORDINATE, LatentsError, clean_phrase

MAX_PHRASE = 400  # characters; what is longer names no object
KOSMOS_CELLS = 32  # per side
FLORENCE_BINS = 1000  # per side

_TAG = re.compile(r"<(/?)(ref|box|quad)>|<\|(?:object_)?(ref|box|quad)_(start|end)\|>|<\|(/?)(ref|det)\|>")
_KOSMOS_TAG = re.compile(r"<(/?)(phrase|object)>|<patch_index_([0-9]{1,6})>", re.ASCII)
_LOC_RUN = re.compile(r"(?:<loc_[0-9]{1,6}>\s*+)++", re.ASCII)
_LOC = re.compile(r"<loc_([0-9]{1,6})>", re.ASCII)
_ANY_TAG = re.compile(r"<[^<>]{0,40}>")
_BRACKETS = re.compile(
    r"[(\[\uff08\uff3b\u3010]([^()\[\]\uff08\uff09\uff3b\uff3d\u3010\u3011]*+)[)\]\uff09\uff3d\u3011]"
)
_NUMBER_START = re.compile(r"(?<![\w.])[+-]?[0-9]", re.ASCII)
_LIST_MARK = re.compile(r"\s*+(?:[-*\u2022]|[0-9]{1,3}[.)])\s++")
# Between a phrase and its box, before a phrase in a list, and around either: none of them is part of it.
_JOINTS = " ,.;:|*\"'`=~>-\u2013\u2014\u2192\u21d2\uff0c\u3002\uff1a"
_TITLE_MARK = re.compile(r"#{1,6}\s++")
# Of the box before, on the same line.
_SCORE = re.compile(
    r"[\s,;(\[]*+(?:score|conf(?:idence)?|prob(?:ability)?)\b\s*+[:=]?\s*+[0-9.]++\s*+%?[)\];,.\s]*+", re.IGNORECASE
)
_BOX_WORD = r"(?:bounding[ _-]?box(?:es)?|bbox(?:_2d)?)(?: coordinates)?"
_BOX_BEFORE = re.compile(rf"(?:the )?{_BOX_WORD}(?: (?:of|for|around)\b|(?=\s*+[:=]|\Z))", re.IGNORECASE)
_BOX_AFTER = re.compile(rf"(?:\A|(?<=[\s(:,*-])){_BOX_WORD}(?: is| are)?(?: at)?\Z", re.IGNORECASE)
_IS = re.compile(r" (?:is|are)(?: at)?\Z", re.IGNORECASE)
_OTHER_KEY = re.compile(
    r"\b(?:box_2d|bbox|box|bounding_?box|x1|x_?min|left)[\"'\u201d\u2019]?+\s*+[:\uff1a]", re.IGNORECASE
)
_LABEL_KEY = re.compile(rf"\b(?:{'|'.join(LABEL_KEYS)})[\"'\u201d\u2019]?+\s*+[:\uff1a]", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class FoundObject:
    """A phrase, clean, and its box (x1, y1, x2, y2): floats 0..1000 of the image the model saw, x1 < x2, y1 < y2."""

    phrase: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one answer holds."""

    format: str | None  # a key of FORMATS; None if it resembles none of them
    objects: tuple[FoundObject, ...]  # in the answer's order
    remarks: tuple[str, ...]  # what was corrected or left out, by kind: "boxes beyond the image, clipped: 3"

    def boxes(self) -> tuple[Box, ...]:
        """The objects as bbox latents, if the image the model saw was the square crop."""
        return tuple(Box(phrase=found.phrase, box=round_box(found.box)) for found in self.objects)


def read(answer: str, *, seen_px: tuple[int, int] | None = None) -> Reading:
    """Reads any string in the format that it resembles; anything that is not a box is left out with a remark.

    Args:
      answer: the model's whole text, of any length.
      seen_px: (width, height) of the image as the model saw it, for models that answer in pixels; None for
        thousandths. Ignored for Kosmos-2 and Florence-2.

    Raises:
      UserError: a size is not positive. Never because of the answer.
    """
    if seen_px is not None and not min(seen_px) > 0:
        raise user_error(f"an image of {seen_px[0]} x {seen_px[1]} px", "a size above 0", "correct seen_px")
    format, collector = _recognize(answer), Collector(seen_px)
    if format is not None:
        FORMATS[format](answer, collector)
    return Reading(format=format, objects=tuple(collector.objects), remarks=collector.remarks())


def _recognize(answer: str) -> str | None:
    """The answer's format, by its marks; None if it has no box that could be read."""
    for mark, format in _MARKS:
        if mark in answer:
            return format
    if "{" in answer or "\uff5b" in answer:
        # Braces with other keys are JSON of boxes if something is labeled there; else it may be anything.
        return "json" if _OTHER_KEY.search(answer) and _LABEL_KEY.search(answer) else None
    has_box = any(len(numbers_in(match[1]) or ()) == 4 for match in _BRACKETS.finditer(answer))
    return "plain" if has_box else None


# ----------------------------------------------------------------------------------------------- formats
def _read_tags(answer: str, collector: "Collector") -> None:
    phrase, opened, start = None, None, 0  # opened: the tag whose content runs from start
    for match in _TAG.finditer(answer):
        name, closes = match[2] or match[3] or match[6], "/" in (match[1], match[5]) or match[4] == "end"
        name = "box" if name == "det" else name
        if opened == "box":
            # A box that another tag ends is still whole.
            collector.add_numbers(phrase, answer[start : match.start()])
        elif opened == "quad":
            collector.remark("quadrangles, left out")
        elif opened == "ref" and closes and name == "ref":
            phrase = collector.clean(answer[start : match.start()])
        opened, start = (None, 0) if closes else (name, match.end())
        if opened == "ref":
            phrase = None
    if opened in ("box", "quad"):
        collector.remark("boxes cut off by the end of the answer, left out")


def _read_json(answer: str, collector: "Collector") -> None:
    for found in read_objects(answer, collector.remark):
        for labeled in boxes_of(found):
            phrase = None if labeled.label is None else collector.clean(labeled.label)
            box = labeled.box
            if box is not None and labeled.order == "yx":
                collector.remark("boxes under box_2d, read as (y1, x1, y2, x2)")
                box = [box[1], box[0], box[3], box[2]]
            elif box is not None and labeled.order == "unknown":
                if box[0] > box[2] or box[1] > box[3]:
                    collector.remark("boxes of unknown order, left out")
                    continue
                collector.remark("boxes under another key than bbox_2d, read as (x1, y1, x2, y2)")
            collector.add(phrase, box)


def _read_kosmos(answer: str, collector: "Collector") -> None:
    phrase, opened, start, patches = None, None, 0, []
    for match in _KOSMOS_TAG.finditer(answer):
        closing, name, patch = match.groups()
        if patch is not None:
            patches.append(int(patch))
        elif closing:
            if name == "phrase" and opened == "phrase":
                phrase = collector.clean(answer[start : match.start()])
            elif name == "object" and opened == "object":
                collector.add_pairs(phrase, patches)
                phrase = None
            opened = None
        else:
            opened, start, patches = name, match.end(), []
            phrase = phrase if name == "object" else None
    if opened == "object":
        collector.remark("boxes cut off by the end of the answer, left out")


def _read_florence(answer: str, collector: "Collector") -> None:
    start = 0
    for match in _LOC_RUN.finditer(answer):
        phrase = collector.clean(_ANY_TAG.sub(" ", answer[start : match.start()]).strip(" ,.;:\n"))
        # The middle of the bin, as the model's own post-processing has it.
        bins = [(int(k) + 0.5) * (MAX_COORDINATE / FLORENCE_BINS) for k in _LOC.findall(match[0])]
        whole = len(bins) // 4 * 4
        for i in range(0, whole, 4):
            collector.add(phrase, bins[i : i + 4], thousandths=True)
        if whole != len(bins):
            collector.remark("boxes without four numbers, left out")
        start = match.end()


def _read_plain(answer: str, collector: "Collector") -> None:
    start = 0
    for match in _BRACKETS.finditer(answer):
        numbers = numbers_in(match[1])
        if numbers is None and len(_NUMBER_START.findall(match[1])) < 2:
            continue  # "(brown)" is part of a phrase, "(12, nan, 3, 4)" is not
        if numbers is not None and len(numbers) == 4:
            collector.add(collector.clean(_last_line(answer[start : match.start()])), numbers)
        else:
            collector.remark("boxes without four numbers, left out")
        start = match.end()


@runtime_checkable
class FormatReader(Protocol):
    """Reads answers of one format."""

    def __call__(self, answer: str, collector: "Collector") -> None:
        """Adds the boxes of any string to the collector, with remarks about everything else."""
        ...


FORMATS: dict[str, FormatReader] = {
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
    ("<|det|>", "tags"),
    ("bbox_2d", "json"),
)


# ----------------------------------------------------------------------------------------------- collecting
class Collector:
    """Checks and counts what the formats' readers find."""

    def __init__(self, seen_px: tuple[int, int] | None) -> None:
        self.objects: list[FoundObject] = []
        self._counts: Counter[str] = Counter()
        self._scale = (1.0, 1.0) if seen_px is None else tuple(MAX_COORDINATE / side for side in seen_px)

    def remark(self, kind: str) -> None:
        """Counts one thing that was corrected or left out."""
        self._counts[kind] += 1

    def remarks(self) -> tuple[str, ...]:
        """The kinds with their counts."""
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
        """The boxes of a tag's content, one for every four numbers."""
        numbers = numbers_in(text)
        if not numbers or len(numbers) % 4:
            self.remark("boxes without four numbers, left out")
            return
        for i in range(0, len(numbers), 4):
            self.add(phrase, numbers[i : i + 4])

    def add_pairs(self, phrase: str | None, patches: list[int]) -> None:
        """The boxes of Kosmos-2's patches, one for every two cells of the grid."""
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
        largest = max(map(abs, box))
        if not thousandths and (0 < largest <= 1 or (largest < 2 and any(value % 1 for value in box))):
            # Within one or two pixels, or thousandths, nobody finds an object; 1.001 is the edge, missed.
            self.remark("boxes in fractions of the image, scaled")
            scale = (MAX_COORDINATE, MAX_COORDINATE)
        ordered = _ordered(box)
        scaled = [value * scale[i % 2] for i, value in enumerate(ordered)]
        clipped = [min(max(value, 0.0), float(MAX_COORDINATE)) for value in scaled]
        x1, y1, x2, y2 = clipped
        if not (x1 < x2 and y1 < y2):
            self.remark("boxes without an area inside the image, left out")
            return
        if ordered != list(box):
            self.remark("boxes with swapped corners, put in order")
        if clipped != scaled:
            self.remark("boxes beyond the image, clipped")
        self.objects.append(FoundObject(phrase=phrase, box=(x1, y1, x2, y2)))


def _ordered(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]


def _last_line(text: str) -> str:
    """The phrase before a box: the last line that says something, without what joins or introduces the two."""
    for line in reversed(text.split("\n")):
        if phrase := _bare_phrase(line):
            return phrase
    return ""


def _bare_phrase(line: str) -> str:
    line = line.strip("([)] \t\r" + _JOINTS.replace("-", "").replace("*", ""))
    if len(line) > MAX_PHRASE:  # it names no object
        return line
    while score := _SCORE.match(line):
        line = line[score.end() :]
    for mark in (_TITLE_MARK, _LIST_MARK):
        line = line[found.end() :] if (found := mark.match(line)) else line
    line = line.strip(_JOINTS)
    if before := _BOX_BEFORE.match(line):
        line = _IS.sub("", line[before.end() :])
    return _BOX_AFTER.sub("", line.strip(_JOINTS)).rstrip("(").strip(_JOINTS)


def _cells_to_box(first: int, last: int) -> list[float]:
    """Kosmos-2's: the middles of the corner cells, or their outer edges where they share a row or column."""
    (y1, x1), (y2, x2) = divmod(first, KOSMOS_CELLS), divmod(last, KOSMOS_CELLS)
    x1, y1, x2, y2 = _ordered([float(x1), float(y1), float(x2), float(y2)])
    low, high = (0, 1) if x1 == x2 or y1 == y2 else (0.5, 0.5)
    return [v * (MAX_COORDINATE / KOSMOS_CELLS) for v in (x1 + low, y1 + low, x2 + high, y2 + high)]
