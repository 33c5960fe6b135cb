"""The voken segment: entries of the codebook, one new token each, so they never pass through a string."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kaleido_jax.latents.nodes import Nodes, Part
from kaleido_jax.latents.render.shapes import Chips, Drawing
from kaleido_jax.latents.segments.base import Vocabulary
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.latents.validity import latents_error, plain_numbers, read_list

_VOKEN = re.compile(r"I([0-9]{1,9})", re.ASCII)


@dataclass(frozen=True)
class VokenSegment:
    """Vokens; the value is a tuple of ints. The methods are those of `Segment`."""

    name: str = "voken"

    def freeze(self, value: Any) -> Any:
        """A tuple."""
        return plain_numbers(value)

    def check(self, value: Any) -> None:
        """At least one, none negative; the upper limit depends on the codebook."""
        if not isinstance(value, tuple) or not value or not all(type(v) is int and v >= 0 for v in value):
            raise latents_error(f"voken {value!r}", "at least one whole number, none negative", "correct it")

    def to_json(self, value: tuple[int, ...]) -> list[int]:
        """A list of numbers."""
        return list(value)

    def from_json(self, value: Any) -> tuple:
        """A tuple of whatever the list holds."""
        return read_list(value, self.name)

    def write(self, value: tuple[int, ...]) -> str:
        """The readable form, I17#I403."""
        return "#".join(f"I{v}" for v in value)

    def read(self, string: str) -> tuple[int, ...]:
        """The numbers in I17#I403."""
        found = [_VOKEN.fullmatch(token.strip()) for token in string.split("#")]
        if not all(found):
            raise latents_error(f"voken list {string[:60]!r}", "the form I17#I403", "correct it")
        return tuple(int(match[1]) for match in found if match)

    def encode(self, value: tuple[int, ...], vocabulary: Vocabulary) -> list[int]:
        """The ids of the vokens with that of "#" between them; their number must be the vocabulary's."""
        tokenizer = vocabulary.tokenizer
        _check_count(value, vocabulary, "give as many")
        if max(value) >= tokenizer.codebook_size:
            raise latents_error(f"voken {max(value)}", f"0..{tokenizer.codebook_size - 1}", "use the matching codebook")
        ids = [tokenizer.hash_id] * (2 * len(value) - 1)
        ids[::2] = [tokenizer.voken_id(index) for index in value]
        return ids

    def decode(self, ids: Sequence[int], vocabulary: Vocabulary) -> tuple[int, ...]:
        """The vokens of the ids; their number must be the vocabulary's."""
        vokens = tuple(vocabulary.tokenizer.voken_index(token) for token in ids[::2])
        if len(ids) % 2 == 0 or None in vokens or set(ids[1::2]) - {vocabulary.tokenizer.hash_id}:
            raise latents_error(f"voken tokens {ids[:8]}", "vokens joined by '#'", "sample again")
        _check_count(vokens, vocabulary, "sample again")
        return tuple(v for v in vokens if v is not None)

    def fit(self, value: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
        """Unchanged: a voken has no nearest other."""
        del tokenizer
        return value

    def snap(self, value: tuple[int, ...], step: int) -> tuple[int, ...]:
        """Unchanged: it has no coordinates."""
        del step
        return value

    def grammar(self, nodes: Nodes, vocabulary: Vocabulary) -> Part:
        """Vokens with "#" between them; their number is the vocabulary's."""
        tokenizer, rounds = vocabulary.tokenizer, vocabulary.vokens_per_image
        enter, more = nodes.new(), nodes.new()
        nodes.link_tokens(enter, range(tokenizer.base_vocab_size, tokenizer.vocab_size), more)
        nodes.link_tokens(more, (tokenizer.hash_id,), enter)
        if rounds is None:
            return Part(enter, more)
        leave = nodes.new()
        nodes.loop(enter=enter, more=more, leave=leave, rounds=rounds)
        return Part(enter, leave)

    def render(self, value: tuple[int, ...]) -> Drawing:
        """Their numbers below the square."""
        return Drawing(below=(Chips(texts=tuple(map(str, value))),))


def _check_count(vokens: Sequence[int | None], vocabulary: Vocabulary, do: str) -> None:
    if vocabulary.vokens_per_image not in (None, len(vokens)):
        raise latents_error(f"{len(vokens)} vokens", f"{vocabulary.vokens_per_image} per image", do)


SEGMENT = VokenSegment()
