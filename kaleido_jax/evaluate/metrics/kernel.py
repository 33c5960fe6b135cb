"""The kernel distance: an unbiased squared maximum mean discrepancy with a cubic kernel, over subsets.

On the features of Inception-v3 in the form of FID it is KID. Unlike a Frechet distance it has no bias from the number
of images, so sets of different sizes can be compared; of equal distributions it is 0 on average and may be negative.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from kaleido_jax.errors import user_error

SUBSETS, SUBSET_SIZE = 100, 1000  # of KID's paper's code
Rows = Float[np.ndarray, "_ _"]  # features of a set, one row for each image


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """Mean and standard deviation over the subsets."""

    mean: float
    std: float


def kernel_distance(
    real: Rows, samples: Rows, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0
) -> KernelDistance:
    """The mean over random subsets of both sets, in float64. The subsets do not depend on the order of the images.

    Source: Binkowski et al., 2018 (arXiv:1801.01401).

    Args:
      real: features of real images.
      samples: features of samples.
      subsets: how many.
      subset_size: images of each set in a subset.
      seed: of the subsets.

    Raises:
      UserError: features of different widths or that are not finite, or fewer images than a subset has.
    """
    if not (np.isfinite(real).all() and np.isfinite(samples).all()):
        do = "check the images and the weights of the extractor"
        raise user_error("features that are not finite", "finite features of some images", do)
    if real.shape[1] != samples.shape[1]:
        found = f"features of width {real.shape[1]} and {samples.shape[1]}"
        raise user_error(found, "one extractor for both sets", "extract one of them again")
    if subset_size < 2 or min(len(real), len(samples)) < subset_size:
        found = f"{len(real)} real images and {len(samples)} samples in subsets of {subset_size}"
        raise user_error(
            found, "subsets of at least 2 that both sets can fill", "measure more images or set subset_size"
        )
    a, b, rng = _in_order(real), _in_order(samples), np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        rows, columns = (rng.choice(len(x), subset_size, replace=False) for x in (a, b))
        found.append(_unbiased(a[rows].astype(np.float64), b[columns].astype(np.float64)))
    return KernelDistance(mean=float(np.mean(found)), std=float(np.std(found)))


def _in_order(rows: Rows) -> Rows:
    """Sorted by sums, which small errors of the features hardly change."""
    return rows[np.lexsort((np.einsum("nd,nd->n", rows, rows), rows.sum(axis=1, dtype=np.float64)))]


def _unbiased(x: Float64[np.ndarray, "m d"], y: Float64[np.ndarray, "m d"]) -> float:
    same = 0.0
    for one in (x, y):
        kernel = _cubic(one @ one.T, one.shape[1])
        same += (kernel.sum() - np.trace(kernel)) / (len(one) * (len(one) - 1))
    return float(same - 2 * _cubic(x @ y.T, x.shape[1]).mean())


def _cubic(products: Float64[np.ndarray, "m m"], width: int) -> Float64[np.ndarray, "m m"]:
    return (products / width + 1) ** 3
