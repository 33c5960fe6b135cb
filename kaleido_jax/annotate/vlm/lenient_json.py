"""Lenient JSON: a parser for the objects in a model's answer, in any surrounding text.

Beyond JSON it accepts raw line breaks and control characters inside strings, single and typographic quotes, full-width
punctuation, bare words, tuples, comments and trailing commas. An object that is still broken is left out; the objects
around it, inside it and after it are kept. One pass, linear in the length of the text, at any depth.
"""

import re
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

Value = dict[str, Any] | list[Any] | str | float | None  # numbers are floats; true and false are None too

CUT_OFF = "objects cut off by the end of the answer, left out"
BROKEN = "objects that are not JSON, left out"
MENDED = "objects in loose JSON, mended"
REPEATED = "objects with a key that stands twice, the last one kept"

# Possessive quantifiers everywhere: nothing is tried twice, so any text takes linear time.
_START = re.compile(
    r"[{\uff5b](?=\s*+(?:[\"'\u201c-\u201f\u2018-\u201b\uff02\uff07}\uff5d/#]|[A-Za-z_]\w*+\s*+[:\uff1a]))"
)
_SKIP = re.compile(r"(?:\s++|//[^\n]*+|#[^\n]*+|/\*(?:[^*]|\*(?!/))*+(?:\*/)?+)*+")
_WORD = re.compile(r"[^\s,;:=\"{}()\[\]\u201c-\u201f\uff02\uff0c\uff1b\uff1a\uff5b\uff5d\uff08\uff09\uff3b\uff3d]++")
NUMBER = re.compile(r"[+-]?+(?:[0-9]{1,12}+(?:\.[0-9]{0,20}+)?+|\.[0-9]{1,20}+)(?:[eE][+-]?+[0-9]{1,3}+)?+", re.ASCII)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_CONTROL = re.compile(r"[\x00-\x1f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONSTANTS = ("null", "true", "false", "None", "True", "False")
_ASCII_PUNCTUATION = dict(zip("\uff5b\uff5d\uff3b\uff3d\uff08\uff09\uff0c\uff1b\uff1a", "{}[](),;:", strict=True))
_MAX_KEY = 200  # characters

# Opening quote -> the characters that close it. Models mix typographic and typewriter's quotes.
_CLOSING = {'"': '"', "'": "'"}
_CLOSING |= dict.fromkeys("\u201c\u201d\u201e\u201f\uff02", '\u201c\u201d\u201e\u201f\uff02"')
_CLOSING |= dict.fromkeys("\u2018\u2019\u201a\u201b\uff07", "\u2018\u2019\u201a\u201b\uff07'")
_TO_CLOSING = {
    closing: re.compile(rf"[^\\{closing}]*+(?:\\.[^\\{closing}]*+)*+", re.DOTALL) for closing in set(_CLOSING.values())
}


@runtime_checkable
class Remark(Protocol):
    """Counts one thing that was corrected or left out."""

    def __call__(self, kind: str) -> None:
        """`kind` says what, in the plural."""
        ...


def read_objects(text: str, remark: Remark) -> Iterator[dict[str, Value]]:
    """Every complete object of the text, an outer one before those inside it.

    Args:
      text: of any content; objects are found between prose, in fences and in lists.
      remark: called with CUT_OFF, BROKEN, MENDED or REPEATED, once for each such object at top level.
    """
    position, ends = 0, {}
    while match := _START.search(text, position):
        parser = _ObjectParser(text, match.start(), ends)
        failure = parser.run()
        # The innermost open object is the one that failed. Those around it have lost only this part.
        failed = next((c for c in reversed(parser.open) if isinstance(c, dict)), None)
        yield from (found for found in _dicts_in(parser.root) if found is not failed)
        if parser.has_key and failure:
            remark(failure)
        elif parser.mended and not failure:
            remark(MENDED)
        if parser.is_repeated:
            remark(REPEATED)
        position = max(parser.position, match.end())


def _dicts_in(root: Value) -> Iterator[dict[str, Value]]:
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
        if isinstance(value, dict | list):
            inner = list(value.values()) if isinstance(value, dict) else value
            waiting += [item for item in reversed(inner) if isinstance(item, dict | list)]


class _Failure(Exception):
    """The object cannot be read further; args are the remark and the position to continue searching from."""


class _ObjectParser:
    """One object from its opening brace on. Containers are linked into their parents when they open."""

    def __init__(self, text: str, start: int, ends: dict[str, tuple[int, int]]) -> None:
        """`ends` caches where strings end, between the parsers of one text."""
        self.text, self.position, self._ends = text, start + 1, ends
        self.root: dict[str, Value] = {}
        self.open: list[dict[str, Value] | list[Value]] = [self.root]
        self.has_key = False  # otherwise it may be prose in braces
        self.is_repeated = False
        self.mended = text[start] != "{"

    def run(self) -> str | None:
        """Parses to the closing brace, or raises CUT_OFF or BROKEN. `position` is where to continue."""
        after_value = after_comma = False
        try:
            while self.open:
                char = self._next()
                if char in "}])":
                    if isinstance(self.open[-1], dict) != (char == "}"):
                        raise _Failure(BROKEN, self.position)
                    self.open.pop()
                    self.position += 1
                    self.mended |= after_comma
                    after_value, after_comma = True, False
                elif char in ",;":
                    self.mended |= not after_value or char == ";"
                    self.position += 1
                    after_value, after_comma = False, True
                elif after_value:
                    raise _Failure(BROKEN, self.position)
                else:
                    after_value, after_comma = self._item(char), False
        except _Failure as failure:
            remark, self.position = failure.args
            return remark
        return None

    def _next(self) -> str:
        """The next character that is neither space nor comment, as ASCII where it is full-width punctuation."""
        end = _SKIP.match(self.text, self.position).end()
        self.mended |= end > self.position and not self.text[self.position : end].isspace()
        self.position = end
        if end == len(self.text):
            raise _Failure(CUT_OFF, end)
        char = self.text[end]
        self.mended |= char in _ASCII_PUNCTUATION
        return _ASCII_PUNCTUATION.get(char, char)

    def _item(self, char: str) -> bool:
        """Reads an entry; False if its value is a container that has only been opened."""
        parent, key = self.open[-1], None
        if isinstance(parent, dict):
            key = self._string(char, ":=") if char in _CLOSING else self._word()
            if self._next() not in ":=" or not isinstance(key, str) or len(key) > _MAX_KEY:
                raise _Failure(BROKEN, self.position)
            self.has_key = True
            self.position += 1
            char = self._next()
        value: Value
        if char in "{[(":
            value = {} if char == "{" else []
            self.mended |= char == "("
            self.position += 1
        else:
            value = self._string(char, ",;}])") if char in _CLOSING else self._word()
        if isinstance(parent, dict):
            self.is_repeated |= key in parent
            parent[key] = value
        else:
            parent.append(value)
        if isinstance(value, dict | list):
            self.open.append(value)
            return False
        return True

    def _word(self) -> str | float | None:
        """A number, a constant, or a string without quotes."""
        match = _WORD.match(self.text, self.position)
        if match is None:
            raise _Failure(BROKEN, self.position)
        self.position = match.end()
        if NUMBER.fullmatch(match[0]):
            return float(match[0])
        if match[0] in _CONSTANTS:
            return None
        self.mended = True
        return match[0]

    def _string(self, quote: str, followers: str) -> str:
        """A string in quotes, if one of `followers` comes next or the text ends."""
        start, closing = self.position + 1, _CLOSING[quote]
        # The next closing quote is the same for every start before it.
        known_from, end = self._ends.get(closing, (1, 0))
        if not known_from <= start <= end:
            end = _TO_CLOSING[closing].match(self.text, start).end()
            self._ends[closing] = (start, end)
        whole = end < len(self.text) and self.text[end] in closing
        self.position = end + 1
        if not whole or (self.position < len(self.text) and self._peek() not in followers):
            # A quote that was never closed has consumed what follows; the next line is outside of it.
            line_end = self.text.find("\n", start, end)
            if line_end >= 0:
                raise _Failure(BROKEN, line_end)
            raise _Failure(BROKEN, self.position) if whole else _Failure(CUT_OFF, len(self.text))
        value = self.text[start:end]
        self.mended |= quote != '"' or _CONTROL.search(value) is not None
        return _unescape(value) if "\\" in value else value

    def _peek(self) -> str:
        end = _SKIP.match(self.text, self.position).end()
        char = self.text[end : end + 1]
        return _ASCII_PUNCTUATION.get(char, char)


def _unescape(string: str) -> str:
    value = _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else _ESCAPED.get(m[2], m[2]), string)
    if _SURROGATE.search(value):  # two escapes for one character
        value = value.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    return value
