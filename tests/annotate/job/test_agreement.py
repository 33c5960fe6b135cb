import numpy as np

from kaleido_jax.annotate.job import agreement
from kaleido_jax.data.sources.base import Example, LabeledObject
from kaleido_jax.latents import geometry
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.segments.blob import Blob
from kaleido_jax.latents.types import Latents


def _example(*boxes, size_px=100):
    masks = [np.zeros((size_px, size_px), bool) for _ in boxes]
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    objects = tuple(
        LabeledObject(phrase="it", box=tuple(map(float, b)), mask=m) for b, m in zip(boxes, masks, strict=True)
    )
    return Example(id="x", image=np.zeros((size_px, size_px, 3), np.uint8), caption="", objects=objects)


def test_each_human_box_meets_its_own_whatever_the_order_and_the_words():
    example = _example((0, 0, 40, 40), (50, 50, 90, 90), (0, 60, 40, 100))
    boxes = (Box(phrase="b", box=(500, 500, 900, 900)), Box(phrase="a", box=(0, 0, 400, 200)))
    assert agreement.measure(example, Latents(bbox=boxes)) == {"box": [500, 1000, 0]}


def test_two_people_cannot_share_one_box():
    example = _example((0, 0, 50, 50), (0, 0, 50, 60))
    assert sorted(agreement.measure(example, Latents(bbox=(Box(phrase="a", box=(0, 0, 500, 500)),)))["box"]) == [
        0,
        1000,
    ]


def test_a_rectangle_and_the_ellipse_of_its_moments():
    example = _example((10, 20, 70, 80))
    ellipse = geometry.ellipse_to_blob(geometry.mask_to_ellipse(example.objects[0].mask))
    found = agreement.measure(example, Latents(blob=(Blob(phrase="a", blob=ellipse),)))["ellipse"]
    # A disc of the square's second moments: radius 2 sqrt(1/12) of its side.
    rows, columns = np.mgrid[:2000, :2000] / 1000 - 1
    disc, square = np.hypot(rows, columns) < 2 / 12**0.5, np.maximum(abs(rows), abs(columns)) < 0.5
    assert abs(found[0] - 1000 * (disc & square).sum() / (disc | square).sum()) < 20  # 60 px are coarse


def test_small_objects_are_not_counted_and_absent_segments_not_measured():
    example = _example((0, 0, 32, 32), (0, 0, 33, 32))
    assert agreement.measure(example, Latents()) == {}
    assert agreement.measure(example, Latents(bbox=(), blob=())) == {"box": [0], "ellipse": [0]}


def test_shards_are_put_together_exactly():
    parts = [
        agreement.tally([{"box": [900, 0]}, {"box": [700]}]),
        agreement.tally([{"box": [800, 801], "ellipse": [0]}]),
    ]
    assert parts[0] == {"box": {"0": 1, "700": 1, "900": 1}}
    message = agreement.summarize(parts)
    assert message == {
        "box_objects": 5,
        "box_found": 0.8,
        "box_iou_median": 0.8005,
        "ellipse_objects": 1,
        "ellipse_found": 0.0,
    }
