"""The latents z as a person reads them: text, boxes, blobs and vokens of one image; what makes them valid.

Coordinates are integers 0..1000 on the square training crop, x to the right and y down.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kaleido_jax.errors import UserError

SEGMENTS = ("text", "bbox", "blob", "voken")  # the order inside z (paper, appendix A)
MAX_COORDINATE = 1000
HALF_TURN = 180  # degrees; an ellipse looks the same after it

# "|" parts the segments. U+2581 is how sentencepiece writes a space, so it would come back as one.
_FORBIDDEN_IN_TEXT = "|\u2581"
# Parentheses open and close the numbers of a box or blob.
_FORBIDDEN_IN_PHRASE = _FORBIDDEN_IN_TEXT + "()"


class LatentsError(UserError):
    """Latents that are not valid, or a string or token sequence that holds none."""


def latents_error(found: str, expected: str, do: str) -> LatentsError:
    """A LatentsError in the house's form, kept to one line whatever the user's text holds."""
    return LatentsError(" ".join(f"{found}; expected {expected}; {do}".split()))


@dataclass(frozen=True, kw_only=True)
class Box:
    """One object's box: phrase and (x1, y1, x2, y2), x1 < x2, y1 < y2, each 0..1000."""

    phrase: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Blob:
    """One object's ellipse: phrase and (xc, yc, r_major, r_minor, theta).

    Center 0..1000, semi-axes 1..1000, r_major >= r_minor, theta in degrees [0, 180), +x towards +y (down).
    """

    phrase: str
    blob: tuple[int, int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Latents:
    """The z of one image; a segment that is None was not made, an empty tuple means nothing was found."""

    text: str | None = None
    bbox: tuple[Box, ...] | None = None
    blob: tuple[Blob, ...] | None = None
    voken: tuple[int, ...] | None = None

    def to_json(self) -> dict:
        """The JSON form (plain dicts, lists, ints and strings); absent segments are left out."""
        out = {}
        if self.text is not None:
            out["text"] = self.text
        if self.bbox is not None:
            out["bbox"] = [{"phrase": b.phrase, "box": list(b.box)} for b in self.bbox]
        if self.blob is not None:
            out["blob"] = [{"phrase": b.phrase, "blob": list(b.blob)} for b in self.blob]
        if self.voken is not None:
            out["voken"] = list(self.voken)
        return out

    @staticmethod
    def from_json(value: Mapping) -> "Latents":
        """Reads and validates the JSON form.

        Raises:
          LatentsError: unknown key, wrong type or latents that are not valid.
        """
        _check_keys(value, SEGMENTS, "latents")
        boxes = _read_objects(value, "bbox", "box", Box)
        blobs = _read_objects(value, "blob", "blob", Blob)
        voken = value.get("voken")
        z = Latents(text=value.get("text"), bbox=boxes, blob=blobs, voken=_as_tuple(voken, "voken"))
        return validate(z)


def segments_of(z: Latents) -> tuple[str, ...]:
    """The segments that z holds, in order."""
    return tuple(s for s in SEGMENTS if getattr(z, s) is not None)


def select(z: Latents, segments: Sequence[str]) -> Latents:
    """The given segments of z, without the others.

    Raises:
      LatentsError: unknown or disordered segment names, or z lacks one of them.
    """
    check_segments(segments)
    for segment in segments:
        if getattr(z, segment) is None:
            have = ", ".join(segments_of(z)) or "no segment"
            raise latents_error(
                f"latents without {segment}", f"all of {', '.join(segments)}", f"add it; these have {have}"
            )
    return Latents(**{s: getattr(z, s) for s in segments})


def check_segments(segments: Sequence[str]) -> tuple[str, ...]:
    """The segments as a tuple, if they are known, distinct and in the order of SEGMENTS.

    Raises:
      LatentsError: otherwise.
    """
    for segment in segments:
        if segment not in SEGMENTS:
            raise latents_error(f"segment {segment!r}", f"one of {', '.join(SEGMENTS)}", "correct the name")
    in_order = tuple(s for s in SEGMENTS if s in segments)
    if tuple(segments) != in_order:
        raise latents_error(f"segments {tuple(segments)}", f"{in_order}", "name each once, in this order")
    return in_order


# --------------------------------------------------------------------------------------------- validity
def validate(z: Latents) -> Latents:
    """Returns z unchanged if parse(serialize(z)) == z is promised for it.

    Text and phrases: not empty, printable, single spaces only, no "|", no U+2581; phrases no parentheses.

    Raises:
      LatentsError: naming the segment, what was found and how to mend it.
    """
    if z.text is not None:
        _check_words(z.text, _FORBIDDEN_IN_TEXT, "text", "clean_text")
    for segment, field, check in (("bbox", "box", check_box), ("blob", "blob", check_blob)):
        for item in getattr(z, segment) or ():
            _check_words(item.phrase, _FORBIDDEN_IN_PHRASE, f"phrase of {segment}", "clean_phrase")
            check(getattr(item, field))
    if z.voken is not None:
        _check_voken(z.voken)
    return z


def check_box(box: Sequence[int]) -> None:
    """Raises LatentsError unless box is (x1, y1, x2, y2) with x1 < x2 and y1 < y2, ints 0..1000."""
    _check_ints(box, 4, "box")
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= MAX_COORDINATE and 0 <= y1 < y2 <= MAX_COORDINATE):
        raise latents_error(f"box {tuple(box)}", "x1 < x2 and y1 < y2, each 0..1000", "correct the corners")


def check_blob(blob: Sequence[int]) -> None:
    """Raises LatentsError unless blob is (xc, yc, r_major, r_minor, theta) in the ranges of Blob."""
    _check_ints(blob, 5, "blob")
    xc, yc, major, minor, theta = blob
    inside = 0 <= xc <= MAX_COORDINATE and 0 <= yc <= MAX_COORDINATE
    if not (inside and 1 <= minor <= major <= MAX_COORDINATE and 0 <= theta < HALF_TURN):
        raise latents_error(
            f"blob {tuple(blob)}",
            "center 0..1000, 1 <= r_minor <= r_major <= 1000, 0 <= theta < 180",
            "correct the numbers",
        )


def clean_text(string: str) -> str:
    """The nearest valid text: runs of space and unprintable characters become one space, "|" becomes "/".

    Raises:
      LatentsError: nothing is left.
    """
    return _clean(string, {"|": "/", "\u2581": " "}, "text")


def clean_phrase(string: str) -> str:
    """As clean_text, and parentheses become spaces.

    Raises:
      LatentsError: nothing is left.
    """
    return _clean(string, {"|": "/", "\u2581": " ", "(": " ", ")": " "}, "phrase")


def _clean(string, replace, name):
    swapped = (replace.get(ch, ch) for ch in string)
    cleaned = " ".join("".join(ch if ch.isprintable() else " " for ch in swapped).split())
    if not cleaned:
        raise latents_error(f"{name} {string!r} without a readable character", "words", "write some")
    return cleaned


def _check_words(string, forbidden, name, cleaner):
    if not isinstance(string, str):
        raise latents_error(f"{name} of type {type(string).__name__}", "a string", "quote it")
    if not string:
        raise latents_error(f"empty {name}", "at least one word", "write some or leave the segment out")
    bad = sorted({ch for ch in string if ch in forbidden or not ch.isprintable()})
    if bad:
        raise latents_error(f"{name} with {', '.join(map(ascii, bad))}", "none of these", f"use {cleaner}()")
    if string != " ".join(string.split()):
        raise latents_error(f"{name} {string!r}", "single spaces, none at the ends", f"use {cleaner}()")


def _check_ints(values, count, name):
    if not isinstance(values, tuple) or len(values) != count or not all(type(v) is int for v in values):
        raise latents_error(f"{name} {values!r}", f"{count} whole numbers", "correct it")


def _check_voken(voken):
    if not isinstance(voken, tuple) or not voken or not all(type(v) is int and v >= 0 for v in voken):
        raise latents_error(f"voken {voken!r}", "at least one whole number, none negative", "correct it")


# ----------------------------------------------------------------------------------------------- reading
def _check_keys(value, known, name):
    if not isinstance(value, Mapping):
        raise latents_error(f"{name} of type {type(value).__name__}", "a JSON object", "write {...}")
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            do = f"did you mean {near[0]!r}?" if near else "remove it"
            raise latents_error(f"{name} with key {key!r}", f"keys from {', '.join(known)}", do)


def _as_tuple(value, name):
    if value is not None and not isinstance(value, list | tuple):
        raise latents_error(f"{name} of type {type(value).__name__}", "a list", "write [...]")
    return None if value is None else tuple(value)


def _read_objects(value, segment, field, kind):
    items = _as_tuple(value.get(segment), segment)
    if items is None:
        return None
    for item in items:
        _check_keys(item, tuple(f.name for f in dataclasses.fields(kind)), f"an entry of {segment}")
        if len(item) != 2:
            raise latents_error(f"an entry of {segment} with {len(item)} keys", f"phrase and {field}", "add the other")
    return tuple(kind(phrase=item["phrase"], **{field: _as_tuple(item[field], field)}) for item in items)
