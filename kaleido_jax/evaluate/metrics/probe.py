"""A linear probe: a classifier on the features of a network, for classes that the network itself does not know."""

from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float, Float64, Int

from kaleido_jax.errors import user_error

DECAY = 1e-3  # of the squared weights, on features of mean 0 and deviation 1


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Logistic regression over several classes."""

    weight: Float64[np.ndarray, "d classes"]
    bias: Float64[np.ndarray, "classes"]

    def __call__(self, rows: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n classes"]:
        """Logits of features."""
        return rows.astype(np.float64) @ self.weight + self.bias


def fit_probe(rows: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], classes: int) -> Probe:
    """The probe with the least regularized loss, which is unique.

    Args:
      rows: features of real images.
      labels: 0..classes-1 of each.
      classes: their number; each must occur.

    Raises:
      UserError: labels beyond the classes, or a class without an image.
    """
    counts = np.bincount(labels, minlength=classes)
    if len(counts) > classes or not counts.all() or labels.min() < 0:
        found = f"{len(labels)} labels of {classes} classes, {int((counts == 0).sum())} of them without an image"
        raise user_error(found, "labels of every class", "add images, or leave the class out")
    x = rows.astype(np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    scale = 1 / np.where(deviation > 0, deviation, 1)  # a constant feature says nothing
    x = (x - mean) * scale
    target = np.eye(classes)[labels]
    width = x.shape[1]

    def loss(flat: Float64[np.ndarray, "m"]) -> tuple[float, Float64[np.ndarray, "m"]]:
        weight, bias = flat[: width * classes].reshape(width, classes), flat[width * classes :]
        logits = x @ weight + bias
        log_p = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
        error = (np.exp(log_p) - target) / len(x)
        value = -(target * log_p).sum() / len(x) + DECAY / 2 * (weight**2).sum()
        return value, np.concatenate([(x.T @ error + DECAY * weight).ravel(), error.sum(axis=0)])

    start = np.zeros(width * classes + classes)
    flat = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    weight = flat[: width * classes].reshape(width, classes) * scale[:, None]
    return Probe(weight=weight, bias=flat[width * classes :] - mean @ weight)
