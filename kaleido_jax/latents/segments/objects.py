"""Object lists as a segment: each object is a phrase with numbers, "boot (1, 33, 995, 995) lap (1, 630, 785, 998)"."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kaleido_jax.latents.nodes import CLOSE, COMMA, DIGIT, OPEN, OTHER, SPACE, Bounds, Nodes, Part
from kaleido_jax.latents.render.shapes import Drawing, Ellipse, Rectangle
from kaleido_jax.latents.segments.base import Vocabulary, decode_words, encode_words, fit_words
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.latents.validity import (
    FORBIDDEN_IN_PHRASE,
    LatentsError,
    check_keys,
    check_words,
    clean_phrase,
    latents_error,
    read_list,
)

_NUMBERS = re.compile(r"\(([^()]*)\)")
_WHOLE = re.compile(r"[0-9]{1,4}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ObjectList:
    """Objects of one kind; the value is a tuple of them, () = nothing was found. The methods are those of `Segment`."""

    name: str
    kind: Callable[[str, Any], Any]  # class of the objects, made from phrase and numbers
    field: str  # name of the numbers in that class and in JSON
    bounds: tuple[Bounds, ...]  # of each number
    check_numbers: Callable[[Any], None]  # raises LatentsError
    shape: Callable[[Any, int], Rectangle | Ellipse]  # object and its index -> its outline
    snap_numbers: Callable[[tuple[int, ...], int], tuple[int, ...]]  # valid numbers -> valid multiples of a step

    def freeze(self, value: Any) -> Any:
        """A tuple."""
        return tuple(value) if isinstance(value, list) else value

    def check(self, value: Any) -> None:
        """Phrases must be valid text without parentheses, numbers in the ranges of their kind."""
        if not isinstance(value, tuple) or not all(isinstance(item, self.kind) for item in value):
            raise latents_error(f"{self.name} {value!r:.80}", f"objects of type {self.kind.__name__}", "correct it")
        for item in value:
            self._check_item(item.phrase, getattr(item, self.field))

    def _check_item(self, phrase: Any, numbers: Any) -> None:
        check_words(phrase, FORBIDDEN_IN_PHRASE, f"phrase of {self.name}")
        self.check_numbers(numbers)

    def to_json(self, value: tuple) -> list[dict[str, Any]]:
        """[{"phrase": "boot", field: [1, 2, ...]}, ...]."""
        return [{"phrase": item.phrase, self.field: list(getattr(item, self.field))} for item in value]

    def from_json(self, value: Any) -> tuple:
        """The objects."""
        objects = []
        for item in read_list(value, self.name):
            check_keys(item, ("phrase", self.field), f"an entry of {self.name}")
            if len(item) != 2:
                raise latents_error(
                    f"an entry of {self.name} with {len(item)} keys", f"phrase and {self.field}", "add the other"
                )
            numbers = read_list(item[self.field], self.field)
            self._check_item(item["phrase"], numbers)  # before making the object, whose fields are typed
            objects.append(self.kind(item["phrase"], numbers))
        return tuple(objects)

    def write(self, value: tuple) -> str:
        """Each phrase with its numbers in parentheses."""
        return " ".join(f"{item.phrase} ({', '.join(map(str, getattr(item, self.field)))})" for item in value)

    def read(self, string: str) -> tuple:
        """The objects in a line."""
        # Splitting at the numbers leaves phrase, numbers, phrase, numbers, ..., rest.
        *pairs, rest = _NUMBERS.split(string)
        if rest.strip():
            raise latents_error(f"{self.field} list ends in {rest.strip()[:60]!r}", "a closing ')'", "add or drop it")
        phrases, numbers = pairs[::2], pairs[1::2]
        return tuple(
            self.kind(" ".join(phrase.split()), self._numbers(values))
            for phrase, values in zip(phrases, numbers, strict=True)
        )

    def _numbers(self, values: str) -> tuple[int, ...]:
        numbers = [value.strip() for value in values.split(",")]
        if len(numbers) != len(self.bounds) or not all(_WHOLE.fullmatch(n) for n in numbers):
            raise latents_error(
                f"{self.field} ({values[:60]})", f"{len(self.bounds)} whole numbers", "write (1, 2, ...)"
            )
        return tuple(map(int, numbers))

    def encode(self, value: tuple, vocabulary: Vocabulary) -> list[int]:
        """Ids of the line."""
        return encode_words(self.name, self.write(value), vocabulary.tokenizer)

    def decode(self, ids: Sequence[int], vocabulary: Vocabulary) -> tuple:
        """The objects in the line of the ids."""
        return self.read(decode_words(self.name, ids, vocabulary.tokenizer))

    def fit(self, value: tuple, tokenizer: Tokenizer) -> tuple:
        """Drops characters from the phrases that the vocabulary lacks, and objects of whose phrase nothing is left.

        Raises:
          LatentsError: nothing is left of any of them.
        """
        kept, problems = [], []
        for item in value:
            try:
                kept.append(self.kind(fit_words(item.phrase, clean_phrase, tokenizer), getattr(item, self.field)))
            except LatentsError as error:
                problems.append(error)
        if problems and not kept:  # () would say that there is no object in the image
            raise problems[0]
        return tuple(kept)

    def snap(self, value: tuple, step: int) -> tuple:
        """Each object's numbers at the nearest multiples of the step."""
        return tuple(self.kind(v.phrase, self.snap_numbers(getattr(v, self.field), step)) for v in value)

    def grammar(self, nodes: Nodes, vocabulary: Vocabulary) -> Part:
        """Any number of " phrase (1, 2, ...)"; the first character of a phrase is not a space."""
        del vocabulary
        between, first, word, gap = (nodes.new() for _ in range(4))
        nodes.link(between, (SPACE,), first)
        nodes.words(first, word, gap, (DIGIT, COMMA, OTHER))
        nodes.link(gap, (DIGIT, COMMA, OTHER), word)
        begin = nodes.new()
        nodes.link(gap, (OPEN,), begin)
        for bounds in self.bounds[:-1]:
            inside = nodes.number(begin, bounds)
            comma, begin = nodes.new(), nodes.new()
            nodes.link(inside, (COMMA,), comma)
            nodes.link(comma, (SPACE,), begin)
        nodes.link(nodes.number(begin, self.bounds[-1]), (CLOSE,), between)
        return Part(between, between)

    def render(self, value: tuple) -> Drawing:
        """The outline of each object."""
        return Drawing(square=tuple(self.shape(item, index) for index, item in enumerate(value)))
