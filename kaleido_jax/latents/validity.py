"""Validity of latents: LatentsError, and what words, numbers and JSON may hold in any segment.

Coordinates are integers 0..1000 on the square training crop, x to the right and y down.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kaleido_jax.errors import UserError
from kaleido_jax.runtime.text import JOINERS, without_format

MAX_COORDINATE = 1000
HALF_TURN = 180  # degrees; it maps an ellipse to itself

# "|" separates the segments. sentencepiece writes a space as U+2581, so it would come back as a space.
FORBIDDEN_IN_TEXT = "|\u2581"
# Parentheses open and close the numbers of a box or blob.
FORBIDDEN_IN_PHRASE = FORBIDDEN_IN_TEXT + "()"


class LatentsError(UserError):
    """Invalid latents, or a string or token sequence that cannot be read as latents."""


def latents_error(found: str, expected: str, do: str) -> LatentsError:
    """A LatentsError of found, expected and what to do, on one line whatever the user's text contains."""
    return LatentsError(" ".join(f"{found}; expected {expected}; {do}".split()))


def nearest_multiple(value: int, step: int) -> int:
    """The multiple of a step nearest to a value that is not negative; halves go up."""
    return (value + step // 2) // step * step if step > 1 else value


# ----------------------------------------------------------------------------------------------- words
def single_spaced(string: str) -> str:
    """The string with one space for each run of spaces and unprintable characters, none at the ends.

    Characters that are neither letters nor spaces, as a soft hyphen, are left out without one (`without_format`).
    """
    return " ".join("".join(ch if is_writable(ch) else " " for ch in without_format(string)).split())


def is_writable(character: str) -> bool:
    """Whether words may hold the character, as far as vocabularies have it: printable, or joining others in a word."""
    return character.isprintable() or character in JOINERS


def clean_text(string: str) -> str:
    """The nearest valid text: as single_spaced, and "|" becomes "/".

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


def _clean(string: str, replacements: Mapping[str, str], name: str) -> str:
    cleaned = single_spaced("".join(replacements.get(ch, ch) for ch in string))
    if not cleaned:
        raise latents_error(f"{name} {string!r} without a readable character", "words", "write some")
    return cleaned


def check_words(string: Any, forbidden: str, name: str) -> None:
    """Raises LatentsError unless the words survive writing and reading: printable, single spaces, nothing forbidden.

    `clean_text` and `clean_phrase` make words so. The error names no function: it is read on a page and in a terminal.

    Args:
      string: the words.
      forbidden: characters that the grammar reserves.
      name: of the words, for the error.
    """
    if not isinstance(string, str):
        raise latents_error(f"{name} of type {type(string).__name__}", "a string", "quote it")
    if not string:
        raise latents_error(f"empty {name}", "at least one word", "write some or leave the segment out")
    bad = sorted({ch for ch in string if ch in forbidden or not is_writable(ch)})
    if bad:
        raise latents_error(f"{name} with {', '.join(map(ascii, bad))}", "none of these", "remove them")
    if string != " ".join(string.split()):
        raise latents_error(f"{name} with spaces together or at an end", "single ones inside", "remove the others")


# --------------------------------------------------------------------------------------- numbers, JSON
def plain_numbers(values: Any) -> Any:
    """A list or an array as a tuple, with numpy's integers as ints; anything else is left to the checks."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, list | tuple):
        return values
    return tuple(int(v) if isinstance(v, np.integer) else v for v in values)


def check_ints(values: Any, count: int, name: str) -> None:
    """Raises LatentsError unless the values are a tuple of `count` ints."""
    if not isinstance(values, tuple) or len(values) != count or not all(type(v) is int for v in values):
        raise latents_error(f"{name} {values!r}", f"{count} whole numbers", "correct it")


def check_keys(value: Any, known: Sequence[str], name: str) -> None:
    """Raises LatentsError unless the value is a JSON object with keys from `known`."""
    if not isinstance(value, Mapping):
        raise latents_error(f"{name} of type {type(value).__name__}", "a JSON object", "write {...}")
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            do = f"did you mean {near[0]!r}?" if near else "remove it"
            raise latents_error(f"{name} with key {key!r}", f"keys from {', '.join(known)}", do)


def read_list(value: Any, name: str) -> tuple:
    """A JSON list as a tuple.

    Raises:
      LatentsError: it is not a list.
    """
    if not isinstance(value, list | tuple):
        raise latents_error(f"{name} of type {type(value).__name__}", "a list", "write [...]")
    return tuple(value)
