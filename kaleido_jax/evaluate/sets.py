"""Sets of images against each other: the named ways to measure samples on features beside real images."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from kaleido_jax.errors import user_error
from kaleido_jax.evaluate.features.inception import FID_NAME
from kaleido_jax.evaluate.metrics.frechet import Moments, frechet_distance, moments
from kaleido_jax.evaluate.metrics.kernel import SUBSET_SIZE, kernel_distance
from kaleido_jax.evaluate.metrics.manifold import NEAREST, manifold
from kaleido_jax.evaluate.stamp import Result, Stamp

Rows = Float32[np.ndarray, "_ _"]  # features, one row for each image


@dataclass(frozen=True, kw_only=True)
class SetProtocol:
    """A named way to measure; fewer images than it asks for are refused, since its numbers would not be comparable."""

    extractors: tuple[str, ...]  # how an extractor's name may begin
    resize: str  # how its way of resizing begins
    num_samples: int
    num_reference: int  # real images for mean and covariance
    num_neighbors: int  # real images for precision, recall, density and coverage, spread evenly over all that there are
    num_neighbor_samples: int | None = None  # samples for these, the first ones; None = as many as real images
    k: int = NEAREST
    minima: bool = False  # whether these counts are the least ones, and all images there are get measured


SET_PROTOCOLS = {
    # The paper's FID and recall: 50,000 samples against all of ImageNet's training images.
    "kaleido": SetProtocol(
        extractors=(FID_NAME,),
        resize="torch-fidelity",
        num_samples=50_000,
        num_reference=1_281_167,
        num_neighbors=50_000,
    ),
    # Dhariwal and Nichol's evaluator: statistics of all training images; neighbors of 10,000 real images and of all
    # samples.
    "adm": SetProtocol(
        extractors=(FID_NAME,),
        resize="torch-fidelity",
        num_samples=50_000,
        num_reference=1_281_167,
        num_neighbors=10_000,
        num_neighbor_samples=50_000,
    ),
    # Kynkaanniemi et al., 2024 (arXiv:2404.07724): on DINOv2, by path.
    "guidance-interval": SetProtocol(
        extractors=("onnx", "transformers"),
        resize="clean-fid",
        num_samples=50_000,
        num_reference=50_000,
        num_neighbors=50_000,
    ),
    # Photographs of classes inside classes, e.g. Tiny ImageNet's 2,500 of its validation split in 50 classes.
    "classes": SetProtocol(
        extractors=("efficientnet", "onnx", "transformers", FID_NAME, "inception"),
        resize="",
        num_samples=2_500,
        num_reference=2_500,
        num_neighbors=2_500,
    ),
    # The same for sweeps on a CPU: still more images than EfficientNet-Lite0 has features, 1,280.
    "classes-1500": SetProtocol(
        extractors=("efficientnet", "onnx", "transformers", FID_NAME, "inception"),
        resize="",
        num_samples=1_500,
        num_reference=1_500,
        num_neighbors=1_500,
    ),
    "emoji": SetProtocol(
        extractors=("sprite-reader",), resize="means", num_samples=2_000, num_reference=2_000, num_neighbors=2_000
    ),
    # The same for sweeps on a laptop; a Frechet distance of half as many images is larger, so the two never mix.
    "emoji-1k": SetProtocol(
        extractors=("sprite-reader",), resize="means", num_samples=1_000, num_reference=1_000, num_neighbors=1_000
    ),
    # Of own data, of which there may be few. Only numbers of equal counts compare, and the stamps hold the counts.
    "records": SetProtocol(
        extractors=("efficientnet-lite0",),
        resize="clean-fid",
        num_samples=50,
        num_reference=50,
        num_neighbors=50,
        minima=True,
    ),
    # As many samples as there are held-out images, and these.
    "records-few": SetProtocol(
        extractors=("efficientnet-lite0",),
        resize="clean-fid",
        num_samples=10,
        num_reference=50,
        num_neighbors=10,
        minima=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Real images, measured once."""

    name: str  # of the data, with their fingerprint
    split: str
    identity: dict[str, str]  # of the extractor
    moments: Moments
    rows: Rows  # of the images for the metrics of neighbors, and for the kernel distance


def reference_of(rows: Rows, *, name: str, split: str, identity: dict[str, str]) -> Reference:
    """A reference whose features fit into memory; of larger sets, give the moments of a stream and some rows."""
    return Reference(name=name, split=split, identity=identity, moments=moments(rows), rows=rows)


def measure_set(
    protocol: str, reference: Reference, samples: Rows, *, identity: dict[str, str], sampled_with: dict[str, Any]
) -> Result:
    """Frechet distance, precision, recall, density, coverage and kernel distance of samples.

    Args:
      protocol: a name of SET_PROTOCOLS.
      reference: the real images.
      samples: features of the samples; those beyond the protocol's number are left out, unless it is the least one.
      identity: of the extractor that made them.
      sampled_with: the fields of a Stamp that tell how they were sampled: checkpoint, sampler, num_steps, guidance,
        gamma and seeds.

    Raises:
      UserError: no such protocol, too few images, two extractors, or one that is not the protocol's.
    """
    if protocol not in SET_PROTOCOLS:
        raise user_error(f"protocol {protocol!r}", f"one of {', '.join(SET_PROTOCOLS)}", "choose one of them")
    wanted = SET_PROTOCOLS[protocol]
    _check(protocol, wanted, reference, samples, identity)
    samples = samples if wanted.minima else samples[: wanted.num_samples]
    values = {"frechet": frechet_distance(reference.moments, moments(samples))}
    real, some = reference.rows, samples
    if not wanted.minima:
        real = _spread(real, wanted.num_neighbors)  # the first ones of a folder would be some of its classes only
        some = some[: wanted.num_neighbor_samples or wanted.num_neighbors]
    values |= dataclasses.asdict(manifold(real, some, wanted.k))
    fewest = min(len(real), len(some))
    kernel = kernel_distance(reference.rows, samples, subset_size=min(SUBSET_SIZE, fewest))
    values |= {"kernel_distance": kernel.mean, "kernel_distance_std": kernel.std}
    stamp = Stamp(
        protocol=protocol,
        **identity,
        k=wanted.k,
        reference=reference.name,
        split=reference.split,
        num_reference=reference.moments.count,
        num_samples=len(samples),
        **sampled_with,
    )
    return Result(stamp=stamp, values=values)


def check_counts(protocol: str, *, num_samples: int, num_reference: int) -> None:
    """Checks that there will be as many images as it takes, before any is drawn.

    Raises:
      UserError: fewer than the protocol wants, or more samples, of which measures of sets would take the first ones and
        all others every one.
    """
    wanted = SET_PROTOCOLS[protocol]
    if num_samples > wanted.num_samples and not wanted.minima:
        found = f"{num_samples:,} samples for protocol {protocol}"
        raise user_error(found, f"{wanted.num_samples:,}", "draw as many, with several seeds, or take another protocol")
    counts = {"samples": (num_samples, wanted.num_samples), "real images": (num_reference, wanted.num_reference)}
    _check_enough(protocol, counts)


def _check(protocol: str, wanted: SetProtocol, reference: Reference, samples: Rows, identity: dict[str, str]) -> None:
    if reference.identity != identity:
        found = f"samples on {' '.join(identity.values())}, real images on {' '.join(reference.identity.values())}"
        raise user_error(found, "one extractor, with one way of resizing", "extract one of them again")
    if not identity["extractor"].startswith(wanted.extractors) or not identity["resize"].startswith(wanted.resize):
        found = f"features of {identity['extractor']}, {identity['resize']} for protocol {protocol}"
        expected = f"{' or '.join(wanted.extractors)}, {wanted.resize}"
        raise user_error(found, expected, "open that extractor, or take another protocol")
    counts = {
        "samples": (len(samples), wanted.num_samples),
        "real images": (reference.moments.count, wanted.num_reference),
        "real images with neighbors": (len(reference.rows), wanted.num_neighbors),
    }
    _check_enough(protocol, counts)


def _spread(rows: Rows, number: int) -> Rows:
    return rows if len(rows) <= number else rows[np.arange(number) * len(rows) // number]


def _check_enough(protocol: str, counts: dict[str, tuple[int, int]]) -> None:
    for what, (have, need) in counts.items():
        if have < need:
            found = f"{have:,} {what} for protocol {protocol}"
            raise user_error(found, f"at least {need:,}", "measure more images, or take another protocol")
