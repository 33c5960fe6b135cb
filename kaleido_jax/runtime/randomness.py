"""Random keys: every draw is a function of (seed, purpose, step, sample index); no key is stored or passed on."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key


def purpose_key(seed: int, purpose: str) -> Key[Array, ""]:
    """A key for one purpose, e.g. "noise"; the name is hashed with CRC-32, which is the same everywhere."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()) & 0x7FFFFFFF)


def sample_keys(
    seed: int, purpose: str, step: ArrayLike, indices: Int[Array, "b"] | Int[np.ndarray, "b"]
) -> Key[Array, "b"]:
    """One key for each sample index at a step."""
    key = jax.random.fold_in(purpose_key(seed, purpose), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(indices))
