"""The models of the package: what they are, and that the one with latents draws what its z says."""

import dataclasses

import numpy as np
import pytest

import kaleido_jax as kj
from kaleido_jax.config.load import MODELS, load_config
from kaleido_jax.config.schema import Config
from kaleido_jax.errors import UserError
from kaleido_jax.evaluate.protocols import bundled_reports
from kaleido_jax.evaluate.scene_pixels import background_of
from kaleido_jax.evaluate.scene_reading import said_by
from kaleido_jax.sampling.pipeline import BUNDLED

PAIR = ("emoji-tiny", "emoji-tiny-baseline")
PROMISED = {  # kind of edit -> what must follow
    "move": "box_iou_median",
    "resize": "box_iou_median",
    "word": "sprite_right",
    "color": "background_right",
}


def test_the_pair_is_in_the_package_and_small():
    assert BUNDLED == PAIR
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    for name in PAIR:
        card = (MODELS / name / "README.md").read_text()
        assert "steps of 256 samples" in card and "kind_right" in card  # how long it was trained, and what was measured


def test_the_pair_differs_by_the_latents_alone():
    kaleido, baseline = (kj.KaleidoPipeline.from_pretrained(name) for name in PAIR)
    assert kaleido.step == baseline.step
    for group in ("model", "diffusion", "train", "eval"):
        assert getattr(kaleido.config, group) == getattr(baseline.config, group)
    # The fastest that is as good as any (benchmarks/results/sample.md), which the baseline needs more steps for.
    assert (kaleido.config.sample.num_steps, baseline.config.sample.num_steps) == (10, 20)
    assert dataclasses.replace(kaleido.config.sample, num_steps=20) == baseline.config.sample
    assert kaleido.config.latents.segments == ("text", "bbox", "blob", "voken")
    assert baseline.config.latents.segments == ()


@pytest.mark.parametrize(("name", "variant"), zip(PAIR, ("accelerator", "accelerator-baseline"), strict=True))
def test_the_config_that_made_a_bundled_model_is_shipped(name, variant):
    stored, shipped = Config.from_json(MODELS / name), load_config(f"emoji_combined:{variant}")
    for group in ("model", "latents", "diffusion", "train", "sample"):
        assert getattr(stored, group) == getattr(shipped, group)


def test_a_bundled_model_draws_on_the_background_that_its_latents_name():
    out = kj.KaleidoPipeline.from_pretrained("emoji-tiny")(["fruit", "bird"], images_per_caption=4, seed=0, num_steps=8)
    pairs = [
        (said_by(z.text).background, image) for z, row in zip(out.latents, out.images, strict=True) for image in row
    ]
    right = [background == background_of(np.asarray(image)) for background, image in pairs]
    assert len(right) == 8 and sum(right) >= 7


def test_edits_of_the_bundled_model_are_followed():
    report = bundled_reports("edits")["emoji-tiny"]
    assert min(report[f"{kind}_box_iou_median"] for kind in ("move", "resize")) >= 0.7
    assert min(report["word_sprite_right"], report["color_background_right"]) >= 0.9
    assert max(report[f"{kind}_outside_of_fresh_seed"] for kind in ("move", "resize", "word")) < 1 / 3
    for way in ("kept", "follow"):  # edits are by default as in the better of both
        assert all(report[f"{kind}_{of}"] >= report[way][f"{kind}_{of}"] for kind, of in PROMISED.items())


def test_the_baseline_draws_without_latents():
    out = kj.KaleidoPipeline.from_pretrained("emoji-tiny-baseline")("bug", images_per_caption=2, seed=0, num_steps=2)
    assert out.images[0][0].size == (32, 32)
    with pytest.raises(UserError, match="latents for a model without"):
        kj.KaleidoPipeline.from_pretrained("emoji-tiny-baseline")("bug", latents=kj.Latents(text="a bug"))


def test_recipes_of_earlier_versions_still_are_of_the_bundled_models():
    # These digits are in every picture that was drawn: a new setting of a model must leave them as they are.
    pipelines = map(kj.KaleidoPipeline.from_pretrained, PAIR)
    digits = [pipeline.recipe(["bug"], 1, 0, pipeline.config.sample)["model"]["config"] for pipeline in pipelines]
    assert digits == ["ecba28d3da1fa9d6", "e44310992952702d"]
