"""Whether samples show what was asked for: accuracy of a classifier, and CLIP score."""

import numpy as np
from jaxtyping import Float, Int

from kaleido_jax.errors import user_error


def accuracy(logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, "_"], top: int = 1) -> float:
    """The share of samples whose class is among the `top` most probable ones.

    Raises:
      UserError: no samples, another number of labels, labels beyond the classes, or logits that are not finite.
    """
    number, classes = logits.shape
    if not number or len(labels) != number or not (labels.min() >= 0 and labels.max() < classes) or top > classes:
        found = f"{len(labels)} labels of {number} samples and {classes} classes, top {top}"
        raise user_error(found, f"a label 0..{classes - 1} of each sample", "check the labels")
    if not np.isfinite(logits).all():  # nothing is at least as large as a NaN, so it would count as right
        found = f"logits of {number} samples, some of them not finite"
        raise user_error(found, "finite logits", "check the images and the weights of the classifier")
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    # Equal logits count against the sample: a classifier that says nothing is not right.
    return float(((logits >= own).sum(axis=1) <= top).mean())


def clip_score(images: Float[np.ndarray, "_ _"], texts: Float[np.ndarray, "_ _"]) -> float:
    """100 times the mean of max(cosine, 0) of each image and its own text, embedded by one CLIP.

    The form of Hessel et al., 2021 (arXiv:2104.08718), who scale by 2.5 instead of 100.

    Raises:
      UserError: another number of texts than images, none, other widths, or embeddings that are not finite or zero.
    """
    if images.shape != texts.shape or not len(images):
        found = f"embeddings of images {images.shape} and texts {texts.shape}"
        raise user_error(found, "one text for each image, by one model", "give the caption of each sample")
    x, y = images.astype(np.float64), texts.astype(np.float64)
    norms = np.stack([np.linalg.norm(one, axis=1) for one in (x, y)])
    if not (np.isfinite(norms) & (norms > 0)).all():
        found = f"{len(x)} pairs of embeddings, {int((norms == 0).any(axis=0).sum())} of them with one of norm zero"
        raise user_error(found, "finite embeddings of norm above zero", "check the images, the captions and the model")
    cosine = (x * y).sum(axis=1) / norms.prod(axis=0)
    return float(100 * np.maximum(cosine, 0).mean())
