"""How different the samples of one condition are: Vendi score and mean pairwise similarity of their features.

Both take the cosine of features as the similarity, need no real images, and are meant for many samples of one caption:
over a whole set, differences between captions would hide that each caption gives one image only.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64

from kaleido_jax.errors import user_error

Rows = Float[np.ndarray, "_ _"]  # features of a set, one row for each image


def vendi_score(rows: Rows) -> float:
    """exp of the entropy of the eigenvalues of K / n for similarities K: 1 for equal samples, n for orthogonal ones.

    Source: Friedman and Dieng, 2023 (arXiv:2210.02410).

    Raises:
      UserError: no samples, or features of norm zero.
    """
    x = _unit(rows) / np.sqrt(len(rows))
    # x x^T and x^T x have the same eigenvalues but zeros.
    values = scipy.linalg.eigvalsh(x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x)
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def mean_similarity(rows: Rows) -> float:
    """The mean cosine of all pairs of different samples: 1 for equal ones; in time linear in their number.

    Raises:
      UserError: fewer than two samples, or features of norm zero.
    """
    if len(rows) < 2:
        raise user_error(f"{len(rows)} samples of a condition", "two or more", "draw more samples of each caption")
    total, number = _unit(rows).sum(axis=0), len(rows)
    return float((total @ total - number) / (number * (number - 1)))


def by_condition(measure: Callable[[Rows], float], rows: Rows, conditions: Sequence[Hashable]) -> dict[Any, float]:
    """A measure of the samples of each condition, in the order in which conditions first occur.

    Args:
      measure: e.g. `vendi_score`.
      rows: features of all samples.
      conditions: of each sample, e.g. its caption or class.

    Raises:
      UserError: another number of conditions than of samples, and what `measure` raises.
    """
    if len(conditions) != len(rows):
        found = f"{len(conditions)} conditions of {len(rows)} samples"
        raise user_error(found, "one of each sample", "give the captions in the order of the samples")
    places: dict[Any, list[int]] = {}
    for place, condition in enumerate(conditions):
        places.setdefault(condition, []).append(place)
    return {condition: measure(rows[found]) for condition, found in places.items()}


def _unit(rows: Rows) -> Float64[np.ndarray, "n d"]:
    x = rows.astype(np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", x, x))
    if not len(x) or not (np.isfinite(norms) & (norms > 0)).all():
        found = f"{len(x)} features, {int((norms == 0).sum())} of norm zero"
        raise user_error(found, "finite features of norm above zero", "check the images and the extractor")
    return x / norms[:, None]
