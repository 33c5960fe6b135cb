"""Statistics of sampled latents as sequences: share that parses, length, repetition, variety.

n-grams are over tokens, including eos, separators and "#", so compare only runs with the same segments.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from kaleido_jax.sampling.tokens import SampledLatents


def latents_report(rows: Sequence[SampledLatents]) -> dict[str, float | None]:
    """`latents_parsed`, `latents_tokens`, `latents_repetition` and `latents_distinct_1` to `_3` of some samples."""
    return {
        "latents_parsed": parse_rate(rows),
        "latents_tokens": mean_tokens(rows),
        "latents_repetition": repetition(rows),
        **{f"latents_distinct_{n}": distinct(rows, n) for n in (1, 2, 3)},
    }


def parse_rate(rows: Sequence[SampledLatents]) -> float:
    """Share of samples that the grammar reads; 1 by construction with `sample.grammar`."""
    return float(np.mean([row.latents is not None for row in rows]))


def mean_tokens(rows: Sequence[SampledLatents]) -> float:
    """Mean length in tokens, eos included; a sample that was cut off counts with its length so far."""
    return float(np.mean([len(row.tokens) for row in rows]))


def repetition(rows: Sequence[SampledLatents], n: int = 4) -> float | None:
    """1 - distinct / all n-grams within a sample, mean over samples (seq-rep-n of Welleck et al. 2020).

    None if no sample has n tokens.
    """
    each = [ngrams(row.tokens, n) for row in rows]
    shares = [1 - len(np.unique(found, axis=0)) / len(found) for found in each if len(found)]
    return float(np.mean(shares)) if shares else None


def distinct(rows: Sequence[SampledLatents], n: int) -> float | None:
    """distinct / all n-grams over all samples together (distinct-n of Li et al. 2016).

    It falls with the number of samples; compare equal numbers. None if no sample has n tokens.
    """
    every = np.concatenate([ngrams(row.tokens, n) for row in rows])
    return len(np.unique(every, axis=0)) / len(every) if len(every) else None


def ngrams(tokens: Sequence[int], n: int) -> Int[np.ndarray, "m n"]:
    """Every run of n tokens; none if there are fewer."""
    if len(tokens) < n:
        return np.zeros((0, n), np.int64)
    return np.lib.stride_tricks.sliding_window_view(np.asarray(tokens, np.int64), n)
