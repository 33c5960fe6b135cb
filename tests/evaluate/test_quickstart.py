import numpy as np
import pytest

from kaleido_jax.annotate.labels import LabeledBoxes
from kaleido_jax.evaluate import quickstart
from kaleido_jax.latents.types import Latents
from tests.fashion import garments
from tests.tiny import tiny_config


def test_a_real_image_overlaps_its_own_annotated_box_fully():
    source = garments("test", 20)
    for example in (source[i] for i in range(20)):
        [z] = LabeledBoxes(1)([example], [Latents()])
        box = z.bbox[0].box
        assert quickstart.foreground_iou(example.image, box) == 1.0
    x1, y1, x2, y2 = box
    assert quickstart.foreground_iou(example.image, (x1, y1, x2, y1 + (y2 - y1) // 2)) == pytest.approx(0.5, abs=0.03)
    assert quickstart.foreground_iou(0 * example.image, box) is None


def test_a_report_belongs_to_how_its_samples_were_drawn():
    metadata = quickstart.measured_with(tiny_config(), 4)
    for change in (
        {"sample__top_p": 0.5},
        {"sample__sampler": "heun"},
        {"sample__grammar": True},
        {"eval__gamma": 3.0},
    ):
        assert quickstart.measured_with(tiny_config(**change), 4) != metadata
    for change in ({"sample__gamma": 3.0}, {"sample__captions": ("bag",)}, {"mesh__data": 1}):
        assert quickstart.measured_with(tiny_config(**change), 4) == metadata
    assert quickstart.measured_with(tiny_config(), 5) != metadata


@pytest.mark.slow
def test_the_judge_learns_real_garments():
    config = tiny_config(
        eval__real_images=(1500, 200),
        data__fashion__num_train=1500,
        data__fashion__num_test=200,
        eval__classifier_steps=80,
    )
    source = garments("test", 30, seed=9, image_size=16)
    judge, accuracy = quickstart.train_judge(config, source.class_names)
    assert accuracy > 0.4  # ten classes
    images = np.stack([source[i].image for i in range(30)])
    assert judge(images).shape == (30,)
