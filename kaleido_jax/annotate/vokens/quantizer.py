"""Quantizers, feature vectors to vokens and back: PCA, then either residual codebooks or finite scalars.

In both, token k of an image refines tokens 0..k-1. They replace the paper's pretrained image tokenizer, and are fitted
in seconds on the data itself.
"""

import itertools
import json
import math
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy.cluster.vq import vq

from kaleido_jax.errors import user_error
from kaleido_jax.runtime.files import fingerprint, refuse_lfs_pointer, write_atomically

_KMEANS_ROUNDS = 20  # the error changes by less than 0.1 % after that
_FEWEST_LEVELS, _MOST_LEVELS = 5, 8  # of a finite scalar (Mentzer et al. 2023, section 4.1 and table 1)
# tanh(_NORMAL * z) is nearly 2 * Phi(z) - 1, so a normal coefficient uses all cells equally.
_NORMAL = math.sqrt(2 / math.pi)
_PCA_DIMS = 32  # that the residual quantizer keeps; the finite scalars keep as many as their tokens hold
_WIDE = 1024  # with more features PCA uses the products of the images, if these are fewer


@dataclass(frozen=True, kw_only=True)
class ResidualQuantizer:
    """PCA and the codebooks of all levels."""

    mean: Float[np.ndarray, " f"]
    components: Float[np.ndarray, "d f"]
    codebooks: Float[np.ndarray, "levels codes d"]

    @property
    def vokens_per_image(self) -> int:
        """Vokens per image (levels)."""
        return self.codebooks.shape[0]

    @property
    def codebook_size(self) -> int:
        """Codes of one level."""
        return self.codebooks.shape[1]

    @cached_property
    def _norms(self) -> Float[np.ndarray, "levels codes"]:
        return np.sum(self.codebooks**2, axis=-1)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any number in it."""
        return _fingerprint(_arrays(self))

    def encode(self, features: Float[np.ndarray, "n f"]) -> Int[np.ndarray, "n levels"]:
        """The codes of each feature vector, each 0..codebook_size-1, coarse to fine."""
        residual = (features - self.mean) @ self.components.T
        codes = np.empty((len(features), self.vokens_per_image), np.int64)
        for level, (codebook, norms) in enumerate(zip(self.codebooks, self._norms, strict=True)):
            # Squared distance minus the residual's own square, which does not change the nearest code.
            codes[:, level] = np.argmin(norms - 2 * residual @ codebook.T, axis=1)
            residual = residual - codebook[codes[:, level]]
        return codes

    def decode(self, codes: Int[np.ndarray, "n k"]) -> Float[np.ndarray, "n f"]:
        """The feature vectors that the first k levels of codes represent (k <= vokens_per_image)."""
        levels = np.arange(codes.shape[1])
        return self.codebooks[levels, codes].sum(axis=1) @ self.components + self.mean


@dataclass(frozen=True, kw_only=True)
class FiniteScalarQuantizer:
    """PCA, and a few levels for each coefficient (FSQ, Mentzer et al. 2023); a token holds some coefficients.

    Token 0 holds the coefficients of largest variance, and so on. Bounding and rounding are the paper's, but with cells
    of equal width: the paper's outermost cells are half as wide, which its trained encoder compensates and PCA would
    not. The mean coefficient of each cell replaces its trained decoder. There is no codebook to learn, so few images
    are enough.
    """

    mean: Float[np.ndarray, " f"]
    components: Float[np.ndarray, "d f"]
    scale: Float[np.ndarray, " d"]  # standard deviation of each coefficient
    levels: Int[np.ndarray, " m"]  # of the m coefficients in one token
    values: Float[np.ndarray, "d most"]  # the value of each level; zero beyond a coefficient's last

    @property
    def vokens_per_image(self) -> int:
        """Vokens per image."""
        return len(self.components) // len(self.levels)

    @property
    def codebook_size(self) -> int:
        """Values that one token can have: the product of its levels."""
        return math.prod(self.levels.tolist())

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any number in it."""
        return _fingerprint(_arrays(self))

    @property
    def _radix(self) -> Int[np.ndarray, " m"]:
        return np.concatenate([[1], np.cumprod(self.levels[:-1])])  # the paper's mixed radix

    def encode(self, features: Float[np.ndarray, "n f"]) -> Int[np.ndarray, "n tokens"]:
        """The codes of each feature vector, each 0..codebook_size-1."""
        cells = _cells((features - self.mean) @ self.components.T, self.scale, self.levels)
        return cells.reshape(len(features), self.vokens_per_image, -1) @ self._radix

    def decode(self, codes: Int[np.ndarray, "n k"]) -> Float[np.ndarray, "n f"]:
        """The feature vectors that the first k tokens of codes represent (k <= vokens_per_image)."""
        cells = (codes[..., None] // self._radix % self.levels).reshape(len(codes), -1)
        dims = np.arange(cells.shape[1])
        return self.values[dims, cells] @ self.components[: len(dims)] + self.mean


Quantizer = ResidualQuantizer | FiniteScalarQuantizer
_KINDS = {"residual": ResidualQuantizer, "fsq": FiniteScalarQuantizer}
KINDS = tuple(_KINDS)


def kind_of(quantizer: Quantizer) -> str:
    """One of KINDS."""
    return next(name for name, kind in _KINDS.items() if isinstance(quantizer, kind))


# --------------------------------------------------------------------------------------------- its file
def save_quantizer(quantizer: Quantizer, path: Path, fitted_for: dict[str, Any]) -> None:
    """Writes a safetensors file; `fitted_for` (JSON) says what the quantizer was fitted on."""
    metadata = {"kind": kind_of(quantizer), "fingerprint": quantizer.fingerprint, "fitted_for": fitted_for}
    # A single metadata key: safetensors writes several in random order, and the files should be reproducible.
    write_atomically(path, save(_arrays(quantizer), metadata={"quantizer": json.dumps(metadata)}))


def load_quantizer(path: Path) -> tuple[Quantizer, dict[str, Any]]:
    """The quantizer and the `fitted_for` of a file that save_quantizer() wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    if not path.is_file():
        raise user_error(f"no quantizer at {path}", "quantizer.safetensors beside the records", "run annotate")
    refuse_lfs_pointer(path)
    damaged = user_error(f"{path} is damaged", "a quantizer written by annotate", "delete it and run annotate again")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = json.loads(file.metadata()["quantizer"])
            kind = _KINDS[metadata["kind"]]
            arrays = {field.name: file.get_tensor(field.name) for field in fields(kind)}
        saved, fitted_for = metadata["fingerprint"], metadata["fitted_for"]
        if saved != _fingerprint(arrays):
            raise damaged
        return kind(**arrays), fitted_for
    except (SafetensorError, OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged from error  # AttributeError: a type that numpy does not know, e.g. float8


def _arrays(quantizer: Quantizer) -> dict[str, np.ndarray]:
    return {field.name: getattr(quantizer, field.name) for field in fields(quantizer)}


def _fingerprint(arrays: dict[str, np.ndarray]) -> str:
    return fingerprint(*(np.ascontiguousarray(array).tobytes() for array in arrays.values()))


# ---------------------------------------------------------------------------------------------- fitting
def fit_quantizer(
    features: Float[np.ndarray, "n f"],
    *,
    kind: str = "residual",
    vokens_per_image: int = 8,
    codebook_size: int = 64,
    seed: int = 0,
) -> Quantizer:
    """Fits a quantizer; same input, same bits on one machine.

    Args:
      features: one row per image; float64 for the same bits everywhere.
      kind: "residual" (PCA, then one k-means codebook per token) or "fsq".
      vokens_per_image: tokens per image.
      codebook_size: entries of each token's codebook; for "fsq" the largest product of a token's levels.
      seed: "residual": of k-means.

    Raises:
      UserError: unknown kind, or too few distinct feature vectors for it.
    """
    if kind not in KINDS:
        raise user_error(f"quantizer {kind!r}", f"one of {', '.join(KINDS)}", "correct the name")
    mean = features.mean(axis=0)
    if kind == "fsq":
        return _fit_scalars(features, mean, vokens_per_image, np.array(fsq_levels(codebook_size)))
    distinct = len(np.unique(features, axis=0))
    if distinct < codebook_size:
        raise user_error(
            f"{distinct} distinct images", f"at least {codebook_size}, one for each code", "use more examples"
        )
    components = _principal(features - mean, min(_PCA_DIMS, codebook_size, features.shape[1]))
    residual = (features - mean) @ components.T
    rng = np.random.default_rng(seed)
    codebooks = []
    for _ in range(vokens_per_image):
        codebooks.append(_kmeans(residual, codebook_size, rng))
        residual = residual - codebooks[-1][vq(residual, codebooks[-1], check_finite=False)[0]]
    return ResidualQuantizer(mean=mean, components=components, codebooks=np.stack(codebooks))


def fsq_levels(codebook_size: int) -> tuple[int, ...]:
    """Levels of one token: from 5 to 8 each, as the paper advises, with the largest product up to `codebook`.

    A codebook below 5 is one coefficient of that many levels. Of equal products the first in order, largest first.

    Raises:
      UserError: a codebook below 2.
    """
    if codebook_size < 2:
        raise user_error(f"a codebook of {codebook_size}", "at least 2", "raise it")
    if codebook_size < _FEWEST_LEVELS:
        return (codebook_size,)
    most = int(math.log(codebook_size) / math.log(_FEWEST_LEVELS) + 1e-9)
    choices = range(_MOST_LEVELS, _FEWEST_LEVELS - 1, -1)
    fitting = (
        levels
        for count in range(1, most + 1)
        for levels in itertools.combinations_with_replacement(choices, count)
        if math.prod(levels) <= codebook_size
    )
    return max(fitting, key=math.prod)


def _fit_scalars(
    features: Float[np.ndarray, "n f"],
    mean: Float[np.ndarray, "f"],
    vokens_per_image: int,
    levels: Int[np.ndarray, "m"],
) -> FiniteScalarQuantizer:
    dims = vokens_per_image * len(levels)
    components = _principal(features - mean, dims)
    if len(components) < dims or len(features) <= dims:
        raise user_error(
            f"{len(features)} images with {features.shape[1]} features for {dims} coefficients",
            f"more than {dims} of both, {len(levels)} for each of {vokens_per_image} tokens",
            "use more examples, fewer tokens or a smaller codebook",
        )
    coefficients = (features - mean) @ components.T
    scale = coefficients.std(axis=0)
    cells = _cells(coefficients, scale, levels)
    values = np.zeros((dims, max(levels)))
    for dim, count in enumerate(np.tile(levels, vokens_per_image)):
        held = np.bincount(cells[:, dim], minlength=count)
        sums = np.bincount(cells[:, dim], coefficients[:, dim], minlength=count)
        # A cell without images represents its middle: the coefficient that bounding maps there.
        middle = np.arctanh((2 * np.arange(count) + 1) / count - 1) / _NORMAL * scale[dim]
        values[dim, :count] = np.where(held > 0, sums / np.maximum(held, 1), middle)
    return FiniteScalarQuantizer(mean=mean, components=components, scale=scale, levels=levels, values=values)


def _cells(
    coefficients: Float[np.ndarray, "n d"], scale: Float[np.ndarray, "d"], levels: Int[np.ndarray, "m"]
) -> Int[np.ndarray, "n d"]:
    """The level of each coefficient: bounded to (-1, 1) by tanh, then rounded to the nearest of L cells' middles."""
    counts = np.tile(levels, coefficients.shape[1] // len(levels))
    bounded = np.tanh(_NORMAL * coefficients / np.where(scale > 0, scale, 1))
    return np.clip(np.floor((bounded + 1) / 2 * counts), 0, counts - 1).astype(np.int64)


def _principal(centered: Float[np.ndarray, "n f"], dims: int) -> Float[np.ndarray, "d f"]:
    """The first `dims` principal directions, or fewer if wide data have fewer."""
    if centered.shape[1] <= max(_WIDE, len(centered)):
        components = np.linalg.eigh(centered.T @ centered)[1][:, ::-1][:, :dims].T
    else:  # the same directions from the products of images, which are fewer
        values, vectors = np.linalg.eigh(centered @ centered.T)
        kept = np.flatnonzero(values > 1e-10 * values[-1])[::-1][:dims]
        components = (vectors[:, kept] / np.sqrt(values[kept])).T @ centered
    # An eigenvector's sign is arbitrary; fix it, so that the same data give the same quantizer.
    largest = components[np.arange(len(components)), np.abs(components).argmax(axis=1)]
    return np.ascontiguousarray(components * np.sign(largest)[:, None])  # safetensors needs C order


def _kmeans(points: Float[np.ndarray, "n d"], num_codes: int, rng: np.random.Generator) -> Float[np.ndarray, "codes d"]:
    centers = points[rng.choice(len(points), num_codes, replace=False)]
    for _ in range(_KMEANS_ROUNDS):
        nearest, distance = vq(points, centers, check_finite=False)
        counts = np.bincount(nearest, minlength=num_codes)
        sums = np.stack([np.bincount(nearest, column, minlength=num_codes) for column in points.T], axis=1)
        centers = sums / np.maximum(counts, 1)[:, None]
        # An unused code moves to one of the points with the largest error.
        empty = np.flatnonzero(counts == 0)
        centers[empty] = points[np.argsort(distance, kind="stable")[::-1][: len(empty)]]
    return centers
