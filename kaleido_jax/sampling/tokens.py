"""Token rows for sampling: captions, given latents and prefixes as input, sampled latents as output."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from kaleido_jax.array_types import HostTokens
from kaleido_jax.errors import user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.tokenizer import Tokenizer, round_up
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.validity import LatentsError
from kaleido_jax.models.t5 import EOS
from kaleido_jax.runtime.text import uniform

log = logging.getLogger(__name__)

Prefix = Latents | Sequence[int] | None  # latents of the first segments, or their tokens; None locks nothing
LIMIT = "config.latents.max_latents_tokens"


@dataclass(frozen=True, kw_only=True)
class SampledLatents:
    """z as sampled: always tokens; the readable form if they parse, otherwise the reason why not."""

    tokens: tuple[int, ...]  # up to eos, included; no padding
    latents: Latents | None
    problem: str = ""

    def spelled(self, codec: Codec) -> tuple[int, ...]:
        """The tokens that an image is sampled from: z as the vocabulary writes it, as in training.

        The prior may spell the same z in other tokens. So an image depends on the readable z alone, and the same z
        given by a person gives the same image. Tokens that do not parse, or cannot be written again, are kept.
        """
        if self.latents is None:
            return self.tokens
        try:
            return tuple(codec.encode(self.latents))
        except LatentsError:  # unknown characters, where the grammar did not keep them out
            return self.tokens


def caption_tokens(captions: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> HostTokens:
    """Ids of captions with eos, padded with 0 to (b, max_tokens); in the `uniform` form that records have.

    Raises:
      UserError: a caption is not text of Unicode characters, or is too long.
    """
    out = np.zeros((len(captions), max_tokens), np.int32)
    for row, caption in zip(out, captions, strict=True):
        if not isinstance(caption, str) or any("\ud800" <= ch <= "\udfff" for ch in caption):
            raise user_error(f"caption {caption!r:.60}", "text of Unicode characters", "correct it")
        ids = [*tokenizer.encode(uniform(caption)), EOS]
        if len(ids) > max_tokens:
            quoted = caption if len(caption) <= 40 else f"{caption[:40]}..."
            raise user_error(
                f"caption {quoted!r} of {len(ids)} tokens",
                f"at most {max_tokens} (config.data.max_caption_tokens)",
                "shorten it",
            )
        row[: len(ids)] = ids
    return out


def unknown_characters(captions: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """A line for each caption with characters that the vocabulary reads as <unk>, each caption once."""
    lines = []
    for caption in dict.fromkeys(map(uniform, captions)):
        if unknown := tokenizer.unknown(caption):
            lines.append(f"caption {caption!r}: the vocabulary has no {', '.join(map(repr, unknown))}; read as <unk>")
    return lines


def warn_of_unknown(captions: Sequence[str], tokenizer: Tokenizer) -> None:
    """Logs the lines of `unknown_characters`."""
    for line in unknown_characters(captions, tokenizer):
        log.warning("%s", line)


def latents_tokens(z: Latents, codec: Codec, max_tokens: int) -> tuple[int, ...]:
    """Tokens of (maybe edited) latents as `Codec.snap` rounds them, eos included.

    They may be twice as long as those in training, so that an edit may add to a z that fills the bucket.

    Raises:
      UserError: invalid, segments missing, or longer than that.
    """
    ids = codec.encode(codec.snap(z))
    if len(ids) > 2 * max_tokens:
        raise user_error(f"latents of {len(ids)} tokens", f"at most {2 * max_tokens} (twice {LIMIT})", "shorten them")
    return tuple(ids)


def pad_rows(rows: Sequence[Sequence[int]], max_tokens: int) -> HostTokens:
    """Ids of each row, padded with 0 to (b, max_tokens), or to a multiple of 16 if one is longer."""
    longest = max(map(len, rows), default=0)
    out = np.zeros((len(rows), max_tokens if longest <= max_tokens else round_up(longest, 16)), np.int32)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
    return out


def prefix_rows(prefix: Sequence[Prefix], codec: Codec, max_tokens: int, grammar: bool) -> HostTokens:
    """Tokens that each z must begin with, padded with 0 to (b, max_tokens).

    With `grammar` a prefix must follow it and leave room for the rest.

    Raises:
      UserError: a prefix is not one of these latents, or is too long.
    """
    rows, vocab_size = [], codec.tokenizer.vocab_size
    for i, given in enumerate(prefix):
        ids = codec.prefix(codec.snap(given)) if isinstance(given, Latents) else given or ()
        if len(ids) > max_tokens or not all(0 < token < vocab_size for token in ids):
            raise user_error(
                f"prefix {i} of {len(ids)} tokens",
                f"at most {max_tokens} ({LIMIT}), ids 1..{vocab_size - 1}",
                "shorten or correct it",
            )
        if grammar:
            _check_grammar(i, ids, codec, max_tokens)
        rows.append(ids)
    return pad_rows(rows, max_tokens)


def _check_grammar(i: int, ids: Sequence[int], codec: Codec, max_tokens: int) -> None:
    state, wrong = codec.constraint.follow(ids)
    if wrong is not None:
        raise user_error(
            f"prefix {i} with {codec.tokenizer.piece(ids[wrong])!r} as token {wrong}",
            "a token that the grammar allows there",
            "correct it, or sample with grammar=False",
        )
    needed = len(ids) + int(codec.constraint.tokens_to_end(state)[0])
    if needed > max_tokens:
        raise user_error(
            f"prefix {i}, which needs {needed} tokens to the end", f"at most {max_tokens} ({LIMIT})", "shorten it"
        )


def read_latents(row: Int[np.ndarray, "t"], codec: Codec) -> SampledLatents:
    """One row of sampled tokens as latents, or the reason why they do not parse."""
    ended = np.flatnonzero(row == EOS)
    ids = tuple(int(i) for i in (row[: ended[0] + 1] if len(ended) else row))
    try:
        z = codec.snap(codec.decode(ids))
    except LatentsError as error:
        return SampledLatents(tokens=ids, latents=None, problem=str(error))
    if not len(ended):
        return SampledLatents(tokens=ids, latents=None, problem="cut off before eos")
    return SampledLatents(tokens=ids, latents=z)
