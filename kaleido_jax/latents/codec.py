"""Codec of the latents: z <-> token ids, "text | bbox | blob | voken" and eos, with one vocabulary."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from kaleido_jax.latents import segments as registry
from kaleido_jax.latents.grammar import SEPARATOR, wrong_count
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.latents.types import Latents, check_segments, segments_of, select, validate
from kaleido_jax.latents.validity import latents_error

if TYPE_CHECKING:
    from kaleido_jax.latents.constrain import Constraint


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How latents are written as tokens: the vocabulary, the segments in order, and the number of vokens."""

    tokenizer: Tokenizer
    segments: tuple[str, ...]  # () = the baseline, without latents
    vokens_per_image: int | None = None  # length of the voken segment; None = any
    coordinate_step: int = 1  # see `snap`

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", check_segments(self.segments))

    @functools.cached_property
    def separator(self) -> list[int]:
        """The ids between two segments, of " | "."""
        return self.tokenizer.encode(SEPARATOR)

    def encode(self, z: Latents) -> list[int]:
        """Ids of z, eos included; decode() returns exactly z.

        Raises:
          LatentsError: as segment_tokens.
        """
        return self.join({s: self.segment_tokens(z, s) for s in self.segments})

    def segment_tokens(self, z: Latents, segment: str) -> list[int]:
        """Ids of one segment, without separator and eos.

        Raises:
          LatentsError: z is invalid, lacks the segment, or holds characters or vokens that the vocabulary lacks.
        """
        z = validate(select(z, (segment,)))
        return registry.get(segment).encode(getattr(z, segment), self)

    def join(self, tokens: Mapping[str, Sequence[int]]) -> list[int]:
        """The ids of each segment joined by those of " | ", then eos; equal to tokenizing the joined string.

        Raises:
          LatentsError: a segment is missing in `tokens`.
        """
        joined: list[int] = []
        for position, segment in enumerate(self.segments):
            if segment not in tokens:
                raise latents_error(f"tokens of {', '.join(tokens) or 'nothing'}", f"{segment} too", "add the segment")
            joined += (self.separator if position else []) + list(tokens[segment])
        return [*joined, self.tokenizer.eos_id]

    def prefix(self, z: Latents) -> list[int]:
        """Ids that lock z, the first segments, at the start: up to the next segment, or with eos if z is complete.

        Raises:
          LatentsError: z does not hold the first segments, or cannot be written.
        """
        have = segments_of(z)
        if have != self.segments[: len(have)]:
            raise latents_error(
                f"a prefix of {', '.join(have)}",
                f"the first of {', '.join(self.segments)}",
                "add those before it, or drop some",
            )
        if have == self.segments:
            return self.encode(z)
        return [i for s in have for i in (*self.segment_tokens(z, s), *self.separator)]

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> Latents:
        """The latents in a token sequence, read up to the first eos; pads are skipped.

        Raises:
          LatentsError: the sequence does not hold these segments.
        """
        parts = _split(self._content(ids), self.separator) if self.segments else []
        if len(parts) != len(self.segments):
            raise wrong_count(len(parts), self.segments)
        pairs = zip(self.segments, parts, strict=True)
        return validate(Latents(**{s: registry.get(s).decode(part, self) for s, part in pairs}))

    def fit(self, z: Latents) -> Latents:
        """z with characters dropped from text and phrases that the vocabulary cannot write, and objects without others.

        Raises:
          LatentsError: nothing is left of the text, or of any object's phrase.
        """
        return Latents(**{s: registry.get(s).fit(getattr(z, s), self.tokenizer) for s in segments_of(z)})

    def snap(self, z: Latents) -> Latents:
        """z as the prior is trained on it: coordinates at the nearest multiples of `coordinate_step`.

        A small vocabulary learns few numbers well, so records, edits and sampled latents all have those only.

        Raises:
          LatentsError: z is invalid.
        """
        if self.coordinate_step == 1:
            return z
        z = validate(z)
        return Latents(**{s: registry.get(s).snap(getattr(z, s), self.coordinate_step) for s in segments_of(z)})

    @functools.cached_property
    def constraint(self) -> "Constraint":
        """The grammar of these segments as tables in numpy, for constrained sampling (T5's: 5 MB).

        Raises:
          UserError: the vocabulary lacks a piece that the grammar needs.
        """
        # Imported here: it needs JAX, but reading and writing records does not.
        from kaleido_jax.latents.automaton import compile_grammar

        return compile_grammar(self.segments, self)

    def _content(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> list[int]:
        content = []
        for token in map(int, ids):
            if token == self.tokenizer.eos_id:
                break
            if token != self.tokenizer.pad_id:
                content.append(token)
        return content


def _split(ids: Sequence[int], separator: Sequence[int]) -> list[list[int]]:
    parts, position = [[]], 0
    while position < len(ids):
        if ids[position : position + len(separator)] == separator:
            parts.append([])
            position += len(separator)
        else:
            parts[-1].append(ids[position])
            position += 1
    return parts
