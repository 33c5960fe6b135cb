"""The text segment: a description of the whole image, one line of words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kaleido_jax.latents.nodes import CLOSE, COMMA, DIGIT, OPEN, OTHER, SPACE, Nodes, Part
from kaleido_jax.latents.render.shapes import Drawing, Paragraph
from kaleido_jax.latents.segments.base import Vocabulary, decode_words, encode_words, fit_words
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.latents.validity import FORBIDDEN_IN_TEXT, check_words, clean_text


@dataclass(frozen=True)
class TextSegment:
    """Words; the value is the string itself. The methods are those of `Segment`."""

    name: str = "text"

    def freeze(self, value: Any) -> Any:
        """Strings are immutable already."""
        return value

    def check(self, value: Any) -> None:
        """Must be printable and not empty, with single spaces only and without "|" and U+2581."""
        check_words(value, FORBIDDEN_IN_TEXT, self.name)

    def to_json(self, value: str) -> str:
        """The string."""
        return value

    def from_json(self, value: Any) -> Any:
        """The string."""
        return value

    def write(self, value: str) -> str:
        """The string."""
        return value

    def read(self, string: str) -> str:
        """The words, with single spaces."""
        return " ".join(string.split())

    def encode(self, value: str, vocabulary: Vocabulary) -> list[int]:
        """Ids of the words."""
        return encode_words(self.name, value, vocabulary.tokenizer)

    def decode(self, ids: Sequence[int], vocabulary: Vocabulary) -> str:
        """The words of the ids."""
        return self.read(decode_words(self.name, ids, vocabulary.tokenizer))

    def fit(self, value: str, tokenizer: Tokenizer) -> str:
        """Drops characters that the vocabulary lacks."""
        return fit_words(value, clean_text, tokenizer)

    def snap(self, value: str, step: int) -> str:
        """Unchanged: it has no coordinates."""
        del step
        return value

    def grammar(self, nodes: Nodes, vocabulary: Vocabulary) -> Part:
        """One word or more."""
        del vocabulary
        start, word, gap = nodes.new(), nodes.new(), nodes.new()
        nodes.link(start, (SPACE,), gap)
        nodes.words(gap, word, gap, (DIGIT, COMMA, OPEN, CLOSE, OTHER))
        return Part(start, word)

    def render(self, value: str) -> Drawing:
        """The words below the square."""
        return Drawing(below=(Paragraph(text=value),))


SEGMENT = TextSegment()
