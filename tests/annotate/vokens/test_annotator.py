import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from kaleido_jax.annotate.vokens import features
from kaleido_jax.annotate.vokens.annotator import open_voken
from kaleido_jax.annotate.vokens.features import open_feature
from kaleido_jax.annotate.vokens.quantizer import load_quantizer
from kaleido_jax.config.schema import Annotate, AnnotateVoken
from kaleido_jax.data.sources.base import Example
from kaleido_jax.errors import UserError
from kaleido_jax.latents.types import Latents
from tests.annotate.vision import onnx_files
from tests.annotate.vokens.float8 import as_float8
from tests.interop.files import torch_files

WEIGHTS = Path(os.environ.get("KALEIDO_ONNX_WEIGHTS", "/nowhere"))


def pictures(count, side=48, seed=0):
    """Smooth random colors, so that a photo's neighbor is not noise."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 5, 5, 3), np.uint8)
    return [np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC)) for p in small]


class Pictures:
    """A source of pictures in memory."""

    class_names, fingerprint = (), "pictures"

    def __init__(self, images):
        self.images, self.asked = images, []

    def id(self, index):
        return str(index)

    def label(self, index):
        raise IndexError(index)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.asked.append(index)
        return Example(id=self.id(index), image=self.images[index], caption="")


def opened(path, train, **settings):
    config = Annotate(voken=AnnotateVoken(**{"quantizer": "fsq", "fit_examples": 60} | settings))
    return open_voken(
        config, path=path, source={"name": "pictures"}, train=train, image_size=48, vokens_per_image=4, codebook_size=64
    )


# ------------------------------------------------------------------------------------------- the annotator
def test_annotator_is_fitted_once_and_its_answers_do_not_depend_on_the_batch(tmp_path):
    train = Pictures(pictures(130))
    path = tmp_path / "quantizer.safetensors"
    tokenizer = opened(path, train)
    assert len(set(train.asked)) == 60 and max(train.asked) >= 125  # spread over the source
    again = opened(path, Pictures([]))  # it is there already: no image is asked for
    assert again.metadata == tokenizer.metadata and tokenizer.metadata["feature"] == "pixels"
    examples = [Example(id=str(i), image=p, caption="") for i, p in enumerate(pictures(9, seed=1))]
    together = tokenizer(examples, [Latents()] * 9)
    assert together == [again([e], [Latents()])[0] for e in examples]
    assert all(len(z.voken) == 4 and min(z.voken) >= 0 and max(z.voken) < 64 for z in together)
    assert len({z.voken for z in together}) == 9
    assert (tokenizer.segments, tokenizer.needs) == (("voken",), ())


def test_a_quantizer_of_another_feature_kind_or_source_is_refused(tmp_path, monkeypatch):
    train, path = Pictures(pictures(70)), tmp_path / "quantizer.safetensors"
    opened(path, train)
    for other in ({"quantizer": "residual"}, {"fit_examples": 50}):
        with pytest.raises(UserError, match="was fitted for"):
            opened(path, train, **other)
    monkeypatch.setattr(features, "PIXELS", dataclasses.replace(features.PIXELS, version="2"))
    with pytest.raises(UserError, match="was fitted for"):
        opened(path, train)


def test_a_given_quantizer_is_taken_and_not_fitted(tmp_path):
    first, path = tmp_path / "a" / "quantizer.safetensors", tmp_path / "b" / "quantizer.safetensors"
    first.parent.mkdir()
    path.parent.mkdir()
    fitted = opened(first, Pictures(pictures(70)))
    taken = opened(path, others := Pictures(pictures(70, side=96, seed=1)), model=str(first))
    assert not others.asked
    example = [Example(id="0", image=pictures(1, seed=2)[0], caption="")]
    assert taken(example, [Latents()]) == fitted(example, [Latents()])
    opened(path, others, model=str(first))  # a second start with the same command
    with pytest.raises(UserError, match="was fitted for"):  # without it, the file would be another data set's
        opened(path, others)
    with pytest.raises(UserError, match="residual"):
        opened(tmp_path / "c.safetensors", others, model=str(first), quantizer="residual")
    with pytest.raises(UserError, match="no quantizer at"):
        opened(tmp_path / "c.safetensors", others, model=str(tmp_path / "d.safetensors"))
    assert not (tmp_path / "c.safetensors").exists()


def test_the_file_says_what_it_was_fitted_for(tmp_path):
    path = tmp_path / "quantizer.safetensors"
    opened(path, Pictures(pictures(70)))
    assert load_quantizer(path)[1] == {
        "source": {"name": "pictures"},
        "image_size": 48,
        "vokens_per_image": 4,
        "codebook_size": 64,
        "fit_examples": 60,
        "feature": "pixels",
        "feature_version": "1",
        "quantizer": "fsq",
    }


# --------------------------------------------------------------------------------------------- features
def test_pixels_are_means_of_squares():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:2, 2:4, 1] = 200
    feature = open_feature("pixels")
    values = feature([image])[0].reshape(16, 16, 3)
    assert values[0, 1, 1] == pytest.approx(200 / 255) and values.sum() == pytest.approx(200 / 255)
    assert values.dtype == np.float64


def test_onnx_feature_is_the_mean_of_the_first_outputs_map(tmp_path):
    pytest.importorskip("onnxruntime")
    weight = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)
    path = onnx_files.features(tmp_path / "f.onnx", weight, stride=2, sides=(16, 16))
    [image] = pictures(1, side=16)
    normal = (image / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    blocks = normal.reshape(8, 2, 8, 2, 3)
    expected = np.einsum("aibjc,ocij->oab", blocks, weight).mean(axis=(1, 2))
    feature = open_feature("onnx", str(path))
    np.testing.assert_allclose(feature([image])[0], expected, rtol=1e-4, atol=1e-5)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    other = open_feature("onnx", str(path))
    assert other.version != feature.version
    np.testing.assert_allclose(
        other([image])[0], np.einsum("aibjc,ocij->o", image.reshape(8, 2, 8, 2, 3) / 255, weight) / 64, rtol=1e-4
    )


def test_onnx_feature_takes_a_model_of_open_size(tmp_path):
    pytest.importorskip("onnxruntime")
    path = onnx_files.features(tmp_path / "f.onnx", np.ones((2, 3, 4, 4)), stride=4)
    assert open_feature("onnx", str(path))(pictures(2)).shape == (2, 2)


def test_transformers_feature_is_the_models_pooled_output(tmp_path):
    torch = pytest.importorskip("torch", reason="transformers' models run in PyTorch, which is not installed")
    hf = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = hf.ViTModel(hf.ViTConfig(**sizes, image_size=16, patch_size=8)).eval()
    model.save_pretrained(tmp_path)
    hf.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    [image] = pictures(1, side=16)
    feature = open_feature("transformers", str(tmp_path))
    pixels = torch.from_numpy(((image / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]).float()
    with torch.inference_mode():
        expected = model(pixels).pooler_output[0].numpy()
    np.testing.assert_allclose(feature([image])[0], expected, atol=1e-5)
    with pytest.raises(UserError, match="no model in"):
        open_feature("transformers", str(tmp_path / "absent"))


def test_unknown_features_and_missing_weights_are_refused():
    with pytest.raises(UserError, match="feature 'clip'"):
        open_feature("clip")
    with pytest.raises(UserError, match="without weights"):
        open_feature("onnx")
    with pytest.raises(UserError, match="with a model"):
        open_feature("pixels", "x")


# ------------------------------------------------------------------------------------ the tiny autoencoder
def encoder_weights(seed=0):
    """Encoder of 8 channels: conv, block, halving conv, block that widens, TAEF2's block, conv to 4 latents."""
    rng = np.random.default_rng(seed)
    w = {}

    def conv(name, out, into, size=3, bias=True):
        w[f"{name}.weight"] = rng.standard_normal((out, into, size, size)).astype(np.float32) / (size * into**0.5)
        if bias:
            w[f"{name}.bias"] = rng.standard_normal(out).astype(np.float32)

    def block(number, into, out):
        conv(f"{number}.conv.0", out, into)
        conv(f"{number}.conv.2", out, out)
        conv(f"{number}.conv.4", out, out)

    conv("0", 8, 3)
    block(1, 8, 8)
    conv("2", 8, 8, bias=False)
    block(3, 8, 12)
    conv("3.skip", 12, 8, size=1, bias=False)
    block(4, 12, 12)
    conv("4.pool.0", 48, 12, size=1, bias=False)
    w["4.pool.1.weight"], w["4.pool.1.bias"] = (rng.standard_normal(48).astype(np.float32) for _ in range(2))
    conv("4.pool.3", 12, 48, size=1, bias=False)
    conv("5", 4, 12)
    return w


def encode(w, image):
    """The same in float64, sums over windows."""

    def conv(x, name, stride=1):
        weight = w[f"{name}.weight"].astype(np.float64)
        size = weight.shape[-1]
        x = np.pad(x, [(0, 0)] + [(size // 2,) * 2] * 2)
        windows = sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
        bias = w.get(f"{name}.bias", np.zeros(len(weight)))
        return np.einsum("chwij,ocij->ohw", windows, weight) + bias[:, None, None]

    def block(x, n):
        if f"{n}.pool.0.weight" in w:
            h = conv(x, f"{n}.pool.0").reshape(4, -1)
            h = ((h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)).reshape(-1, *x.shape[1:])
            h = h * w[f"{n}.pool.1.weight"][:, None, None] + w[f"{n}.pool.1.bias"][:, None, None]
            x = x + conv(np.maximum(h, 0), f"{n}.pool.3")
        h = np.maximum(conv(x, f"{n}.conv.0"), 0)
        h = conv(np.maximum(conv(h, f"{n}.conv.2"), 0), f"{n}.conv.4")
        return np.maximum(h + (conv(x, f"{n}.skip") if f"{n}.skip.weight" in w else x), 0)

    x = conv(image.transpose(2, 0, 1) / 255, "0")
    x = conv(block(x, 1), "2", stride=2)
    return conv(block(block(x, 3), 4), "5")


def test_autoencoder_feature_is_the_encoders_latents_from_any_kind_of_file(tmp_path):
    from safetensors.numpy import save_file

    w = encoder_weights()
    np.savez(tmp_path / "e.npz", **w)
    save_file(w, tmp_path / "e.safetensors")
    torch_files.write(tmp_path / "e.pth", w)
    [image] = pictures(1, side=64)
    features = [open_feature("autoencoder", str(tmp_path / name)) for name in ("e.npz", "e.safetensors", "e.pth")]
    assert len({feature.version for feature in features}) == 1
    found = features[0]([image])[0].reshape(32, 32, 4)
    np.testing.assert_allclose(found, encode(w, image).transpose(1, 2, 0), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(features[0](pictures(3))[1], features[1](pictures(3)[1:2])[0])


def test_other_weights_are_refused(tmp_path):
    def refused(match, **change):
        w = encoder_weights() | change
        np.savez(tmp_path / "e.npz", **{name: array for name, array in w.items() if array is not None})
        with pytest.raises(UserError, match=match):
            open_feature("autoencoder", str(tmp_path / "e.npz"))

    refused("decoder.weight", **{"decoder.weight": np.zeros(3)})
    refused(r"parts \[0, 1, 2, 3, 4, 5, 7\]", **{"7.weight": np.zeros((4, 4, 3, 3))})
    refused(r"1\.conv\.2\.bias", **{"1.conv.2.bias": None})
    refused(r"4\.pool", **{"4.pool.3.weight": None})
    refused("0 of shape", **{"0.weight": np.zeros((8, 4, 3, 3))})
    refused("1.conv.0.weight is stored as int8", **{"1.conv.0.weight": np.zeros((8, 8, 3, 3), np.int8)})
    refused("2.weight holds NaN or infinity", **{"2.weight": np.full((8, 8, 3, 3), np.nan)})
    (tmp_path / "e.npz").write_bytes(b"<html>")
    with pytest.raises(UserError, match="cannot be read"):
        open_feature("autoencoder", str(tmp_path / "e.npz"))
    with pytest.raises(UserError, match="no file"):
        open_feature("autoencoder", str(tmp_path / "absent.npz"))


@pytest.mark.parametrize("name", ["e.npz", "e.safetensors", "e.pth"])
def test_weights_that_are_a_git_lfs_pointer_are_named_so(name, tmp_path):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="is a git-LFS pointer; .*git lfs pull"):
        open_feature("autoencoder", str(tmp_path / name))


def test_safetensors_of_float8_or_cut_short_are_refused_in_one_line(tmp_path):
    from safetensors.numpy import save

    content, path = (
        save({name: array.astype(np.float16) for name, array in encoder_weights().items()}),
        tmp_path / "e.safetensors",
    )
    for bad in (content.replace(b'"F16"', b'"I16"'), as_float8(content), content[:200], b"<html>"):
        path.write_bytes(bad)
        with pytest.raises(UserError) as error:
            open_feature("autoencoder", str(path))
        assert "e.safetensors" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(not (WEIGHTS / "taef2_encoder_fp16.npz").exists(), reason="KALEIDO_ONNX_WEIGHTS has no TAEF2")
def test_public_encoder_opens_and_tells_pictures_apart():
    values = open_feature("autoencoder", str(WEIGHTS / "taef2_encoder_fp16.npz"))(pictures(3))
    assert values.shape == (3, 8 * 8 * 32) and np.isfinite(values).all()
    assert np.abs(values[0] - values[1]).mean() > 0.1
