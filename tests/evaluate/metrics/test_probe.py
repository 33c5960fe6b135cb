import numpy as np
import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.evaluate.metrics.probe import fit_probe


def clusters(number, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % 3
    centers = np.array([[9.0, 0, 100], [0, 9, 100], [0, 0, 100]])  # the last feature says nothing
    return (centers[labels] + rng.normal(size=(number, 3)) * [1, 1, 0]).astype(np.float32), labels


def test_classes_that_lie_apart_are_told_apart_in_new_samples():
    probe = fit_probe(*clusters(60), 3)
    rows, labels = clusters(300, seed=1)
    assert (probe(rows).argmax(axis=1) == labels).mean() > 0.97


def test_the_probe_is_the_unique_optimum_whatever_the_order_and_the_scale_of_features():
    rows, labels = clusters(60)
    probe = fit_probe(rows, labels, 3)
    order = np.random.default_rng(0).permutation(60)
    shuffled = fit_probe(rows[order], labels[order], 3)
    scaled = fit_probe(rows * [2.0, 0.5, 1.0], labels, 3)
    np.testing.assert_allclose(shuffled(rows), probe(rows), atol=2e-2)
    np.testing.assert_allclose(scaled(rows * [2.0, 0.5, 1.0]), probe(rows), atol=2e-2)
    assert (np.abs(probe(rows)) < 50).all()  # regularized, so separable classes have finite logits


@pytest.mark.parametrize("labels", [np.array([0, 0, 2]), np.array([0, 1, 3]), np.array([-1, 0, 1])])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises((UserError, ValueError)):
        fit_probe(np.zeros((3, 2), np.float32), labels, 3)
