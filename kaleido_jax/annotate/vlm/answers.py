"""Answers of a vision-language model: the final text after its thoughts, and the description in it."""

import contextlib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from kaleido_jax.annotate.vlm.lenient_json import BROKEN, CUT_OFF, Value, read_objects
from kaleido_jax.latents.validity import LatentsError, clean_text

# The prompt asks for 50 to 80 words (prompts.py). Fewer than these do not describe an image; more would leave no room
# for the segments that follow, and a model that rambles does better on the next attempt.
MIN_WORDS, MAX_WORDS = 10, 160
MAX_NON_LATIN = 0.2  # share of the letters; signs in a picture may be quoted in their own script
MIN_ENGLISH = 0.05  # share of the words; English prose has about a quarter of these, its neighbors hardly any
_ENGLISH = frozenset(["the", "and", "with", "of", "are", "this", "its", "that", "which", "from", "by", "at", "has"])

# Of reasoning models: Qwen3, DeepSeek, GLM, Seed; Kimi; Magistral; MedGemma; Cohere and OpenThinker; gpt-oss, whose
# channels end in the final one. Chat templates often write the opening tag into the prompt, so that the answer has the
# closing one alone.
_THINK = r"\s*+(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning)\s*+>"
_THOUGHTS_START = re.compile(
    rf"<{_THINK}|\u25c1think\u25b7|\[THINK\]|<unused94>|<\|(?:start_thinking|begin_of_thought)\|>|<\|channel\|>analysis",
    re.IGNORECASE,
)
_THOUGHTS_END = re.compile(
    rf"<\s*+/{_THINK}|\u25c1/think\u25b7|\[/THINK\]|<unused95>|<\|(?:end_thinking|end_of_thought)\|>"
    r"|<\|channel\|>final\s*+<\|message\|>",
    re.IGNORECASE,
)
# Before the last of these a model thinks without a tag. GLM also puts the bare numbers of a box in its own tag, and
# their phrase stands before it.
_ANSWER_START = re.compile(
    r"<(?:(?:final_)?answer|conclusion)>|<\|(?:begin_of_solution|start_response)\|>|\[begin final response\]"
    r"|<\|begin_of_box\|>(?![\s\[(]*+[0-9])",
    re.IGNORECASE,
)
# Around an answer, never part of it: wrappers, and special tokens that a server has not removed.
_FRAME = re.compile(
    r"</?(?:answer|final_answer|conclusion|response|output|description|caption|tool_call|s|eos|bos|pad|end_of_turn)>"
    r"|<\|(?:begin_of_box|end_of_box|begin_of_solution|end_of_solution|start_response|end_response)\|>"
    r"|<\|(?:im_end|endoftext|end_of_text|eot_id|eom_id|end|return)\|>|\[(?:begin|end) final response\]",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```+|~~~+")
_FENCE_LANGUAGE = re.compile(r"[ \t]*+(?:[\w.+-]{0,20}+[ \t]*+\r?\n|(?:json5?|jsonc|text|markdown)\b)", re.IGNORECASE)

_KEYS = (r"description", r"caption", r"text", r".*(?:description|caption)", r"answer|response|output|content|result")
_HERE = r"here(?:'s|\u2019s| is)\b[^\n:.]{0,100}"
_TITLE = r"(?:\w+ ){0,2}(?:description|caption)(?: (?:of|for) (?:the|this|your) \w+)?"
_HEADING = re.compile(
    # The caption, before the description of it.
    r"[*#_ ]{0,10}(?:\w+ ){0,2}(?:caption|title|label)[*_ ]{0,4}:[^\n]{0,400}\n\s*+"
    r"(?=[*#_ ]{0,10}(?:\w+ ){0,2}description\b)"
    r"|[*#_ ]{0,10}(?:final )?(?:answer|assistant|response|output)[*_ ]{0,4}:[*_]*\s+"
    r"|(?:(?:sure|certainly|of course|okay|ok)\b[^\n:]{0,80}[!.,]\s+)?"
    rf"(?:{_HERE}:\s*\n|{_HERE}\b(?:description|caption|paragraph)\b[^\n:.]{{0,60}}:\s"
    rf"|[*#_ ]{{0,10}}{_TITLE}[*_ ]{{0,4}}(?::[*_]*\s|\n)"
    # A dash is one in the text itself, unless a sentence begins behind it.
    rf"|[*#_ ]{{0,10}}{_TITLE}[*_]{{0,3}} ?[-\u2013\u2014]{{1,2}} (?=(?-i:[A-Z]))"
    # A title without a colon that text follows on the same line: only one in bold or after "#" is sure to be one.
    rf"|(?:#{{1,6}} |[*_]{{2}}){_TITLE}[*_]{{0,2}} (?=(?-i:[A-Z])))\s*",
    re.IGNORECASE,
)
# Quotation marks and emphasis around the whole text, if there are none of their kind inside it.
_AROUND = re.compile(
    r"[*]{1,3}([^*]+)[*]{1,3}|_{1,3}([^_]+)_{1,3}|`([^`]+)`|\"([^\"]+)\"|\u201c([^\u201c\u201d]+)\u201d"
    r"|['\u2018]((?:[^'\u2018\u2019]|(?<=\w)['\u2019](?=\w))+)['\u2019]"
)
# What a model says of its text after the last sentence: the number of words, or something polite.
_AFTERWORD = re.compile(
    r"(?<=[.!?\"\u201d*_]) (?:"
    r"[(\[*_]{0,3}(?:total )?word count[*_: ]{0,6}(?:about |approximately |~)?[0-9]{1,4}(?: words)?[)\]*_.]{0,4}"
    r"|[*_]{0,2}[(\[][*_]{0,2}(?:total:? |about |approximately |exactly |~)?[0-9]{1,4} words[*_.]{0,3}[)\]][*_.]{0,3}"
    r"|[(\[*_]{0,3}(?:please )?note[*_]{0,3}(?::[*_]{0,3}| that) (?:[^.!?]{0,200}[.!?]++ ?){1,3}[)\]*_]{0,3}"
    r"|i hope (?:this|that|it) [^.!?]{0,100}[.!]"
    r"|(?:please )?(?:let me know|feel free to) [^.!?]{0,100}[.!]"
    r"|would you like [^.!?]{0,100}\?)\Z",
    re.IGNORECASE,
)
_BOXED, _IN_BOX = "\\boxed{", "\\text{"
_PLACEHOLDER = re.compile(r"<\s*/?\s*[A-Za-z][A-Za-z_ ]{0,30}>|\[[A-Z][A-Z_ ]{2,30}\]")
_WILL_NOT = r"(?:can(?:no|')t|can not|unable|not able|won't|will not|am not|'m not|apologi[sz]e)"
_REFUSAL = re.compile(
    rf"\A\W*(?:(?:i'm|i am|we're|we are)\s+(?:\w+\s+)?(?:sorry|unable|not able|afraid)\b"
    rf"|sorry\b|apologies\b|unfortunately,? i\b|as an? (?:\w+ )?(?:ai|language model)\b|i\s+(?:\w+\s+)?{_WILL_NOT}\b"
    rf"|i'm not\b)",
    re.IGNORECASE,
)


class UnusableAnswer(Exception):
    """The answer cannot be used; str(error) is the reason, one line. The model may be asked again."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model wrote about one image."""

    text: str
    cut_off: bool = False  # it ended at the token limit


def final_text(answer: Answer) -> str:
    """The answer without a reasoning model's thoughts and without the tags around it, stripped.

    Everything up to the last closing tag is thoughts, and so is everything after an opening tag that is never closed.

    Raises:
      UnusableAnswer: nothing is left.
    """
    end = max((match.end() for match in _THOUGHTS_END.finditer(answer.text)), default=0)
    opening = _THOUGHTS_START.search(answer.text, end)
    text = answer.text[end : opening.start() if opening else None]
    text = text[max((match.end() for match in _ANSWER_START.finditer(text)), default=0) :]
    text = _FRAME.sub(" ", text).strip()
    if text.startswith('"') and text.endswith('"'):
        with contextlib.suppress(ValueError):  # else it starts and ends with quotations
            text = json.loads(text, strict=False).strip()  # which may be JSON again
    if not text:
        raise UnusableAnswer(
            "empty answer" + (", all of it thoughts" if _THOUGHTS_END.search(answer.text) or opening else "")
        )
    return text


def fenced_blocks(text: str) -> list[str]:
    """The text between fences (``` or ~~~), without the language name, stripped."""
    blocks = _FENCE.split(text)[1::2]
    return [block[match.end() if (match := _FENCE_LANGUAGE.match(block)) else 0 :].strip() for block in blocks]


def description_of(answer: Answer) -> str:
    """The description in an answer, valid as the text segment.

    It may be plain text or JSON (a string, or an object with "description", "caption" or "text", or with a single
    string), alone or in a fence, with sentences before and after it. A heading before it, quotation
    marks or emphasis around it, and the number of its words or polite words after it are left out.

    Raises:
      UnusableAnswer: it is empty, a refusal, cut off, too short or too long, JSON without a description, holds a
        placeholder tag, or is not in Latin script or not in English.
    """
    if answer.cut_off:
        raise UnusableAnswer("answer cut off at the token limit")
    try:
        text = clean_text(_bare(_unwrap(final_text(answer))))
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
    if not MIN_WORDS <= words <= MAX_WORDS:
        raise UnusableAnswer(f"{words} words, wanted {MIN_WORDS} to {MAX_WORDS}")
    return text


def _unwrap(text: str) -> str:
    """The description in a final text: of its JSON, else of its longest fence, else all of it."""
    text = _unboxed(text)
    blocks = fenced_blocks(text)
    for block in (*blocks, text):
        found = _from_json(block)
        if found is not None:
            return found
    longest = max(blocks, key=len, default="")
    # A few words in a fence are a quotation, a sign's for example.
    if len(longest.split()) >= MIN_WORDS:
        text = longest
    return text


def _unboxed(text: str) -> str:
    """What stands in LaTeX's \\boxed{...}, as models of mathematics write answers; a few words there are no text."""
    start, end = text.rfind(_BOXED), text.rfind("}")
    inner = text[start + len(_BOXED) : end].strip() if 0 <= start < end else ""
    if inner.startswith(_IN_BOX) and inner.endswith("}"):
        inner = inner[len(_IN_BOX) : -1].strip()
    return inner if len(inner.split()) >= MIN_WORDS else text


def _bare(text: str) -> str:
    """A text without headings before it, quotation marks around it and remarks on it after it; on one line."""
    while heading := _HEADING.match(text):
        text = text[heading.end() :]
    text = " ".join(text.split())
    while (found := _AROUND.fullmatch(text)) or (after := _AFTERWORD.search(text)):
        text = found[found.lastindex or 0].strip() if found else text[: after.start()]
    return text


def _from_json(text: str) -> str | None:
    """The description in a text's JSON, "" if the JSON has none; None if the text has no JSON."""
    if text.startswith("["):
        try:
            value = json.loads(text, strict=False)
        except (ValueError, RecursionError):  # no JSON after all: a text that starts with brackets
            value = None
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            return value[0]
    remarks: list[str] = []
    objects = [found for found in read_objects(text, remarks.append) if found or text.startswith(("{", "["))]
    for pattern in _KEYS:
        if (found := next(_strings_of(objects, re.compile(pattern, re.IGNORECASE)), None)) is not None:
            return found
    failures = [remark for remark in remarks if remark in (BROKEN, CUT_OFF)]
    if failures:
        raise UnusableAnswer(f"{failures[0]}: {text[:80]!r}")
    strings = [value for value in objects[0].values() if isinstance(value, str)] if objects else []
    if len(strings) == 1:
        return strings[0]
    return "" if objects else None


def _strings_of(objects: list[dict[str, Value]], key: re.Pattern) -> Iterator[str]:
    """What the objects hold under such a key, if it is a string or a list of strings, its sentences."""
    for found in objects:
        for name, value in found.items():
            if key.fullmatch(name.strip()):
                sentences = value if isinstance(value, list) else [value]
                if sentences and all(isinstance(sentence, str) for sentence in sentences):
                    yield " ".join(sentences)


def _check_language(text: str) -> None:
    # The script rules out Chinese or Russian. Within Latin script, the most common words identify English; those chosen
    # do not occur in other large European languages. A few words are too few for this test.
    letters = [ch for ch in text if ch.isalpha()]
    foreign = sum(not unicodedata.name(ch, "").startswith("LATIN") for ch in letters)
    if foreign > MAX_NON_LATIN * max(len(letters), 1):
        raise UnusableAnswer(f"{foreign} of {len(letters)} letters are not Latin")
    words = re.findall(r"[a-z]+", text.lower())
    english = sum(word in _ENGLISH for word in words)
    if len(words) >= 2 * MIN_WORDS and english < MIN_ENGLISH * len(words):
        raise UnusableAnswer(f"not English: {text[:80]!r}")
