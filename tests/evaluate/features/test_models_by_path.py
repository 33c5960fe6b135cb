"""Feature networks and CLIP by path: ONNX files that the tests write, and tiny models for transformers."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.evaluate.features.clip import open_clip
from kaleido_jax.evaluate.features.extractor import open_extractor
from kaleido_jax.evaluate.features.resize import resized
from kaleido_jax.evaluate.metrics.condition import clip_score
from tests.annotate.vision import onnx_files
from tests.evaluate import golden_inputs

NO_TORCH = "torch and transformers are not dependencies of the tests"


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def preprocessor(folder, mean, std):
    content = {"image_mean": [mean] * 3, "image_std": [std] * 3, "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def test_an_onnx_model_gives_features(tmp_path):
    weight, images = random(5, 3, 8, 8), golden_inputs.images(3, 40, 40)
    path = onnx_files.features(tmp_path / "dino.onnx", weight, 8)
    preprocessor(tmp_path, 0.4, 0.2)
    extractor = open_extractor("onnx", path, side_px=32, resize="pytorch-fid", batch=2)
    assert extractor.identity == {"extractor": "onnx dino", "weights": extractor.weights, "resize": "pytorch-fid 32"}
    found = extractor(images)
    x = (np.asarray(resized(jnp.asarray(images), 32, "pytorch-fid")) / 255 - 0.4) / 0.2
    patches = x.reshape(3, 4, 8, 4, 8, 3).transpose(0, 1, 3, 5, 2, 4)
    expected = np.einsum("nabchw,fchw->nabf", patches, weight).mean(axis=(1, 2))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    before = extractor.weights
    preprocessor(tmp_path, 0.5, 0.2)
    assert open_extractor("onnx", path, side_px=32).weights != before


def test_an_onnx_model_of_another_size_is_refused(tmp_path):
    fixed = onnx_files.features(tmp_path / "fixed.onnx", random(5, 3, 8, 8), 8, sides=(32, 32))
    assert open_extractor("onnx", fixed).resize == "clean-fid 32"
    with pytest.raises(UserError, match="takes 32x32 px; expected 64 px"):
        open_extractor("onnx", fixed, side_px=64)
    oblong = onnx_files.features(tmp_path / "oblong.onnx", random(5, 3, 8, 8), 8, sides=(32, 64))
    with pytest.raises(UserError, match="a square one"):
        open_extractor("onnx", oblong)
    with pytest.raises(UserError, match="extractor 'onnx' without a path"):
        open_extractor("onnx")


def test_a_transformers_model_gives_features(tmp_path):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    hf = pytest.importorskip("transformers", reason=NO_TORCH)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    model = hf.Dinov2Model(hf.Dinov2Config(**sizes)).eval()
    model.save_pretrained(tmp_path / "dino")
    hf.BitImageProcessor(size={"shortest_edge": 28}, crop_size=28).save_pretrained(tmp_path / "dino")
    images = golden_inputs.images(3, 28, 28)
    extractor = open_extractor("transformers", tmp_path / "dino", batch=2)
    assert extractor.resize == "clean-fid 28"
    processor = hf.BitImageProcessor.from_pretrained(tmp_path / "dino")
    with torch.inference_mode():
        expected = model(**processor(images=list(images), return_tensors="pt")).pooler_output.numpy()
    np.testing.assert_allclose(extractor(images), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# --------------------------------------------------------------------------------------------- CLIP
class LetterTokenizer:
    """Stands for tokenizers.Tokenizer where that is not installed: one token for each letter."""

    @classmethod
    def from_file(cls, path):
        return cls()

    def enable_truncation(self, most):
        self.most = most

    def encode(self, text):
        return types.SimpleNamespace(ids=[ord(letter) % 32 for letter in text][: self.most])


@pytest.fixture
def clip_folder(tmp_path):
    (tmp_path / "onnx").mkdir()
    onnx_files.pooled_features(tmp_path / "onnx/vision_model.onnx", random(6, 3, 8, 8))
    onnx_files.text_encoder(tmp_path / "onnx/text_model.onnx", random(32, 6, seed=1))
    preprocessor(tmp_path, 0.5, 0.5)
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def test_clip_from_onnx_files(clip_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=LetterTokenizer))
    clip = open_clip(clip_folder)
    images, captions = golden_inputs.images(3, 32, 32), ["a bird", "a car", "a bird"]
    embedded, texts = clip.images(images), clip.texts(captions)
    assert embedded.shape == texts.shape == (3, 6)
    x = (images / 255 - 0.5) / 0.5
    patches = x.reshape(3, 4, 8, 4, 8, 3).transpose(0, 1, 3, 5, 2, 4)
    expected = np.einsum("nabchw,fchw->nabf", patches, random(6, 3, 8, 8)).mean(axis=(1, 2))
    np.testing.assert_allclose(embedded, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    table = random(32, 6, seed=1)
    np.testing.assert_allclose(texts[1], table[[ord(c) % 32 for c in "a car"]].mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(texts[0], texts[2])
    assert np.isfinite(clip_score(embedded, texts))
    before = clip.weights
    onnx_files.text_encoder(clip_folder / "onnx/text_model.onnx", random(32, 6, seed=2))
    assert open_clip(clip_folder).weights != before


def test_a_folder_without_all_of_clip_is_refused(clip_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"tokenizers is not installed.*kaleido_jax\[eval\]"):
        open_clip(clip_folder)
    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=LetterTokenizer))
    (clip_folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="no file .*preprocessor_config.json"):
        open_clip(clip_folder)
    preprocessor(clip_folder, 0.5, 0.5)

    class Damaged:
        @staticmethod
        def from_file(path):
            raise Exception("EOF while parsing")  # as the library does

    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=Damaged))
    with pytest.raises(UserError, match=r"tokenizer.json cannot be read \(EOF while parsing\)"):
        open_clip(clip_folder)
    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=LetterTokenizer))
    onnx_files.pooled_features(clip_folder / "onnx/text_model.onnx", random(6, 3, 8, 8))
    with pytest.raises(UserError, match=r"takes \['pixel_values'\]; expected input_ids"):
        open_clip(clip_folder).texts(["a bird"])


def test_clip_from_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    hf = pytest.importorskip("transformers", reason=NO_TORCH)
    from tests.annotate.vlm.tiny_vlm import _tokenizer

    torch.manual_seed(0)
    tokenizer = _tokenizer("<|endoftext|>", "<pad>")
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.CLIPConfig(
        text_config=layers | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id},
        vision_config=layers | {"image_size": 28, "patch_size": 14},
        projection_dim=8,
    )
    model = hf.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    pictures = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    hf.CLIPProcessor(pictures, tokenizer).save_pretrained(tmp_path)
    clip, images = open_clip(tmp_path), golden_inputs.images(2, 28, 28)
    embedded, texts = clip.images(images), clip.texts(["a bird", "a red car"])
    inputs = hf.AutoProcessor.from_pretrained(tmp_path)(
        images=list(images), text=["a bird", "a red car"], return_tensors="pt", padding=True
    )
    with torch.inference_mode():
        out = model(**inputs)
    for found, expected in ((embedded, out.image_embeds), (texts, out.text_embeds)):
        unit = found / np.linalg.norm(found, axis=1, keepdims=True)
        np.testing.assert_allclose(unit, expected.numpy(), rtol=0, atol=2e-5)
    assert open_extractor("transformers", tmp_path)(images).shape == (2, 16)
