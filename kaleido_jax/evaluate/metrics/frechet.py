"""The Frechet distance between Gaussians with the mean and covariance of two sets of features.

On the features of Inception-v3 in the form of FID it is FID; on those of any other network it is not, and is never
called so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64

from kaleido_jax.errors import user_error
from kaleido_jax.interop.files.npz import Npz
from kaleido_jax.runtime.files import replacing

Rows = Float[np.ndarray, "_ _"]  # features of a set, one row for each image
CHUNK = 4096  # rows whose products are summed at once
PRECISION = 1e-9  # of the distance, as a share of the traces


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Number, mean and scatter of features seen so far; of any number of them in the memory of one d x d matrix."""

    count: int
    mean: Float64[np.ndarray, "d"]
    scatter: Float64[np.ndarray, "d d"]  # sum of (x - mean) (x - mean)^T

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """With n - 1 in the denominator."""
        return self.scatter / (self.count - 1)

    def __add__(self, other: "Moments") -> "Moments":
        """Of both sets together (Chan et al., 1983), so that shards and batches can be measured apart."""
        count = self.count + other.count
        apart = other.mean - self.mean
        between = np.outer(apart, apart * (self.count * other.count / count))
        mean = self.mean + apart * (other.count / count)
        return Moments(count=count, mean=mean, scatter=self.scatter + other.scatter + between)

    def save(self, path: Path) -> None:
        """Writes a .npz file, e.g. of a training set, which is then measured once."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, count=self.count, mean=self.mean, scatter=self.scatter)


def load_moments(path: Path) -> Moments:
    """What `save` wrote.

    Raises:
      UserError: damaged, or not such a file.
    """
    file = Npz(path)
    if set(file.names) != {"count", "mean", "scatter"}:
        raise user_error(f"{path} with {', '.join(file.names)}", "count, mean and scatter", "measure the set again")
    count, mean, scatter = (file.read(name) for name in ("count", "mean", "scatter"))
    finite = all(np.isfinite(one).all() for one in (count, mean, scatter))
    if count.ndim or mean.ndim != 1 or scatter.shape != mean.shape * 2 or not finite:
        found = f"{path} with a mean of {mean.shape} and a scatter of {scatter.shape}" + ", not all finite" * (
            not finite
        )
        raise user_error(found, "finite moments of one width", "measure the set again")
    return Moments(count=int(count), mean=mean, scatter=scatter)


def _is_finite(found: Moments) -> bool:
    return bool(np.isfinite(found.mean).all() and np.isfinite(found.scatter).all())


def moments(parts: Rows | Iterable[Rows]) -> Moments:
    """In float64, of features at once or of a stream of them.

    Raises:
      UserError: no features, or some that are not finite.
    """
    total: Moments | None = None
    for part in [parts] if isinstance(parts, np.ndarray) else parts:
        for start in range(0, len(part), CHUNK):
            rows = part[start : start + CHUNK].astype(np.float64)
            mean = rows.mean(axis=0)
            rows -= mean
            found = Moments(count=len(rows), mean=mean, scatter=rows.T @ rows)
            total = found if total is None else total + found
    if total is None or not _is_finite(total):
        found = "no features" if total is None else "features that are not finite"
        raise user_error(found, "finite features of some images", "check the images and the weights of the extractor")
    return total


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)) for covariances A and B.

    With A = L L^T and B = M M^T the last trace is the sum of the singular values of L^T M. No root is taken of a matrix
    that rounding made indefinite or complex, and directions in which a set does not vary (fewer images than features)
    add nothing, where roots of rounded zeros would add 1e-8 each.

    Raises:
      UserError: features of different widths, fewer than two images on a side, or moments that are not finite.
    """
    if len(a.mean) != len(b.mean):
        found = f"features of width {len(a.mean)} and {len(b.mean)}"
        raise user_error(found, "one extractor for both sets", "measure one of them again")
    if min(a.count, b.count) < 2:
        raise user_error(f"{min(a.count, b.count)} images", "two or more on each side", "measure more images")
    if not (_is_finite(a) and _is_finite(b)):
        raise user_error("moments that are not finite", "those of finite features", "measure both sets again")
    apart, traces = a.mean - b.mean, np.trace(a.covariance) + np.trace(b.covariance)
    root = _nuclear_norm(_factor(a.covariance).T @ _factor(b.covariance), PRECISION * traces)
    return max(0.0, float(apart @ apart + traces - 2 * root))  # of equal sets, rounding leaves a little of either sign


def _factor(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d r"]:
    """L with L L^T = covariance of rank r: Cholesky's, with pivots unless the covariance is clearly of full rank."""
    smallest = len(covariance) * np.finfo(np.float64).eps * covariance.diagonal().max(initial=0)
    lower, failed = scipy.linalg.lapack.dpotrf(covariance, lower=1)
    if not failed and lower.diagonal().min(initial=1) ** 2 > smallest:
        return lower
    lower, pivots, rank, _ = scipy.linalg.lapack.dpstrf(covariance, lower=1)
    factor = np.zeros((len(covariance), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor


def _nuclear_norm(x: Float64[np.ndarray, "m n"], tolerance: float) -> float:
    """The sum of the singular values, as roots of the eigenvalues of x^T x if these are exact enough: half the time."""
    if not min(x.shape):
        return 0.0
    squares = scipy.linalg.eigvalsh(x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T)
    noise = np.finfo(np.float64).eps * squares[-1]
    roots = np.sqrt(np.maximum(squares, noise))
    if 2 * (noise / roots).sum() <= tolerance:
        return float(roots.sum())
    return float(scipy.linalg.svdvals(x).sum())
