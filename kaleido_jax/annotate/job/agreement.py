"""Agreement of boxes and ellipses with human labels, if there are any.

Counted in thousandths of IoU, so that shards can be combined without keeping a number for each object.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from kaleido_jax import array_types as at
from kaleido_jax.data.sources.base import Example
from kaleido_jax.latents import geometry
from kaleido_jax.latents.types import Latents

SMALLEST_PX = 32  # objects of a mask or box up to the area of 32x32 px of the crop are not counted
_STEPS = 1000


def measure(example: Example, z: Latents) -> dict[str, list[int]]:
    """IoU of each labeled object with its own box and ellipse, 0..1000; 0 for an object without a partner.

    Objects and boxes (or ellipses) are paired one to one so that the sum of IoU is maximal. Phrases are ignored, since
    two annotators need not use the same words.

    Args:
      example: the square crop, with its objects.
      z: its latents; a segment that is absent is not measured.
    """
    size_px, out = example.image.shape[0], {}
    if z.bbox is not None:
        boxes = [o.box for o in example.objects if o.box is not None and _area(o.box) > SMALLEST_PX**2]
        if boxes:
            drawn = geometry.to_thousandths(np.array(boxes, np.float64), size_px)
            found = np.array([b.box for b in z.bbox], np.float64).reshape(-1, 4)
            out["box"] = pair_boxes(drawn, found)
    if z.blob is not None:
        masks = [o.mask for o in example.objects if o.mask is not None and o.mask.sum() > SMALLEST_PX**2]
        if masks:
            filled = [geometry.ellipse_mask(np.array(b.blob, np.float64), size_px) for b in z.blob]
            out["ellipse"] = _paired(np.array([[_iou(m, f) for f in filled] for m in masks]).reshape(len(masks), -1))
    return out


def pair_boxes(wanted: Float[np.ndarray, "n 4"], found: Float[np.ndarray, "m 4"]) -> list[int]:
    """IoU of each wanted box with its own found one, 0..1000; 0 for one without a partner, or without overlap.

    They are paired one to one so that the sum of IoU is maximal.
    """
    return _paired(geometry.box_iou(wanted[:, None], found[None]))


def tally(measures: Iterable[Mapping[str, list[int]]]) -> dict[str, dict[str, int]]:
    """The number of objects with each IoU: {"box": {"912": 3, ...}, "ellipse": ...}."""
    counts: dict[str, Counter] = {}
    for measured in measures:
        for kind, values in measured.items():
            counts.setdefault(kind, Counter()).update(values)
    return {kind: {str(v): n for v, n in sorted(counts[kind].items())} for kind in sorted(counts)}


def summarize(tallies: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, float]:
    """Statistics of all tallies together, for "box" and "ellipse" if people labeled any.

    KIND_objects: number of labeled objects; KIND_found: share of them with a partner; KIND_iou_median: over those with
    one.
    """
    sums: dict[str, Counter] = {}
    for counts in tallies:
        for kind, values in counts.items():
            sums.setdefault(kind, Counter()).update({int(v): n for v, n in values.items()})
    out = {}
    for kind, values in sorted(sums.items()):
        found = {v: n for v, n in values.items() if v}
        total, matched = values.total(), sum(found.values())
        out |= {f"{kind}_objects": total, f"{kind}_found": round(matched / total, 4)}
        if matched:
            out[f"{kind}_iou_median"] = _median(found) / _STEPS
    return out


def _median(counts: Mapping[int, int]) -> float:
    return float(np.median(np.repeat(list(counts), list(counts.values()))))


def _paired(iou: Float[np.ndarray, "n m"]) -> list[int]:
    best = np.zeros(len(iou))
    rows, columns = linear_sum_assignment(iou, maximize=True)
    best[rows] = iou[rows, columns]
    return [int(round(float(v) * _STEPS)) for v in best]


def _iou(a: at.ImageMask, b: at.ImageMask) -> float:
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
