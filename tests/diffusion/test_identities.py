import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.config.schema import Diffusion, Sample
from kaleido_jax.diffusion.guidance import CFG
from kaleido_jax.diffusion.process import (
    add_noise,
    change_prediction,
    from_x0_eps,
    per_sample_normal,
    pyramid,
    threshold,
    to_x0_eps,
)
from kaleido_jax.diffusion.samplers import DDIM, DDPM, Levels
from kaleido_jax.diffusion.schedule import alpha_bar_table, log_snr, shift, step_list
from kaleido_jax.runtime.randomness import sample_keys
from tests.diffusion.denoisers import denoiser, reverse

RNG = np.random.default_rng(0)
X0, X_T, NOISE = (jnp.asarray(RNG.normal(size=(4, 6, 6, 3)), jnp.float32) for _ in range(3))
T, S = jnp.float32(0.3), jnp.float32(0.6)
KEYS = sample_keys(0, "image", 0, jnp.arange(4))


def ancestral_step(x0, x_t, t, s, noise):
    return DDPM().update(x_t, x0, (), Levels(t, t, s), noise)[0]


def ddim_step(x0, x_t, t, s, noise, eta):
    return DDIM(eta=eta).update(x_t, x0, (), Levels(t, t, s), noise)[0]


def test_ddim_with_eta_one_has_the_ancestral_mean_and_variance():
    still = 0 * NOISE
    mean = ddim_step(X0, X_T, T, S, still, 1.0)
    np.testing.assert_allclose(mean, ancestral_step(X0, X_T, T, S, still), atol=2e-6)
    spread = ddim_step(X0, X_T, T, S, NOISE, 1.0) - mean
    expected = ancestral_step(X0, X_T, T, S, NOISE) - ancestral_step(X0, X_T, T, S, still)
    np.testing.assert_allclose(spread, expected, atol=2e-6)


def test_a_step_to_alpha_bar_one_lands_on_x0():
    for step in (ancestral_step, lambda *a: ddim_step(*a, 0.0), lambda *a: ddim_step(*a, 1.0)):
        np.testing.assert_allclose(step(X0, X_T, T, jnp.float32(1.0), NOISE), X0, atol=2e-6)


@pytest.mark.parametrize("source", ["v", "eps", "x0"])
@pytest.mark.parametrize("target", ["v", "eps", "x0"])
def test_spaces_convert_into_each_other(source, target):
    alpha_bar = jnp.asarray([0.1, 0.5, 0.9, 0.99])
    x_t = add_noise(X0, NOISE, alpha_bar)
    there = change_prediction(from_x0_eps(X0, NOISE, alpha_bar, source), x_t, alpha_bar, source, target)
    np.testing.assert_allclose(there, from_x0_eps(X0, NOISE, alpha_bar, target), atol=2e-5)
    x0, eps = to_x0_eps(there, x_t, alpha_bar, target)
    np.testing.assert_allclose(x0, X0, atol=2e-5)
    np.testing.assert_allclose(eps, NOISE, atol=2e-5)


def test_gamma_one_is_the_conditional_prediction():
    def denoise(images, times, condition):
        return [x * condition["a"][:, None, None, None] for x in images]

    model = denoiser(denoise, {"a": jnp.arange(4.0)}, {"a": -jnp.ones(4)})
    run = lambda gamma: CFG(gamma=gamma)(model, [X_T], jnp.zeros(4, int), KEYS, ())[0][0]  # noqa: E731
    (plain,) = model.predict([X_T], jnp.zeros(4, int))
    np.testing.assert_array_equal(run(1.0), plain)
    np.testing.assert_allclose(run(3.0), -X_T + 3 * (plain + X_T), atol=1e-5)


def test_shift_divides_the_snr_by_a_power_of_the_scale():
    alpha_bars = jnp.asarray(alpha_bar_table("squared_cosine", 1000))
    inner = slice(1, 900)  # beyond, float32 leaves too few digits in 1 - alpha_bar
    for power in (1.0, 2.0):
        moved = log_snr(alpha_bars[inner]) - log_snr(shift(alpha_bars, 4, power)[inner])
        np.testing.assert_allclose(moved, power * np.log(4), atol=2e-2)
    assert shift(alpha_bars, 4)[0] == 1 and shift(alpha_bars, 1) is alpha_bars


def test_step_list_is_mdms_and_can_start_at_n():
    assert list(step_list(1000, 250)[:3]) == [997, 993, 989] and step_list(1000, 250)[-1] == 0
    assert list(step_list(1000, 4, start_at_n=True)) == [1000, 750, 500, 250, 0]


def test_pyramid_pools_averages():
    levels = pyramid(jnp.asarray(X0[:, :4, :4]), (4, 2, 1))
    np.testing.assert_allclose(levels[2][:, 0, 0], X0[:, :4, :4].mean((1, 2)), atol=1e-6)
    assert [level.shape[1] for level in levels] == [4, 2, 1]


def test_dynamic_threshold_keeps_a_sample_in_range_as_it_is():
    small = jnp.asarray(0.5 * jnp.clip(X0, -1, 1))
    for kind in ("none", "clip", "dynamic", "dynamic_capped"):
        np.testing.assert_allclose(threshold(small, kind), small, atol=1e-7)
    assert float(jnp.abs(threshold(5 * jnp.asarray(X0), "dynamic")).max()) <= 1


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_perfect_denoiser_is_sampled_to_its_image(sampler):
    diffusion = Diffusion()
    alpha_bars = jnp.asarray(alpha_bar_table(diffusion.schedule, 1000))
    clean = [jnp.clip(X0, -1, 1), jnp.clip(X0[:, :3, :3], -1, 1)]

    def predict(images, times):
        out = []
        for x, x0, scale in zip(images, clean, (2, 1), strict=True):
            alpha_bar = shift(alpha_bars[times + 1], scale)
            eps = (x - jnp.sqrt(alpha_bar)[:, None, None, None] * x0) / jnp.sqrt(1 - alpha_bar)[:, None, None, None]
            out.append(from_x0_eps(x0, eps, alpha_bar, "v"))
        return out

    settings = Sample(sampler=sampler, num_steps=8)
    drawn = reverse(predict, KEYS, diffusion, settings, ((6, 6, 3), (3, 3, 3)), (2, 1))
    for image, x0 in zip(drawn, clean, strict=True):
        np.testing.assert_allclose(image, x0, atol=1e-5)


def test_a_sample_depends_on_its_own_key_only():
    shapes = ((4, 4, 3), (2, 2, 3))
    all_of_them = per_sample_normal(sample_keys(7, "image", 0, jnp.arange(5)), shapes)
    one = per_sample_normal(sample_keys(7, "image", 0, jnp.asarray([3])), shapes)
    for many, single in zip(all_of_them, one, strict=True):
        np.testing.assert_array_equal(many[3], single[0])
    assert not np.allclose(all_of_them[0][0, :2, :2], all_of_them[1][0])  # resolutions are independent
    assert not np.allclose(
        jax.random.normal(sample_keys(7, "a", 0, jnp.arange(1))[0]),
        jax.random.normal(sample_keys(7, "b", 0, jnp.arange(1))[0]),
    )
