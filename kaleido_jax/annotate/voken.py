"""Vokens of the fashion annotator: a residual quantiser (PCA, then one k-means codebook a level).

Token k of an image refines what tokens 0..k-1 say about the garment's appearance. It stands where the paper
has a pretrained image tokeniser, and is small enough to be fitted in a few seconds.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy.cluster.vq import vq

from kaleido_jax.data.records import write_atomically
from kaleido_jax.data.sources import open_source
from kaleido_jax.errors import user_error

log = logging.getLogger(__name__)

FEATURE_SIDE_PX = 16
FOREGROUND_FROM = 16  # tones 0..255 from which a pixel belongs to the garment; black is the background
_FIT_SEED = 0  # not the data's seed: training and test records must share one quantiser
_ARRAYS = ("mean", "components", "codebooks")
_KMEANS_ROUNDS = 20  # the error changes by less than 0.1 % after that


@dataclass(frozen=True, kw_only=True)
class ResidualQuantiser:
    """PCA and the codebooks of all levels."""

    mean: Float[np.ndarray, " f"]
    components: Float[np.ndarray, "d f"]
    codebooks: Float[np.ndarray, "levels codes d"]

    @property
    def num_tokens(self) -> int:
        """Vokens an image (levels)."""
        return self.codebooks.shape[0]

    @property
    def codebook_size(self) -> int:
        """Codes of one level."""
        return self.codebooks.shape[1]

    @cached_property
    def _norms(self):
        return np.sum(self.codebooks**2, axis=-1)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any number in it."""
        arrays = (np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS)
        return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]

    def encode(self, features: Float[np.ndarray, "n f"]) -> Int[np.ndarray, "n levels"]:
        """The codes of each feature vector, each 0..codebook_size-1, coarse to fine."""
        residual = (features - self.mean) @ self.components.T
        codes = np.empty((len(features), self.num_tokens), np.int64)
        for level, (codebook, norms) in enumerate(zip(self.codebooks, self._norms, strict=True)):
            # Squared distance less the residual's own square, which does not change the nearest code.
            codes[:, level] = np.argmin(norms - 2 * residual @ codebook.T, axis=1)
            residual = residual - codebook[codes[:, level]]
        return codes

    def decode(self, codes: Int[np.ndarray, "n k"]) -> Float[np.ndarray, "n f"]:
        """The feature vectors that the first k levels of codes stand for (k <= num_tokens)."""
        levels = np.arange(codes.shape[1])
        return self.codebooks[levels, codes].sum(axis=1) @ self.components + self.mean

    def save(self, path: Path, fitted_for: dict | None = None) -> None:
        """Writes a safetensors file; `fitted_for` (JSON) tells a reader on what it was fitted."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        told = {"fingerprint": self.fingerprint, "fitted_for": fitted_for or {}}
        # One metadata key only: safetensors writes several in random order, and equal files shall be equal.
        write_atomically(Path(path), save(arrays, metadata={"quantiser": json.dumps(told)}))


def load_quantiser(path: Path) -> tuple[ResidualQuantiser, dict]:
    """The quantiser and the `fitted_for` of a file that save() wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise user_error(f"no quantiser at {path}", "quantiser.safetensors beside the records", "run annotate")
    try:
        with safe_open(path, framework="numpy") as file:
            told = json.loads(file.metadata()["quantiser"])
            quantiser = ResidualQuantiser(**{name: file.get_tensor(name) for name in _ARRAYS})
        whole, fitted_for = told["fingerprint"] == quantiser.fingerprint, told["fitted_for"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path) from error
    if not whole:
        raise _damaged(path)
    return quantiser, fitted_for


def fit_quantiser(
    features: Float[np.ndarray, "n f"],
    *,
    num_tokens: int = 8,
    codebook: int = 64,
    dims: int = 32,
    seed: int = 0,
) -> ResidualQuantiser:
    """Fits PCA to `dims` dimensions and a codebook a level; same input, same bits on one machine.

    Raises:
      UserError: fewer distinct feature vectors than codes.
    """
    distinct = len(np.unique(features, axis=0))
    if distinct < codebook:
        raise user_error(f"{distinct} distinct images", f"at least {codebook}, one a code", "use more examples")
    mean = features.mean(axis=0)
    components = _principal(features - mean, min(dims, codebook, features.shape[1]))
    residual = (features - mean) @ components.T
    rng = np.random.default_rng(seed)
    codebooks = []
    for _ in range(num_tokens):
        codebooks.append(_kmeans(residual, codebook, rng))
        residual = residual - codebooks[-1][vq(residual, codebooks[-1], check_finite=False)[0]]
    return ResidualQuantiser(mean=mean, components=components, codebooks=np.stack(codebooks))


def fit_or_load(
    path: Path, *, source: str, image_size: int, num_tokens: int, codebook: int, fit_examples: int
) -> ResidualQuantiser:
    """The quantiser at `path`; if there is none, one is fitted on the training split and stored there.

    Raises:
      UserError: the one at `path` is damaged or was fitted for other arguments than these.
    """
    told = {
        "source": source,
        "image_size": image_size,
        "num_tokens": num_tokens,
        "codebook": codebook,
        "fit_examples": fit_examples,
    }
    if path.exists():
        quantiser, fitted_for = load_quantiser(path)
        if fitted_for != told:
            do = "use another folder, or delete this one's quantiser and records"
            raise user_error(f"{path} was fitted for {fitted_for}", f"{told}", do)
        return quantiser
    train = open_source(source, "train", num_examples=fit_examples, seed=_FIT_SEED, image_size=image_size)
    features = np.stack([appearance_features(train[i].image) for i in range(fit_examples)])
    quantiser = fit_quantiser(features, num_tokens=num_tokens, codebook=codebook, seed=_FIT_SEED)
    quantiser.save(path, told)
    fit = quality(quantiser, features)
    log.info("quantiser: explains %.1f %% of the variance", 100 * fit["explained_variance"][-1])
    return quantiser


def appearance_features(image: UInt8[np.ndarray, "s s 3"]) -> Float[np.ndarray, "256"]:
    """The garment without its place, size and tone: its box as 16x16 grey, 0..1 of its brightest tone.

    An image without foreground gives zeros.
    """
    grey = image.mean(axis=-1)
    mask = grey >= FOREGROUND_FROM
    if not mask.any():
        return np.zeros(FEATURE_SIDE_PX**2)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    crop = grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] / grey.max()
    small = Image.fromarray(crop.astype(np.float32)).resize((FEATURE_SIDE_PX,) * 2, Image.Resampling.BILINEAR)
    return np.asarray(small, np.float64).ravel()


def quality(quantiser: ResidualQuantiser, features: Float[np.ndarray, "n f"]) -> dict:
    """How well it fits these features, one value a level.

    Root mean squared error and explained variance (0..1) after each level; share of used codes (0..1) and
    perplexity (1..codebook_size) of each level.
    """
    codes = quantiser.encode(features)
    errors = [np.mean((quantiser.decode(codes[:, : level + 1]) - features) ** 2) for level in range(codes.shape[1])]
    counts = np.stack([np.bincount(column, minlength=quantiser.codebook_size) for column in codes.T])
    share = counts / len(features)
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1)), axis=1)
    return {
        "rmse": [float(np.sqrt(error)) for error in errors],
        "explained_variance": [float(1 - error / features.var(axis=0).mean()) for error in errors],
        "codes_used": [float(np.mean(row > 0)) for row in counts],
        "perplexity": [float(np.exp(value)) for value in entropy],
    }


def _damaged(path):
    return user_error(f"{path} is damaged", "a quantiser written by annotate", "delete it and run annotate again")


def _principal(centred, dims):
    components = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :dims].T
    # An eigenvector's sign is arbitrary; fix it, so that the same data give the same quantiser.
    largest = components[np.arange(dims), np.abs(components).argmax(axis=1)]
    return np.ascontiguousarray(components * np.sign(largest)[:, None])  # safetensors needs C order


def _kmeans(points, num_codes, rng):
    centres = points[rng.choice(len(points), num_codes, replace=False)]
    for _ in range(_KMEANS_ROUNDS):
        nearest, distance = vq(points, centres, check_finite=False)
        counts = np.bincount(nearest, minlength=num_codes)
        sums = np.stack([np.bincount(nearest, column, minlength=num_codes) for column in points.T], axis=1)
        centres = sums / np.maximum(counts, 1)[:, None]
        # A code nobody uses moves to one of the worst served points.
        empty = np.flatnonzero(counts == 0)
        centres[empty] = points[np.argsort(distance, kind="stable")[::-1][: len(empty)]]
    return centres
