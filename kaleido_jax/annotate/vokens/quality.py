"""Quantizer metrics: how much of the features the codes keep, and how well they use the codebook."""

import numpy as np
from jaxtyping import Float, Int

from kaleido_jax.annotate.vokens.quantizer import Quantizer
from kaleido_jax.errors import user_error


def quality(quantizer: Quantizer, features: Float[np.ndarray, "n f"]) -> dict[str, list[float]]:
    """How well it fits these features, one value per token.

    Root mean squared error and explained variance (up to 1) after each token; share of used codes (0..1) and
    perplexity (1..codebook_size) of each token.
    """
    codes = quantizer.encode(features)
    errors = [np.mean((quantizer.decode(codes[:, : level + 1]) - features) ** 2) for level in range(codes.shape[1])]
    counts = np.stack([np.bincount(column, minlength=quantizer.codebook_size) for column in codes.T])
    share = counts / len(features)
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1)), axis=1)
    return {
        "rmse": [float(np.sqrt(error)) for error in errors],
        "explained_variance": [float(1 - error / features.var(axis=0).mean()) for error in errors],
        "codes_used": [float(np.mean(row > 0)) for row in counts],
        "perplexity": [float(np.exp(value)) for value in entropy],
    }


def retrieval(quantizer: Quantizer, features: Float[np.ndarray, "n f"]) -> dict[str, float]:
    """How well codes replace features in image retrieval; shares 0..1, best measured on images not used for fitting.

    neighbor_recall: share of images whose nearest other image is the same by decoded codes as by features.
    identity_recall: share of images whose nearest decoded codes are their own.

    Raises:
      UserError: fewer than 3 images, for which this is meaningless.
    """
    if len(features) < 3:
        raise user_error(f"{len(features)} images", "at least 3", "use more")
    decoded = quantizer.decode(quantizer.encode(features))
    by_feature, by_code = (_nearest(x, x, exclude_self=True) for x in (features, decoded))
    own = _nearest(features, decoded) == np.arange(len(features))
    return {"neighbor_recall": float(np.mean(by_feature == by_code)), "identity_recall": float(own.mean())}


def _nearest(
    queries: Float[np.ndarray, "n f"], gallery: Float[np.ndarray, "m f"], exclude_self: bool = False
) -> Int[np.ndarray, "n"]:
    # The squared distance minus the query's own square.
    distance = np.sum(gallery**2, axis=1) - 2 * queries @ gallery.T
    if exclude_self:
        np.fill_diagonal(distance, np.inf)
    return np.argmin(distance, axis=1)
