"""Text from file names, tables and the command line, made valid UTF-8."""

import os
import re
import sys
import unicodedata

# Halves of characters. Python keeps a byte 0xNN that a locale could not decode as the lone half U+DCNN.
_LONE_HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")

# They decide how letters of Persian or Hindi and the parts of an emoji join, so words are other words without them.
JOINERS = "\u200c\u200d"
_OUTSIDE_WORDS = re.compile(rf"(?<!\S)[{JOINERS}]+|[{JOINERS}]+(?!\S)")

_SPACES = re.compile(r"[^\S\x0b\x1c-\x1f\x85]+")


def readable(text: str) -> str:
    """The text as characters that UTF-8 can encode; valid text is returned unchanged.

    Bytes that the locale could not decode are read as UTF-8. Bytes that are not UTF-8 either are written as "\\xNN", so
    that different file names stay different. Other halves of characters (JSON's "\\ud83d") are dropped.
    """
    if text.isascii():
        return text
    whole = _LONE_HALVES.sub("", text)
    return whole.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def readable_name(name: str) -> str:
    """A file name as `readable` text.

    A locale without UTF-8 may also decode names to wrong characters, so this reads the name's bytes.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def without_format(text: str) -> str:
    """The text without what shows nothing and is no space: soft hyphens, zero-width spaces, marks of direction.

    These are Unicode's format characters. JOINERS stay inside words.
    """
    if text.isascii():
        return text
    kept = "".join(ch for ch in text if ch in JOINERS or unicodedata.category(ch) != "Cf")
    return _OUTSIDE_WORDS.sub("", kept)


def uniform(text: str) -> str:
    """The text in the one form that vocabularies learn: NFC, one space for each run of white space, none at the ends.

    Keyboards, file names and tables write one caption with no-break spaces, soft hyphens or accents apart, which look
    the same. The few control characters that Python takes for white space and T5's vocabulary does not stay as they
    are, and so do JOINERS inside words.
    """
    return unicodedata.normalize("NFC", _SPACES.sub(" ", without_format(text)).strip(" "))


def file_stem(text: str) -> str:
    """Up to 40 characters of a text as part of a file name: lower-case words of any script, with dashes between.

    Letters that the locale's file names cannot have are left out.
    """
    encoding = sys.getfilesystemencoding()
    characters = unicodedata.normalize("NFC", text.lower()).encode(encoding, "ignore").decode(encoding)
    words = "".join(one if unicodedata.category(one)[0] in "LMN" else " " for one in characters).split()
    return "-".join(words)[:40].strip("-")
