"""Addresses of values inside z, "bbox.0.phrase", and edits by them, as on a command line."""

import re
import sys
from typing import Any

from kaleido_jax.errors import nearest
from kaleido_jax.latents import segments as registry
from kaleido_jax.latents.segments.base import Segment
from kaleido_jax.latents.segments.objects import ObjectList
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.validity import LatentsError, latents_error, single_spaced

_NUMBERS = re.compile(r"[\[(]?\s*(-?[0-9]{1,9}(?:\s*,\s*-?[0-9]{1,9})*)\s*,?\s*[\])]?", re.ASCII)
# What people write between objects, "apple (1, 2, 3, 4), pear (5, 6, 7, 8) and plum (1, 2, 3, 4)", and after the last.
_BETWEEN = re.compile(r"\) ?(?:[,;]+ ?)?(?:and )?(?=.)")
_AFTER = re.compile(r"\) ?[,;.]+\Z")
EXAMPLES = "text, bbox, bbox.0, bbox.0.phrase, bbox.0.box, bbox.0.box.2, voken.3"


def assign(z: Latents, address: str, text: str) -> Latents:
    """z with another value at an address; everything but that value stays.

    Args:
      z: latents.
      address: a segment, an entry of it by its number from 0 (the number after the last one adds an entry), a field of
        that entry, or a number in a list; of an address the JSON form of z is the map.
      text: a segment as it is written in z ("red apple (1, 2, 3, 4) pear (5, 6, 7, 8)"), an entry likewise, or of an
        entry the numbers alone, "(1, 2, 3, 4)"; words; numbers with commas. An empty text removes an entry.
        Runs of spaces count as one, and objects may have commas, semicolons or "and" between them.

    Raises:
      LatentsError: there is no such place in z, or the text cannot stand there.
    """
    name, *path = address.split(".")
    segment, values, text = registry.get(name), z.to_json(), single_spaced(text)
    if not path:
        if not text:
            raise latents_error(f"{address} without a value", "one", "write it after '='")
        try:
            read = _read(segment, text)
        except LatentsError:  # vokens as numbers
            if (numbers := _numbers(text)) is None:
                raise
            read = segment.from_json(numbers)
        return _valid(z.replace(**{name: read}), name)
    inner = values.get(name)
    if not isinstance(inner, list | dict):
        raise latents_error(f"no {address} in z", f"an address such as {EXAMPLES}", "correct it")
    for key in path[:-1]:
        inner = _inside(inner, key, address)
    _put(inner, path[-1], text, address, name)
    return _valid(z.replace(**{name: segment.from_json(values[name])}), name)


def _read(segment: Segment, text: str) -> Any:
    """A segment as people type it; what the prior samples is read without such leniency."""
    if isinstance(segment, ObjectList):
        text = _BETWEEN.sub(") ", _AFTER.sub(")", text))
    return segment.read(text)


def _valid(z: Latents, name: str) -> Latents:
    registry.get(name).check(getattr(z, name))
    return z


def _inside(inner: Any, key: str, address: str) -> Any:
    if isinstance(inner, dict) and key in inner:
        return inner[key]
    if isinstance(inner, list) and _index(key) < len(inner):
        return inner[_index(key)]
    raise _no_place(inner, key, address)


def _no_place(inner: Any, key: str, address: str) -> LatentsError:
    if isinstance(inner, dict):
        near = nearest(key, inner)
        return latents_error(
            f"no {key!r} at {address}",
            f"one of {', '.join(inner)}",
            f"did you mean {near!r}?" if near else "correct it",
        )
    if isinstance(inner, list):
        return latents_error(f"no {key!r} at {address}", f"0..{len(inner) - 1}, or {len(inner)} to add", "correct it")
    return latents_error(f"nothing below a value at {address}", f"an address such as {EXAMPLES}", "shorten it")


def _index(key: str) -> int:
    """The number that it is; one that no list has if it is none, or of more digits than Python reads."""
    digits = key.lstrip("0") or key[-1:]
    return int(digits) if key.isdecimal() and len(digits) < len(str(sys.maxsize)) else sys.maxsize


def _put(inner: Any, key: str, text: str, address: str, name: str) -> None:
    """Sets inner[key], of the JSON form."""
    if isinstance(inner, dict):
        old = _inside(inner, key, address)
        inner[key] = text if isinstance(old, str) else _needed(text, address)
        return
    if not isinstance(inner, list) or _index(key) > len(inner):
        raise _no_place(inner, key, address)
    index = _index(key)
    if not text:
        if index == len(inner):
            raise _no_place(inner, key, address)
        del inner[index]
    else:
        inner[index : index + 1] = [_entry(inner, index, text, address, name)]


def _entry(inner: list, index: int, text: str, address: str, name: str) -> Any:
    """The entry that a text means: a number among numbers, or an object; only numbers leave its phrase."""
    numbers = _numbers(text)
    if all(isinstance(one, int) for one in inner) and (inner or numbers):
        numbers = _needed(text, address)
        if len(numbers) != 1:
            raise latents_error(f"{address} = {text[:60]!r}", "one whole number", "correct it")
        return numbers[0]
    if numbers is not None and index < len(inner) and isinstance(inner[index], dict):
        return inner[index] | {field: numbers for field, old in inner[index].items() if isinstance(old, list)}
    segment = registry.get(name)
    read = segment.to_json(_read(segment, text))
    if not isinstance(read, list) or len(read) != 1:
        raise latents_error(f"{address} = {text[:60]!r}", "one entry, e.g. red apple (1, 2, 3, 4)", "correct it")
    return read[0]


def _needed(text: str, address: str) -> list[int]:
    numbers = _numbers(text)
    if numbers is None:
        raise latents_error(f"{address} = {text[:60]!r}", "whole numbers, e.g. (1, 2, 3, 4)", "correct it")
    return numbers


def _numbers(text: str) -> list[int] | None:
    found = _NUMBERS.fullmatch(text.strip())
    return [int(number) for number in found[1].split(",")] if found else None
