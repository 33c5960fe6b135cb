"""Statistics of which modes were drawn how often, beside the true shares."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Shares = Float[np.ndarray, "n"]  # of n modes; sum to 1
Counts = Int[np.ndarray, "n"]

FOUND_FROM = 0.01  # share of the samples from which a mode counts as found, if its own is not below twice that; fewer
# may be errors of the reader
_DRAWS = 400  # of simulated samples


def shares_of(values: Iterable[int], number: int) -> Shares:
    """Share of each of the values 0..number - 1; there must be a value."""
    counts = np.bincount(np.fromiter(values, np.int64), minlength=number)
    return counts / counts.sum()


def entropy(shares: Shares) -> float:
    """In nats; shares that were counted in few samples give a little too little."""
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum()) + 0.0  # no -0.0


def effective_number(shares: Shares) -> float:
    """exp(entropy): the number of equally frequent modes with the same entropy; 1 for a single mode."""
    return float(np.exp(entropy(shares)))


def modes_found(shares: Shares, true: Shares) -> int:
    """How many modes have at least FOUND_FROM of the samples, or half of their true shares if that is less."""
    return int(((shares > 0) & (shares >= np.minimum(FOUND_FROM, true / 2))).sum())


def total_variation(shares: Shares, true: Shares) -> float:
    """Half the L1 distance: 0 for equal shares, 1 for disjoint ones."""
    return float(np.abs(shares - true).sum() / 2)


def of_exact_sampling(true: Shares, number: int) -> dict[str, float]:
    """Means of effective number and total variation over simulated draws of `number` samples with the true shares.

    What a perfect model gets: few samples make the effective number a little too small and the distance positive.
    """
    draws = np.random.default_rng(0).multinomial(number, true, size=_DRAWS) / number
    return {
        "effective_number": float(np.mean([effective_number(draw) for draw in draws])),
        "total_variation": float(np.mean([total_variation(draw, true) for draw in draws])),
    }


def counts_of(found: Sequence[int], true: Shares) -> dict[str, Any]:
    """The hidden modes among some samples of one caption, whose true shares are known.

    `shares` of the modes, `modes_found`, `effective_number`, beside it the true shares' own (`_true`) and the mean of
    as many samples of a perfect model (`_exact`), `total_variation` from the true shares, with the same mean; None
    where there is no sample.

    Args:
      found: the mode of each sample, 0..n-1; samples of none of them left out.
      true: shares of the modes.
    """
    shares = shares_of(found, len(true)) if found else None
    exact = of_exact_sampling(true, len(found)) if found else {}
    return {
        "modes_found": modes_found(shares, true) if found else 0,
        "effective_number": effective_number(shares) if found else None,
        "effective_number_exact": exact.get("effective_number"),
        "effective_number_true": effective_number(true),
        "total_variation": total_variation(shares, true) if found else None,
        "total_variation_exact": exact.get("total_variation"),
        "shares": shares.tolist() if found else None,
    }
