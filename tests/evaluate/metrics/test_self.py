"""What the metrics must say of sets whose truth is known, however the sets are cut, ordered and placed."""

import dataclasses

import numpy as np
import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.evaluate.metrics import neighbors
from kaleido_jax.evaluate.metrics.condition import accuracy, clip_score
from kaleido_jax.evaluate.metrics.diversity import by_condition, mean_similarity, vendi_score
from kaleido_jax.evaluate.metrics.frechet import frechet_distance, load_moments, moments
from kaleido_jax.evaluate.metrics.kernel import kernel_distance
from kaleido_jax.evaluate.metrics.manifold import manifold


def classes(number, per_class, seed=0, width=16):
    """Features of well separated classes, class after class."""
    rng = np.random.default_rng(seed)
    centers = 20 * np.random.default_rng(99).normal(size=(number, width))
    return (np.repeat(centers, per_class, axis=0) + rng.normal(size=(number * per_class, width))).astype(np.float32)


def frechet(a, b):
    return frechet_distance(moments(a), moments(b))


# ------------------------------------------------------------------------------------- known truth
@pytest.mark.parametrize("copies", [1, 2, 6])  # 6: the balls of k = 3 have no radius
def test_identical_sets(copies):
    x = np.repeat(classes(4, 30), copies, axis=0)
    found = manifold(x, x[::-1].copy())
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    if copies == 1:
        assert found.density == pytest.approx(1, abs=1e-12)
    assert frechet(x, x[::-1]) < 1e-9


def test_one_image_repeated_has_precision_but_no_recall():
    real = classes(4, 100)
    middle = real[:100].mean(axis=0, keepdims=True)  # of a class, and not itself a real image
    samples = np.repeat(middle, 400, axis=0)
    found = manifold(real, samples)
    assert (found.recall, found.precision) == (0, 1)
    assert found.coverage <= 0.25
    assert frechet(real, samples) > 100 * frechet(real, classes(4, 100, seed=1))


def test_half_the_classes_cost_recall_and_not_precision():
    real, all_, half = classes(10, 60), classes(10, 60, seed=1), classes(10, 60, seed=1)[:300]
    whole, part = manifold(real, all_), manifold(real, half)
    assert part.recall == pytest.approx(whole.recall / 2, abs=0.02) and whole.recall > 0.7
    assert part.precision == pytest.approx(whole.precision, abs=0.03)
    assert part.coverage == pytest.approx(whole.coverage / 2, abs=0.02)
    assert frechet(real, half) > 10 * frechet(real, all_)


def test_noise_costs_precision_and_not_recall():
    real = classes(4, 100)
    noise = np.random.default_rng(3).normal(size=real.shape).astype(np.float32) * 60
    samples = classes(4, 100, seed=1)
    whole, noisy = manifold(real, samples), manifold(real, np.concatenate([samples, noise]))
    assert noisy.precision == pytest.approx(whole.precision / 2, abs=0.02)
    assert noisy.recall >= whole.recall and noisy.coverage == whole.coverage


def test_frechet_distance_of_gaussians_has_its_closed_form():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50_000, 3)), rng.normal(size=(50_000, 3)) * [1, 2, 3] + [0, 0, 2]
    # |mean|^2 + sum of (std - std')^2
    assert frechet(a, b) == pytest.approx(4 + 0 + 1 + 4, rel=0.02)


@pytest.mark.parametrize(("number", "other"), [(20, 30), (64, 65), (200, 100)])
def test_frechet_distance_is_exact_with_fewer_images_than_features(number, other):
    # Directions of hardly any variance, where eigenvalues of the product are rounding only. The trace of the root is
    # also the sum of the singular values of X Y^T, of the features themselves.
    rng = np.random.default_rng(number)
    x = rng.normal(size=(number, 64)) * np.logspace(0, -6, 64)
    y = rng.normal(size=(other, 64)) * np.logspace(0, -5, 64)
    dx, dy = x - x.mean(0), y - y.mean(0)
    root = np.linalg.svd(dx @ dy.T, compute_uv=False).sum() / np.sqrt((number - 1) * (other - 1))
    traces = (dx**2).sum() / (number - 1) + (dy**2).sum() / (other - 1)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + traces - 2 * root
    assert frechet(x, y) == pytest.approx(expected, rel=1e-9)


def test_features_that_never_vary_change_nothing():
    x, y = classes(4, 40), classes(4, 40, seed=1) * 1.1
    padded = [np.concatenate([a, np.full((len(a), 5), 7, np.float32)], axis=1) for a in (x, y)]
    assert frechet(*padded) == pytest.approx(frechet(x, y), rel=1e-9)


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(0)
    same = [
        kernel_distance(*(rng.normal(size=(100, 8)) for _ in range(2)), subsets=1, subset_size=100).mean
        for _ in range(40)
    ]
    error = np.std(same) / np.sqrt(len(same))
    assert abs(np.mean(same)) < 3 * error
    moved = kernel_distance(rng.normal(size=(100, 8)), rng.normal(size=(100, 8)) + 1, subsets=5, subset_size=80)
    assert moved.mean > 10 * np.std(same) and moved.std > 0


def test_vendi_score_counts_samples_that_differ():
    assert vendi_score(np.repeat(classes(1, 1), 9, axis=0)) == pytest.approx(1, abs=1e-9)
    assert vendi_score(np.eye(7, 20)) == pytest.approx(7, abs=1e-9)
    assert vendi_score(np.tile(np.eye(4), (25, 1))) == pytest.approx(4, abs=1e-9)  # more samples than features
    assert vendi_score(3 * np.eye(5, 9)) == pytest.approx(5, abs=1e-9)  # their length says nothing
    assert mean_similarity(np.eye(7, 20)) == pytest.approx(0, abs=1e-12)
    assert mean_similarity(np.repeat(classes(1, 1), 9, axis=0)) == pytest.approx(1, abs=1e-12)


def test_diversity_is_measured_for_each_condition():
    rows = np.concatenate([np.eye(6, 12), np.repeat(np.eye(1, 12), 4, axis=0)])
    order = np.random.default_rng(0).permutation(10)
    captions = ["a bird"] * 6 + ["a car"] * 4
    found = by_condition(vendi_score, rows[order], [captions[i] for i in order])
    assert found == {"a bird": pytest.approx(6), "a car": pytest.approx(1)}
    with pytest.raises(UserError, match="9 conditions of 10 samples"):
        by_condition(vendi_score, rows, captions[1:])


def test_accuracy_and_clip_score():
    logits = np.array([[3.0, 1, 2], [0, 5, 4], [1, 1, 1]])
    assert accuracy(logits, np.array([0, 2, 0])) == pytest.approx(1 / 3)  # a tie is not right
    assert accuracy(logits, np.array([0, 2, 0]), top=2) == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="label 0..2"):
        accuracy(logits, np.array([0, 3, 0]))
    images, texts = np.array([[1.0, 0], [3, 4], [1, 0]]), np.array([[2.0, 0], [0, 9], [-1, 0]])
    assert clip_score(images, texts) == pytest.approx(100 * (1 + 0.8 + 0) / 3)
    with pytest.raises(UserError, match="one text for each image"):
        clip_score(images, texts[1:])


# ------------------------------------------------------------------------- batches, order, sharding
def awkward():
    """Clusters far from zero, copies inside and across the sets, and a far point."""
    rng = np.random.default_rng(4)
    real, samples = classes(6, 40) + 500, classes(6, 35, seed=1) + 500
    real = np.concatenate([real, real[:9], real[:9], np.full((1, 16), -4000, np.float32)])
    samples = np.concatenate([samples, real[100:110], np.repeat(samples[:1], 7, axis=0)])
    return rng.permutation(real), rng.permutation(samples)


def test_neighbors_are_exact_whatever_the_blocks_and_the_order(monkeypatch):
    from tests.evaluate.metrics.test_parity import brute_force

    real, samples = awkward()
    expected = brute_force(real, samples, 3)
    rng = np.random.default_rng(5)
    for block in (1024, 136, 128):
        monkeypatch.setattr(neighbors, "BLOCK", block)
        found = vars(manifold(rng.permutation(real), rng.permutation(samples)))
        assert found == pytest.approx(expected, abs=1e-12), block


def test_counts_of_repeated_images_are_not_rounded_on_a_tpu():
    points = neighbors.distinct(classes(2, 10), "points")
    blocks = neighbors.Blocks(points, np.zeros(16, np.float32)).with_balls(np.ones(20))
    (part,) = blocks._parts
    traced = neighbors._inside_of_block.trace(part, part, same=False)
    lowered = traced.lower(lowering_platforms=("tpu",)).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert len(products) == 4 and all("[HIGHEST, HIGHEST]" in line for line in products)


def test_rows_whose_bounds_do_not_decide_are_measured_exactly(monkeypatch):
    # Many points nearly as far as the third: the candidates are not enough, and whole rows are measured again.
    rng = np.random.default_rng(6)
    around = rng.normal(size=(200, 8))
    around = 100 + around / np.linalg.norm(around, axis=1, keepdims=True) * (1 + 1e-6 * rng.random((200, 1)))
    points = np.concatenate([np.full((1, 8), 100.0), around]).astype(np.float32)
    whole_rows = []
    exact = neighbors.exact_squared

    def counted(a, rows, b, columns):
        whole_rows.extend(rows[:1] if len(rows) == len(points) - 1 else [])
        return exact(a, rows, b, columns)

    monkeypatch.setattr(neighbors, "exact_squared", counted)
    blocks = neighbors.Blocks(neighbors.distinct(points, "points"), np.zeros(8, np.float32))
    found = neighbors.squared_radii(blocks, 3)
    x = points.astype(np.float64)
    np.testing.assert_array_equal(found, np.sort(((x[:, None] - x[None]) ** 2).sum(-1), axis=1)[:, 3])
    assert 0 in whole_rows


@pytest.mark.slow
def test_neighbors_do_not_depend_on_the_devices(eight_devices):
    real, samples = awkward()
    out = eight_devices(
        """
import jax
from kaleido_jax.evaluate.metrics import neighbors
from kaleido_jax.evaluate.metrics.manifold import manifold
from tests.evaluate.metrics.test_self import awkward
neighbors.BLOCK = 128
assert jax.device_count() == 8
print(vars(manifold(*awkward())))
"""
    )
    assert out.strip() == str(vars(manifold(real, samples)))


def test_moments_do_not_depend_on_batches_or_their_order(tmp_path, monkeypatch):
    from kaleido_jax.evaluate.metrics import frechet as module

    x = classes(5, 50) + 1000
    at_once, numpy_ = moments(x), np.cov(x.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(at_once.covariance, numpy_, rtol=1e-10, atol=1e-10 * numpy_.max())
    monkeypatch.setattr(module, "CHUNK", 33)
    shuffled = np.random.default_rng(0).permutation(x)
    for other in (moments(shuffled), moments(iter([x[:1], x[1:90], x[90:]])), moments(x[100:]) + moments(x[:100])):
        assert other.count == 250
        np.testing.assert_allclose(other.mean, at_once.mean, rtol=1e-13)
        np.testing.assert_allclose(other.covariance, numpy_, rtol=1e-10, atol=1e-10 * numpy_.max())
    at_once.save(tmp_path / "reference.npz")
    assert frechet_distance(load_moments(tmp_path / "reference.npz"), at_once) < 1e-9
    np.savez(tmp_path / "other.npz", mean=x)
    with pytest.raises(UserError, match="count, mean and scatter"):
        load_moments(tmp_path / "other.npz")
    for mean, scatter in ((np.zeros(4), np.zeros((3, 3))), (np.zeros(3), np.full((3, 3), np.nan)), (0.0, 0.0)):
        np.savez(tmp_path / "other.npz", count=9, mean=mean, scatter=scatter)
        with pytest.raises(UserError, match="expected finite moments of one width"):
            load_moments(tmp_path / "other.npz")


def test_the_kernel_distance_does_not_depend_on_the_order():
    x, y, rng = classes(5, 50), classes(5, 40, seed=1), np.random.default_rng(0)
    first = kernel_distance(x, y, subsets=3, subset_size=60)
    assert kernel_distance(rng.permutation(x), rng.permutation(y), subsets=3, subset_size=60) == first
    assert kernel_distance(x, y, subsets=3, subset_size=60, seed=1) != first


# --------------------------------------------------------------------------------------- bad input
def test_bad_input_is_one_line():
    x = classes(2, 10)
    broken = x.copy()
    broken[3, 3] = np.nan
    for call, message in (
        (lambda: manifold(x[:3], x), "3 images for 3 neighbors; expected more than 3"),
        (lambda: manifold(x, x, k=15), "15 neighbors of 20 images; expected 1 to 11"),
        (lambda: manifold(x, x * np.float32(1e30)), "beyond 1e19"),
        (lambda: manifold(x, broken), "samples: 20 features, some of them not finite"),
        (lambda: manifold(x, x[:, 1:]), "one extractor"),
        (lambda: frechet(x, x[:, 1:]), "one extractor"),
        (lambda: frechet(x, x[:1]), "two or more"),
        (lambda: moments(broken), "not finite"),
        (lambda: moments([]), "no features"),
        (
            lambda: frechet_distance(dataclasses.replace(moments(x), scatter=np.full((16, 16), np.nan)), moments(x)),
            "are not",
        ),
        (lambda: kernel_distance(x, x), "subsets of 1000"),
        (lambda: kernel_distance(x, broken, subset_size=5), "not finite"),
        (lambda: vendi_score(x * 0), "20 of norm zero"),
        (lambda: mean_similarity(x[:1]), "two or more"),
        (lambda: accuracy(broken, np.zeros(20, int)), "logits of 20 samples, some of them not finite"),
        (lambda: clip_score(x, broken), "20 pairs of embeddings, 0 of them with one of norm zero; expected finite"),
        (lambda: clip_score(np.concatenate([x[1:], 0 * x[:1]]), x), "20 pairs of embeddings, 1 of them"),
    ):
        with pytest.raises(UserError, match=message):
            call()
