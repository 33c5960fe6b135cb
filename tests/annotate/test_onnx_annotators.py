"""The annotators of configs/annotate_onnx.py, as the job opens them, with models written by the test."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from kaleido_jax.annotate.registry import AnnotatorSettings, open_annotators
from kaleido_jax.config.checks import validate
from kaleido_jax.data.sources.base import Example, SourceKind, SourceSettings
from kaleido_jax.latents import types
from kaleido_jax.latents.grammar import parse, serialize
from kaleido_jax.latents.segments import names
from tests.annotate.vision import onnx_files
from tests.annotate.vision.test_detector import raw_output

pytest.importorskip("onnxruntime")
CONFIG = Path(__file__).parents[2] / "configs" / "annotate_onnx.py"


class Photos:
    """White discs on black at random places, in memory."""

    class_names, fingerprint = (), "photos"

    def __len__(self):
        return 60

    def id(self, index):
        return f"photos/{index}"

    def label(self, index):
        raise NotImplementedError

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        y, x = np.mgrid[:64, :64]
        disc = (x - rng.integers(20, 44)) ** 2 + (y - rng.integers(20, 44)) ** 2 < 100
        shade = rng.integers(0, 60, (64, 64, 3))
        return Example(
            id=self.id(index), image=np.where(disc[..., None], 255, shade).astype(np.uint8), caption="a disc"
        )


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "yolox.names").write_text("disc\ncar\ndog\n")
    raw = raw_output({82: (8, 8, 56, 56, 1.0, 0.9, 0, 0)})
    spec = importlib.util.spec_from_file_location("annotate_onnx", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.annotate.bbox.model = str(onnx_files.detector(folder / "yolox.onnx", raw))
    config.annotate.blob.model = str(onnx_files.brightness_mask(folder / "mask.onnx"))
    config = validate(config)
    return config, AnnotatorSettings(
        config=config.annotate,
        source=SourceKind(name="photos", open=lambda settings: Photos()),
        fit_on=SourceSettings(data=config.data, seed=0, image_size=64),
        quantizer=folder / "quantizer.safetensors",
        vokens_per_image=config.latents.vokens_per_image,
        codebook_size=config.latents.codebook_size,
        image_size=64,
    )


def test_they_make_all_segments_of_a_photo_in_an_order_that_works(settings):
    config, opened_with = settings
    segments, examples = config.annotate.segments, [Photos()[i] for i in range(3)]
    z = [types.Latents()] * 3
    for annotator in open_annotators(opened_with, segments):
        assert all(getattr(z[0], needed) is not None for needed in annotator.needs)
        made = annotator(examples, z)
        filled = [{s: getattr(answer, s) for s in annotator.segments} for answer in made]
        z = [before.replace(**new) for before, new in zip(z, filled, strict=True)]
    assert types.segments_of(z[0]) == segments == names()
    for example, latents in zip(examples, z, strict=True):
        assert latents.text == "a disc" and latents.bbox[0].box == (125, 125, 875, 875)
        # The disc's own place: the shades are dark, and the mask is cut at the box.
        y, x = np.nonzero(example.image.min(axis=-1) == 255)
        xc, yc, major, minor, _ = latents.blob[0].blob
        np.testing.assert_allclose((xc, yc), ((x.mean() + 0.5) / 0.064, (y.mean() + 0.5) / 0.064), atol=25)
        assert 120 < minor <= major < 190
        assert parse(serialize(types.validate(latents), segments), segments) == latents
