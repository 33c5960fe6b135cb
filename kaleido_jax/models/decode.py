"""Decoding: samples z from the prior, one token per row at a time, until every row has ended."""

from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int, Num

from kaleido_jax.array_types import Keys, Rows, TokenLogits, Tokens
from kaleido_jax.models.t5 import EOS, PAD

RowSetting = float | int | Num[Array, "b"]  # one number for all rows, or one for each row
Cache = TypeVar("Cache")  # a pytree that `Step` takes and returns


class Decoding(NamedTuple):
    """Where sampling is, between two positions."""

    index: Int[Array, ""]  # of the next position
    token: Int[Array, "b"]  # the one before it; PAD at the start
    tokens: Tokens  # so far
    ended: Bool[Array, "b"]
    cache: Any
    parser: Any  # the constraint's state; None without one


@runtime_checkable
class Step(Protocol[Cache]):
    """One position of the prior, for all rows."""

    def __call__(self, token: Int[Array, "b"], index: Int[Array, ""], cache: Cache) -> tuple[Any, TokenLogits, Cache]:
        """(state, float32 logits of the token at `index`, cache), given the token before it."""


@runtime_checkable
class Constraint(Protocol):
    """Keeps each row within a grammar; `latents.constrain` has the constraint for z. Its state is a pytree."""

    def start(self, rows: Rows) -> Any:
        """The state of each row before its first token."""

    def restrict(self, state: Any, logits: TokenLogits, positions_left: Int[Array, ""]) -> tuple[TokenLogits, Any]:
        """(logits with -inf for tokens that may not follow, what `advance` needs)."""

    def advance(self, state: Any, reached: Any, token: Int[Array, "b"]) -> Any:
        """The state of each row after one more token."""


def warp_logits(
    logits: TokenLogits,
    temperature: RowSetting,
    top_k: RowSetting = 0,
    top_p: RowSetting = 1.0,
) -> TokenLogits:
    """Temperature, then top-k, then top-p (Hugging Face's order); excluded tokens get -inf.

    Args:
      logits: of one position.
      temperature: more than 0.
      top_k: keeps this many tokens, and those that tie with the last one; 0 = all.
      top_p: keeps the smallest set of most likely tokens whose mass reaches this, at least one; 1 = all.
    """
    size = logits.shape[-1]
    logits = logits.astype(jnp.float32) / _column(temperature, logits, jnp.float32)
    if not isinstance(top_k, jax.Array) and top_k == 0 and not isinstance(top_p, jax.Array) and top_p == 1:
        return logits  # known before compilation, so it needs no sort
    top_k, top_p = _column(top_k, logits, jnp.int32), _column(top_p, logits, jnp.float32)
    order = jnp.argsort(logits, axis=-1)
    ascending = jnp.take_along_axis(logits, order, -1)
    kth = jnp.take_along_axis(ascending, jnp.clip(size - top_k, 0, size - 1), -1)
    ascending = jnp.where((top_k > 0) & (ascending < kth), -jnp.inf, ascending)
    mass = jnp.cumsum(jax.nn.softmax(ascending, -1), -1)
    tail = ((mass <= 1.0 - top_p) & (top_p < 1.0)).at[:, -1].set(False)
    remove = tail | (ascending == -jnp.inf)
    rank = jnp.argsort(order, axis=-1)  # by rank, not by value: of tied tokens some may be in the tail
    return jnp.where(jnp.take_along_axis(remove, rank, -1), -jnp.inf, logits)


def _column(value: RowSetting, logits: TokenLogits, dtype: DTypeLike) -> Num[Array, "b 1"]:
    return jnp.broadcast_to(jnp.asarray(value, dtype), logits.shape[:1])[:, None]


def choose(
    keys: Keys,
    logits: TokenLogits,
    temperature: RowSetting,
    top_k: RowSetting,
    top_p: RowSetting,
) -> Int[Array, "b"]:
    """One token per row, drawn with that row's own key; temperature 0 takes the most likely."""
    greedy = jnp.argmax(logits, -1).astype(jnp.int32)
    if not isinstance(temperature, jax.Array) and temperature == 0:
        return greedy
    temperature = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), greedy.shape)
    is_greedy = temperature == 0
    warped = warp_logits(logits, jnp.where(is_greedy, 1.0, temperature), top_k, top_p)
    drawn = jax.vmap(jax.random.categorical)(keys, warped).astype(jnp.int32)
    return jnp.where(is_greedy, greedy, drawn)


def start(cache: Any, ended: Bool[Array, "b"], max_len: int, constraint: Constraint | None) -> Decoding:
    """Before the first position; `cache` is an empty one for `max_len` positions, rows that have `ended` stay empty."""
    (rows,), zeros = ended.shape, jnp.zeros_like(ended, jnp.int32)
    parser = None if constraint is None else constraint.start(rows)
    return Decoding(
        index=jnp.zeros((), jnp.int32),
        token=zeros,
        tokens=jnp.zeros((rows, max_len), jnp.int32),
        ended=ended,
        cache=cache,
        parser=parser,
    )


def sample_next(
    step: Step[Cache],
    state: Decoding,
    keys: Keys,
    forced: Tokens,
    constraint: Constraint | None,
    *,
    temperature: RowSetting,
    top_k: RowSetting,
    top_p: RowSetting,
) -> Decoding:
    """One more token of each row that has not ended; the arguments are those of `sample_tokens`."""
    index, token, tokens, ended, cache, parser = state
    _, logits, cache = step(token, index, cache)
    if constraint is not None:
        logits, reached = constraint.restrict(parser, logits, tokens.shape[1] - index)
    drawn = choose(jax.vmap(jax.random.fold_in, (0, None))(keys, index), logits, temperature, top_k, top_p)
    drawn = jnp.where(forced[:, index] != PAD, forced[:, index], drawn)
    drawn = jnp.where(ended, PAD, drawn)
    if constraint is not None:
        parser = constraint.advance(parser, reached, drawn)
    return Decoding(index + 1, drawn, tokens.at[:, index].set(drawn), ended | (drawn == EOS), cache, parser)


def sample_tokens(
    step: Step[Cache],
    cache: Cache,
    keys: Keys,
    *,
    max_len: int,
    temperature: RowSetting = 1.0,
    top_k: RowSetting = 0,
    top_p: RowSetting = 1.0,
    prefix: Int[Array, "b n"] | None = None,
    constraint: Constraint | None = None,
) -> Tokens:
    """Samples token ids (B, max_len), eos included and padded with 0 after it.

    Args:
      step: of the prior.
      cache: an empty cache for `max_len` positions.
      keys: one random key for each row; row i depends only on its key and its inputs.
      max_len: number of positions; a row without eos by then is cut off.
      temperature: 0 = greedy; otherwise see `warp_logits`.
      top_k: see `warp_logits`.
      top_p: see `warp_logits`.
      prefix: ids that are forced where they are not 0 (a locked segment); rows may lock different lengths.
      constraint: masks the logits before temperature; every row then ends within `max_len`. The caller must check that
        a forced prefix satisfies it.
    """
    rows = keys.shape[0]
    forced = jnp.zeros((rows, max_len), jnp.int32)
    if prefix is not None:
        forced = forced.at[:, : prefix.shape[1]].set(prefix[:, :max_len])
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return jax.lax.while_loop(
        lambda state: (state.index < max_len) & ~state.ended.all(),
        lambda state: sample_next(step, state, keys, forced, constraint, **settings),
        start(cache, jnp.zeros(rows, bool), max_len, constraint),
    ).tokens


def shift_right(tokens: Int[Array | np.ndarray, "*b t"]) -> Int[Array | np.ndarray, "*b t"]:
    """Decoder inputs for given targets (numpy or JAX): a PAD in front, the last target dropped."""
    xp = tokens.__array_namespace__()
    return xp.concat([xp.full_like(tokens[..., :1], PAD), tokens[..., :-1]], axis=-1)
