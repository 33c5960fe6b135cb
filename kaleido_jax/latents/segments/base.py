"""Segment, the protocol of one kind of latents, and how words are written as tokens."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

from kaleido_jax.latents.nodes import Nodes, Part
from kaleido_jax.latents.render.shapes import Drawing
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.latents.validity import latents_error
from kaleido_jax.runtime.text import JOINERS

MOST_QUOTED = 8  # characters that an error names


@runtime_checkable
class Vocabulary(Protocol):
    """What a segment may know about tokens; a Codec is one."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text <-> ids, and the rows of the vokens."""

    @property
    def vokens_per_image(self) -> int | None:
        """Length of the voken segment; None = any."""


@runtime_checkable
class Segment(Protocol):
    """Everything particular to one kind of latents. Its value is immutable and hashable."""

    name: str  # in z, JSON, records and config; an identifier

    def freeze(self, value: Any) -> Hashable:
        """The value as Latents store it: lists become tuples. Checks nothing."""

    def check(self, value: Any) -> None:
        """Raises LatentsError for an invalid value; a valid one has read(write(value)) == value."""

    def to_json(self, value: Any) -> Any:
        """The JSON form: dicts, lists, strings and numbers."""

    def from_json(self, value: Any) -> Hashable:
        """The value of a JSON form, not yet checked; raises LatentsError for another form."""

    def write(self, value: Any) -> str:
        """A valid value as one line without "|"."""

    def read(self, string: str) -> Hashable:
        """The value in a line; raises LatentsError if the line holds no such value."""

    def encode(self, value: Any, vocabulary: Vocabulary) -> list[int]:
        """A valid value as ids; raises LatentsError if the vocabulary cannot write it."""

    def decode(self, ids: Sequence[int], vocabulary: Vocabulary) -> Hashable:
        """The value in ids, possibly invalid; raises LatentsError if the ids hold no such value."""

    def fit(self, value: Any, tokenizer: Tokenizer) -> Hashable:
        """The nearest value that the vocabulary can write; raises LatentsError if nothing is left."""

    def snap(self, value: Any, step: int) -> Hashable:
        """A valid value with its coordinates at the nearest multiples of `step`, still valid; unchanged without any."""

    def grammar(self, nodes: Nodes, vocabulary: Vocabulary) -> Part:
        """Adds nodes that accept exactly the text of encode(), in any tokenization, including the leading " "."""

    def render(self, value: Any) -> Drawing:
        """What a valid value shows on the square and below it."""


def encode_words(name: str, string: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a segment's line.

    Raises:
      LatentsError: the vocabulary would read it back as something else; `Codec.fit` gives what it can write.
    """
    ids = tokenizer.encode(string)
    back = tokenizer.decode(ids)
    if back == string:
        return ids
    if unknown := tokenizer.unknown(string):
        found = f"{name} {string[:80]!r}, but the vocabulary has no {_quoted(unknown)}"
        raise latents_error(found, "characters that it has", "replace or remove these")
    found = f"{name} {string[:80]!r}, which the vocabulary reads as {back[:80]!r}"
    raise latents_error(found, "words that it keeps", "write them as it reads them")


def _quoted(characters: Sequence[str]) -> str:
    """Characters for an error's line, the first ones of many."""
    shown, more = ", ".join(map(repr, characters[:MOST_QUOTED])), len(characters) - MOST_QUOTED
    return f"{shown} and {more} more" if more > 0 else shown


def decode_words(name: str, ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The line in a segment's ids.

    Raises:
      LatentsError: an id is not a piece of text: a voken, a sentinel, unk or a row that only pads the table.
    """
    foreign = [i for i in ids if not tokenizer.unk_id < i < tokenizer.num_pieces]
    if foreign:
        raise latents_error(f"token {foreign[0]} in {name}", "pieces of the vocabulary only", "sample again")
    return tokenizer.decode(ids)


def fit_words(words: str, clean: Callable[[str], str], tokenizer: Tokenizer) -> str:
    """The words without the characters that the vocabulary lacks.

    Raises:
      LatentsError: nothing is left, or what is left changes with every reading.
    """
    # A vocabulary without joiners may read them as spaces, T5's among them, which would cut words.
    left = "".join(ch for ch in words if ch not in JOINERS or ch in tokenizer.decode(tokenizer.encode(ch)))
    # Dropping a character can join its neighbors into something new, so this repeats until nothing changes.
    for _ in range(8):
        ids = [i for i in tokenizer.encode(clean(left)) if i != tokenizer.unk_id]
        known = tokenizer.decode(ids)
        if not known.strip():
            break
        known = clean(known)
        if known == left:
            return known
        left = known
    do = "write them in these, or use a vocabulary that has theirs"
    raise latents_error(f"words {words[:60]!r} that cannot be written", "characters the vocabulary knows", do)
