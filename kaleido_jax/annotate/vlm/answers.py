"""Which of a model's answers are descriptions: what to strip, and why an answer is of no use."""

import json
import re
import unicodedata
from dataclasses import dataclass

from kaleido_jax.latents.validity import LatentsError, clean_text

# Asked for are 50 to 80 words (prompts.py). Fewer than these are no description; more would crowd out the segments
# that follow, and a model that babbles does better on the next try.
LEAST_WORDS, MOST_WORDS = 10, 160
MAX_NON_LATIN = 0.2  # share of the letters; signs in a picture may be quoted in their own script
LEAST_ENGLISH = 0.05  # share of the words; English prose has about a quarter of these, its neighbors hardly any
_ENGLISH = frozenset(["the", "and", "with", "of", "are", "this", "its", "that", "which", "from", "by", "at", "has"])

_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_KEYS = ("description", "caption", "text")  # of a JSON answer
_PLACEHOLDER = re.compile(r"<\s*/?\s*[A-Za-z][A-Za-z_ ]{0,30}>|\[[A-Z][A-Z_ ]{2,30}\]")
_WILL_NOT = r"(?:can(?:no|')t|can not|unable|not able|won't|will not|am not|'m not|apologi[sz]e)"
_REFUSAL = re.compile(
    rf"\A\W*(?:(?:i'm|i am|we're|we are)\s+(?:\w+\s+)?(?:sorry|unable|not able|afraid)\b"
    rf"|sorry\b|apologies\b|unfortunately,? i\b|as an? (?:\w+ )?(?:ai|language model)\b|i\s+(?:\w+\s+)?{_WILL_NOT}\b"
    rf"|i'm not\b)",
    re.IGNORECASE,
)


class UnusableAnswer(Exception):
    """An answer that is none; its text says why, in one line. A model may be asked again."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model wrote about one image."""

    text: str
    cut_off: bool = False  # it ended at the limit of tokens, not by itself


def description_of(answer: Answer) -> str:
    """The description in an answer, valid as the text segment.

    Accepts plain text, a fenced block, or JSON (a string, or an object with "description", "caption" or "text", or
    with a single string); a reasoning model's thoughts are dropped.

    Raises:
      UnusableAnswer: it is empty, a refusal, cut off, too short or too long, holds a placeholder tag, or is not in
        Latin script or not in English.
    """
    if answer.cut_off:
        raise UnusableAnswer("answer cut off at the token limit")
    try:
        text = clean_text(_unwrap(answer.text))
    except LatentsError as error:
        raise UnusableAnswer("empty answer") from error
    # Typewriter and printer's apostrophes alike.
    if _REFUSAL.match(text.replace("\u2019", "'")):
        raise UnusableAnswer(f"refusal: {text[:80]!r}")
    tag = _PLACEHOLDER.search(text)
    if tag:
        raise UnusableAnswer(f"placeholder tag {tag[0]!r}")
    _check_language(text)
    words = len(text.split())
    if not LEAST_WORDS <= words <= MOST_WORDS:
        raise UnusableAnswer(f"{words} words, wanted {LEAST_WORDS} to {MOST_WORDS}")
    return text


def without_thoughts(text: str) -> str:
    """An answer without the thoughts that a reasoning model writes before it, stripped."""
    return _THOUGHTS.sub("", text).strip()


def _unwrap(text):
    text = without_thoughts(text)
    if len(text) >= 6 and text.startswith("```") and text.endswith("```"):
        text = text[3:-3].partition("\n")[2].strip()  # the first line names a language, or is empty
    if not text.startswith(("{", '"')):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # no JSON after all: a text that starts with a quotation, say
        return text
    if isinstance(value, dict):
        strings = [v for v in value.values() if isinstance(v, str)]
        named = [value[k] for k in _KEYS if isinstance(value.get(k), str)]
        value = (named or (strings if len(strings) == 1 else []) or [""])[0]
    return value if isinstance(value, str) else ""


def _check_language(text):
    # The script tells Chinese or Russian. Between languages of one script, English shows by its commonest words;
    # those chosen are words of no other large European language. Too few words would be no measure.
    letters = [ch for ch in text if ch.isalpha()]
    foreign = sum(not unicodedata.name(ch, "").startswith("LATIN") for ch in letters)
    if foreign > MAX_NON_LATIN * max(len(letters), 1):
        raise UnusableAnswer(f"{foreign} of {len(letters)} letters are not Latin")
    words = re.findall(r"[a-z]+", text.lower())
    english = sum(word in _ENGLISH for word in words)
    if len(words) >= 2 * LEAST_WORDS and english < LEAST_ENGLISH * len(words):
        raise UnusableAnswer(f"not English: {text[:80]!r}")
