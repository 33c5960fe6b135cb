import itertools
import math

import numpy as np
import pytest
from safetensors.numpy import save

from kaleido_jax.annotate.vokens.quality import quality, retrieval
from kaleido_jax.annotate.vokens.quantizer import (
    FiniteScalarQuantizer,
    ResidualQuantizer,
    fit_quantizer,
    fsq_levels,
    kind_of,
    load_quantizer,
    save_quantizer,
)
from kaleido_jax.errors import UserError
from tests.annotate.vokens.float8 import as_float8


def vectors(count, dims=24, seed=0):
    """Normal coefficients of falling variance in a turned space, away from the origin."""
    turn = np.linalg.qr(np.random.default_rng(99).standard_normal((dims, dims)))[0]
    return np.random.default_rng(seed).standard_normal((count, dims)) * 0.8 ** np.arange(dims) @ turn + 3


@pytest.fixture(scope="module")
def fsq():
    return fit_quantizer(vectors(2000), kind="fsq", vokens_per_image=6, codebook_size=64)


@pytest.mark.parametrize(
    ("codebook", "levels"),
    [(2, (2,)), (4, (4,)), (5, (5,)), (9, (8,)), (64, (8, 8)), (256, (7, 6, 6)), (1024, (8, 5, 5, 5)), (8192, None)],
)
def test_levels_fit_the_codebook_with_the_largest_product(codebook, levels):
    found = fsq_levels(codebook)
    assert levels is None or found == levels
    assert math.prod(found) <= codebook and (codebook < 5 or all(5 <= level <= 8 for level in found))
    every = (c for n in range(1, 6) for c in itertools.product(range(5, 9), repeat=n))
    if codebook >= 5:
        assert math.prod(found) == max(math.prod(c) for c in every if math.prod(c) <= codebook)


def test_scalars_are_bounded_rounded_and_counted_in_mixed_radix():
    # Two coefficients along the axes, 4 and 3 cells of equal width in tanh; what each stands for is set by hand.
    quantizer = FiniteScalarQuantizer(
        mean=np.zeros(2),
        components=np.eye(2),
        scale=np.ones(2),
        levels=np.array([4, 3]),
        values=np.array([(-9.0, -1, 1, 9), (-5, 0, 5, 0)]),
    )
    edge = np.arctanh(0.5) / math.sqrt(2 / math.pi)  # between the last two of four cells
    features = np.array([(-50, -50), (50, 50), (edge + 1e-6, 0), (edge - 1e-6, 0), (-1e-6, 0)])
    codes = quantizer.encode(features)
    assert codes.tolist() == [[0], [3 + 4 * 2], [3 + 4], [2 + 4], [1 + 4]]
    assert quantizer.decode(codes).tolist() == [[-9, -5], [9, 5], [9, 0], [1, 0], [-1, 0]]
    assert (quantizer.vokens_per_image, quantizer.codebook_size) == (1, 12)


def test_normal_coefficients_use_all_codes_about_alike(fsq):
    measured = quality(fsq, vectors(4000, seed=1))
    assert min(measured["codes_used"]) == 1.0 and min(measured["perplexity"]) > 0.9 * 64
    assert (np.diff(measured["rmse"]) < 0).all()


def test_decoding_is_the_mean_of_each_cell(fsq):
    features = vectors(2000)
    coefficients = (features - fsq.mean) @ fsq.components.T
    decoded = (fsq.decode(fsq.encode(features)) - fsq.mean) @ fsq.components.T
    first = fsq.encode(features)[:, 0] % fsq.levels[0]
    for cell in range(8):
        np.testing.assert_allclose(decoded[first == cell, 0], coefficients[first == cell, 0].mean(), rtol=1e-9)
    # Eight cells of equal probability keep 0.949 of a normal's variance (integral of the cells' squared means); the
    # tanh is close to that.
    kept = 1 - np.mean((decoded[:, 0] - coefficients[:, 0]) ** 2) / coefficients[:, 0].var()
    assert 0.93 < kept < 0.97


def test_coding_what_was_decoded_changes_nothing(fsq):
    codes = fsq.encode(vectors(500, seed=2))
    np.testing.assert_array_equal(fsq.encode(fsq.decode(codes)), codes)


def test_wide_features_give_the_same_directions_as_narrow_ones():
    narrow = vectors(60, dims=40)
    wide = np.concatenate([narrow, np.zeros((60, 1100))], axis=1)  # takes the images' products instead
    a, b = (fit_quantizer(x, kind="fsq", vokens_per_image=4, codebook_size=64) for x in (narrow, wide))
    np.testing.assert_allclose(b.components[:, :40], a.components, atol=1e-9)
    np.testing.assert_array_equal(a.encode(narrow), b.encode(wide))


@pytest.mark.parametrize("kind", ["residual", "fsq"])
def test_file_gives_the_same_codes_and_tells_damage(kind, tmp_path):
    features, path = vectors(200), tmp_path / "q.safetensors"
    quantizer = fit_quantizer(features, kind=kind, vokens_per_image=4, codebook_size=16)
    save_quantizer(quantizer, path, {"seed": 1})
    loaded, fitted_for = load_quantizer(path)
    assert kind_of(loaded) == kind and fitted_for == {"seed": 1} and loaded.fingerprint == quantizer.fingerprint
    np.testing.assert_array_equal(loaded.encode(features), quantizer.encode(features))
    assert fit_quantizer(features, kind=kind, vokens_per_image=4, codebook_size=16).fingerprint == quantizer.fingerprint
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_quantizer(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"\xff" * 100,
        save({"mean": np.zeros(3)}),
        save({"mean": np.zeros(3)}, metadata={"quantizer": "[" * 100_000}),
        save({"mean": np.zeros(3)}, metadata={"quantizer": "5"}),
        save({"mean": np.zeros(3)}, metadata={"quantizer": '{"kind": "vq", "fingerprint": "", "fitted_for": {}}'}),
    ],
)
def test_a_file_that_is_no_quantizer_is_refused(content, tmp_path):
    path = tmp_path / "q.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged; .*run annotate again"):
        load_quantizer(path)


@pytest.mark.parametrize("kind", ["residual", "fsq"])
def test_a_quantizer_of_float8_or_a_git_lfs_pointer_is_refused(kind, tmp_path):
    path = tmp_path / "q.safetensors"
    save_quantizer(fit_quantizer(vectors(200), kind=kind, vokens_per_image=2, codebook_size=8), path, {})
    path.write_bytes(as_float8(path.read_bytes()))
    with pytest.raises(UserError, match="is damaged"):
        load_quantizer(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="git lfs pull"):
        load_quantizer(path)
    with pytest.raises(UserError, match="no quantizer"):
        load_quantizer(tmp_path)


def test_too_few_images_and_unknown_kinds_are_refused():
    with pytest.raises(UserError, match="12 images with 24 features for 12 coefficients"):
        fit_quantizer(vectors(12), kind="fsq", vokens_per_image=6, codebook_size=64)
    with pytest.raises(UserError, match="40 images with 24 features for 30 coefficients"):
        fit_quantizer(vectors(40), kind="fsq", vokens_per_image=15, codebook_size=64)
    with pytest.raises(UserError, match="quantizer 'vq'"):
        fit_quantizer(vectors(12), kind="vq")
    with pytest.raises(UserError, match="a codebook of 1"):
        fsq_levels(1)


@pytest.mark.parametrize("kind", ["residual", "fsq"])
def test_retrieval_gets_better_with_tokens_and_is_perfect_for_perfect_codes(kind):
    fit, held = vectors(1000), vectors(120, seed=3)
    few, many = (
        retrieval(fit_quantizer(fit, kind=kind, vokens_per_image=tokens, codebook_size=64), held) for tokens in (1, 6)
    )
    assert few["neighbor_recall"] < many["neighbor_recall"] and few["identity_recall"] < many["identity_recall"]
    assert many["identity_recall"] > 0.95

    class Perfect(ResidualQuantizer):
        def encode(self, features):
            return features

        decode = encode

    perfect = Perfect(mean=np.zeros(1), components=np.zeros((1, 1)), codebooks=np.zeros((1, 1, 1)))
    assert retrieval(perfect, held) == {"neighbor_recall": 1.0, "identity_recall": 1.0}
    with pytest.raises(UserError, match="2 images"):
        retrieval(perfect, held[:2])
