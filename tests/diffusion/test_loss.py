import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.config.schema import Diffusion
from kaleido_jax.diffusion.loss import diffusion_loss, loss_weight, mixed_rows
from kaleido_jax.diffusion.process import from_x0_eps, q_sample
from kaleido_jax.diffusion.schedule import alpha_bar_table, vdm_weights

BATCH, SCALES = 6, (2, 1)
TIMES = jnp.asarray([0, 1, 150, 400, 800, 999])


def case(config):
    """(predictions, x_t, clean, eps, alpha_bars) of random networks' outputs at two resolutions."""
    rng = np.random.default_rng(0)
    draw = lambda: [jnp.asarray(rng.normal(size=(BATCH, n, n, 3)), jnp.float32) for n in (4, 2)]  # noqa: E731
    predictions, clean, eps = draw(), draw(), draw()
    x_t, alpha_bars = q_sample(config, clean, eps, TIMES, SCALES)
    return predictions, x_t, clean, eps, alpha_bars


def by_hand(config, lists):
    """Each sample's loss at each resolution for v and loss_space eps: alpha_bar * (v_hat - v)^2."""
    out = []
    for v_hat, _, x, e, alpha_bar in zip(*lists, strict=True):
        squared = (v_hat - from_x0_eps(x, e, alpha_bar, "v")) ** 2
        out.append(np.asarray(alpha_bar * squared.mean((1, 2, 3)), np.float64))
    return out


def test_a_mixed_batch_is_the_sum_of_the_means_over_the_rows_each_resolution_has():
    config = Diffusion(loss_weights=(2.0, 3.0))
    lists = case(config)
    high, low = by_hand(config, lists)
    rows = mixed_rows((2, 1), BATCH)
    assert rows == (4, 6)
    cut = [[x[:n] for x, n in zip(xs, rows, strict=True)] for xs in lists]
    loss, each = diffusion_loss(config, *cut)
    np.testing.assert_allclose(each, [high[:4].mean(), low.mean()], rtol=1e-5)
    # ml-mdm's form: of each sample, the outer loss over its share of rows and 0 elsewhere
    scaled = np.where(np.arange(BATCH) < 4, high / (2 / 3), 0)
    np.testing.assert_allclose(loss, (2 * scaled + 3 * low).mean(), rtol=1e-5)


def test_a_batch_that_the_ratio_does_not_divide_still_counts_by_its_share():
    lists = case(Diffusion())
    high, low = by_hand(Diffusion(), lists)
    batch, rows = 5, mixed_rows((2, 1), 5)
    assert rows == (3, 5)
    cut = [[x[:n] for x, n in zip(xs, rows, strict=True)] for xs in lists]
    loss, _ = diffusion_loss(Diffusion(), *cut, mixed_ratio=(2, 1))
    scaled = np.where(np.arange(batch) < 3, high[:batch] / (2 / 3), 0)
    np.testing.assert_allclose(loss, (scaled + low[:batch]).mean(), rtol=1e-5)


def test_mixed_rows_are_cumulative_shares():
    assert mixed_rows((2, 1), 3) == (2, 3) and mixed_rows((2, 1), 512) == (341, 512)
    assert mixed_rows((4, 2, 1), 14) == (8, 12, 14) and mixed_rows((1, 0), 5) == (5, 5)


def test_vdm_weights_weigh_samples_by_their_step():
    config = Diffusion(vdm_weights=True)
    assert loss_weight(Diffusion(), TIMES) is None
    weight = loss_weight(config, TIMES)
    alpha_bars = alpha_bar_table(config.schedule, config.num_steps).astype(np.float64)
    k = np.maximum(np.asarray(TIMES) + 1, 2)  # the first two are as the third entry, k = 2
    w = alpha_bars[k - 1] * (1 - alpha_bars[k]) / ((1 - alpha_bars[k - 1]) * alpha_bars[k]) - 1
    np.testing.assert_allclose(weight, w, rtol=1e-6)
    lists = case(config)
    loss, _ = diffusion_loss(config, *lists, weight)
    per_sample = sum(by_hand(config, lists))
    np.testing.assert_allclose(loss, (per_sample * w).sum() / w.sum(), rtol=1e-5)


def test_vdm_weights_in_a_mixed_batch_still_divide_by_the_weight_of_all():
    config = Diffusion(vdm_weights=True)
    lists, weight = case(config), loss_weight(config, TIMES)
    high, low = by_hand(config, lists)
    cut = [[x[:n] for x, n in zip(xs, (4, 6), strict=True)] for xs in lists]
    w, scaled = np.asarray(weight), np.where(np.arange(BATCH) < 4, high / (2 / 3), 0)
    np.testing.assert_allclose(diffusion_loss(config, *cut, weight)[0], ((scaled + low) * w).sum() / w.sum(), rtol=1e-5)


def test_equal_weights_change_nothing():
    lists = case(Diffusion())
    plain, _ = diffusion_loss(Diffusion(), *lists)
    np.testing.assert_allclose(diffusion_loss(Diffusion(), *lists, jnp.full(BATCH, 0.3))[0], plain, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["squared_cosine", "cosine", "linear"])
def test_vdm_weights_are_finite_and_positive(schedule):
    weights = vdm_weights(alpha_bar_table(schedule, 1000))
    assert weights.shape == (1001,) and np.isfinite(weights).all() and (weights > 0).all()
    assert weights[0] == weights[1] == weights[2]


def test_gradients_of_rows_that_a_resolution_does_not_see_are_zero():
    config = dataclasses.replace(Diffusion(), vdm_weights=True)
    predictions, *rest = case(config)

    def loss_of(high):
        cut = [[x[:n] for x, n in zip(xs, (4, 6), strict=True)] for xs in ([high, predictions[1]], *rest)]
        return diffusion_loss(config, *cut, loss_weight(config, TIMES))[0]

    grad = jax.grad(loss_of)(predictions[0])
    assert np.abs(grad[:4]).min(axis=(1, 2, 3)).max() > 0 and np.abs(grad[4:]).max() == 0
