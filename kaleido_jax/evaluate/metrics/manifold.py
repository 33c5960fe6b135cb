"""Precision, recall, density and coverage: balls around each image that reach to its k-th nearest neighbor."""

from dataclasses import dataclass

import numpy as np

from kaleido_jax.errors import user_error
from kaleido_jax.evaluate.metrics.neighbors import Blocks, Rows, distinct, inside, squared_radii

NEAREST = 3  # k of Kynkaanniemi et al.; density and coverage were proposed with 5


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """Shares of two sets that cover each other."""

    precision: float  # samples inside the ball of some real image
    recall: float  # real images inside the ball of some sample
    density: float  # real balls that a sample is in, on average, divided by k; may be above 1
    coverage: float  # real images with a sample inside their own ball


def manifold(real: Rows, samples: Rows, k: int = NEAREST) -> Manifold:
    """All four for features of real images and of samples, exactly.

    Balls include their surface, as in precision's and recall's paper and in torch-fidelity, so a set has 1 against
    itself even where images repeat. For density alone they do not, as in its authors' code, so that it has 1, too.

    Source: Kynkaanniemi et al., 2019 (arXiv:1904.06991); Naeem et al., 2020 (arXiv:2002.09797).

    Raises:
      UserError: features of different widths, fewer than k + 1 images on a side, or features that are not finite.
    """
    if real.shape[1] != samples.shape[1]:
        found = f"features of width {real.shape[1]} and {samples.shape[1]}"
        raise user_error(found, "one extractor for both sets", "extract one of them again")
    a, b = distinct(real, "real images"), distinct(samples, "samples")
    # Near the middle of both sets, rounded products lose least.
    center = np.float32((a.rows.mean(axis=0, dtype=np.float64) + b.rows.mean(axis=0, dtype=np.float64)) / 2)
    blocks_a, blocks_b = Blocks(a, center), Blocks(b, center)
    found = inside(blocks_a, blocks_b, squared_radii(blocks_a, k), squared_radii(blocks_b, k))
    return Manifold(
        precision=float(found.b_in_a @ b.counts) / b.total,
        recall=float(found.a_in_b @ a.counts) / a.total,
        density=found.open_pairs / (k * b.total),
        coverage=float(found.a_reached @ a.counts) / a.total,
    )
