"""Sampling z from the prior: one while-loop with a preallocated cache, stopped when every row has ended."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from kaleido_jax.models.t5 import EOS, PAD

Cache = Any  # a pytree that `step` takes and gives back
StepFn = Callable[[Array, Array, Cache], tuple[Array, Array, Cache]]


class Constraint(Protocol):
    """What keeps a row within a grammar; `latents.constrain` has the one for z."""

    def start(self, rows: int):
        """The place of each row before its first token."""

    def restrict(self, place, logits, positions_left):
        """(logits with -inf for what may not follow, what `advance` needs of it)."""

    def advance(self, place, reached, token):
        """The place behind one token a row."""


def warp_logits(logits: Float[Array, "b v"], temperature, top_k=0, top_p=1.0) -> Float[Array, "b v"]:
    """Temperature, then top-k, then top-p; tokens that are out get -inf (Hugging Face's order).

    `top_p` keeps the smallest head of the distribution whose mass reaches p, at least one token. Off values:
    temperature 1, top_k 0, top_p 1. Numbers hold for every row and cost nothing where off; arrays (b,) hold one
    value a row and always cost one sort.
    """
    if any(isinstance(given, jax.Array) for given in (temperature, top_k, top_p)):
        return _warp_rows(logits, temperature, top_k, top_p)
    logits = logits.astype(jnp.float32) / temperature
    if 0 < top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p < 1.0:
        order = jnp.argsort(logits, axis=-1)  # ascending: the tail whose mass is <= 1 - p is removed
        mass = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, -1), -1), -1)
        remove = (mass <= 1.0 - top_p).at[:, -1].set(False)
        rank = jnp.argsort(order, axis=-1)
        logits = jnp.where(jnp.take_along_axis(remove, rank, -1), -jnp.inf, logits)
    return logits


def _warp_rows(logits, temperature, top_k, top_p):
    rows, size = logits.shape
    column = lambda given, dtype: jnp.broadcast_to(jnp.asarray(given, dtype), (rows,))[:, None]  # noqa: E731
    temperature, top_p = column(temperature, jnp.float32), column(top_p, jnp.float32)
    top_k = column(top_k, jnp.int32)
    logits = logits.astype(jnp.float32) / temperature
    order = jnp.argsort(logits, axis=-1)
    ascending = jnp.take_along_axis(logits, order, -1)
    kth = jnp.take_along_axis(ascending, jnp.clip(size - top_k, 0, size - 1), -1)
    ascending = jnp.where((top_k > 0) & (ascending < kth), -jnp.inf, ascending)
    mass = jnp.cumsum(jax.nn.softmax(ascending, -1), -1)
    tail = ((mass <= 1.0 - top_p) & (top_p < 1.0)).at[:, -1].set(False)
    remove = tail | (ascending == -jnp.inf)
    rank = jnp.argsort(order, axis=-1)
    return jnp.where(jnp.take_along_axis(remove, rank, -1), -jnp.inf, logits)


def choose(keys: Key[Array, "b"], logits: Float[Array, "b v"], temperature, top_k, top_p) -> Int[Array, "b"]:
    """One token a row, drawn with that row's own key; temperature 0 takes the most likely."""
    if isinstance(temperature, jax.Array):
        greedy = temperature == 0
        warped = warp_logits(logits, jnp.where(greedy, 1.0, temperature), top_k, top_p)
        drawn = jax.vmap(jax.random.categorical)(keys, warped)
        return jnp.where(greedy, jnp.argmax(logits, -1), drawn).astype(jnp.int32)
    if temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    warped = warp_logits(logits, temperature, top_k, top_p)
    return jax.vmap(jax.random.categorical)(keys, warped).astype(jnp.int32)


def sample_tokens(
    step: StepFn,
    cache: Cache,
    keys: Key[Array, "b"],
    *,
    max_len: int,
    temperature: float | Float[Array, "b"] = 1.0,
    top_k: int | Int[Array, "b"] = 0,
    top_p: float | Float[Array, "b"] = 1.0,
    prefix: Int[Array, "b n"] | None = None,
    constraint: Constraint | None = None,
) -> Int[Array, "b n"]:
    """Samples token ids (B, max_len), eos included and padded with 0 behind it.

    Args:
      step: (token (B,), index, cache) -> (state, float32 logits (B, rows), cache).
      cache: an empty cache for `max_len` positions.
      keys: one random key a row; row i depends on nothing but its key and its inputs.
      max_len: number of positions; a row without eos by then ends cut off.
      temperature: 0 = greedy; as `top_k` and `top_p`, one number or one a row.
      top_k: keep this many tokens; 0 = all.
      top_p: keep this mass; 1 = all.
      prefix: ids that are forced where they are not 0 (a locked segment); rows may lock different lengths.
      constraint: masks the logits before temperature; every row then ends within `max_len`. A forced prefix must
        keep to it, which is the caller's to check.
    """
    rows = keys.shape[0]
    forced = jnp.zeros((rows, max_len), jnp.int32)
    if prefix is not None:
        forced = forced.at[:, : prefix.shape[1]].set(prefix[:, :max_len])

    def unfinished(carry):
        index, _, _, ended, _, _ = carry
        return (index < max_len) & ~ended.all()

    def body(carry):
        index, token, tokens, ended, cache, place = carry
        _, logits, cache = step(token, index, cache)
        if constraint is not None:
            logits, reached = constraint.restrict(place, logits, max_len - index)
        drawn = choose(jax.vmap(jax.random.fold_in, (0, None))(keys, index), logits, temperature, top_k, top_p)
        drawn = jnp.where(forced[:, index] != PAD, forced[:, index], drawn)
        drawn = jnp.where(ended, PAD, drawn)
        if constraint is not None:
            place = constraint.advance(place, reached, drawn)
        return index + 1, drawn, tokens.at[:, index].set(drawn), ended | (drawn == EOS), cache, place

    place = constraint.start(rows) if constraint is not None else None
    start = (jnp.zeros((), jnp.int32), jnp.zeros(rows, jnp.int32), forced * 0, jnp.zeros(rows, bool), cache, place)
    return jax.lax.while_loop(unfinished, body, start)[2]


def shift_right(tokens: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """Decoder inputs of given targets: a PAD in front, the last one dropped."""
    return jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
