import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.config import fields
from kaleido_jax.config.schema import Diffusion, Model, Sample, sample_shapes, scales
from kaleido_jax.diffusion import samplers
from kaleido_jax.diffusion.process import add_noise, expand, from_x0_eps, per_sample_normal
from kaleido_jax.diffusion.samplers import DDIM, SAMPLERS, DPMpp2M, Levels, evaluations
from kaleido_jax.diffusion.schedule import SCHEDULES, alpha_bar_table, shift
from kaleido_jax.models.nested_unet import build_denoiser
from kaleido_jax.runtime.randomness import sample_keys
from tests.diffusion.denoisers import reverse
from tests.tiny import small_nest, tiny_config

DIFFUSION = Diffusion()
ALPHA_BARS = jnp.asarray(alpha_bar_table(DIFFUSION.schedule, DIFFUSION.num_steps))
SHAPES, SCALES = ((5,), (3,)), (4, 1)
MEAN, DEVIATION = 0.3, 0.5  # of Gaussian data


def to_v(x0, x, alpha_bar):
    eps = (x - jnp.sqrt(expand(alpha_bar, x)) * x0) / jnp.sqrt(1 - expand(alpha_bar, x))
    return from_x0_eps(x0, eps, alpha_bar, "v")


def best_denoiser(images, times, alpha_bars=ALPHA_BARS):
    """E[x0 | x_t] of data from N(MEAN, DEVIATION^2), as v."""
    out = []
    for x, scale in zip(images, SCALES, strict=True):
        alpha_bar = shift(alpha_bars[times + 1], scale)
        a, g = jnp.sqrt(expand(alpha_bar, x)), expand(alpha_bar, x)
        x0 = MEAN + a * DEVIATION**2 * (x - a * MEAN) / (g * DEVIATION**2 + 1 - g)
        out.append(to_v(x0, x, alpha_bar))
    return out


def flow(x, alpha_bar):
    """Where the probability flow takes x from alpha_bar to no noise: each quantile stays itself."""
    x, alpha_bar = np.asarray(x, np.float64), float(alpha_bar)
    spread = np.sqrt(alpha_bar * DEVIATION**2 + 1 - alpha_bar)
    return MEAN + DEVIATION * (x - np.sqrt(alpha_bar) * MEAN) / spread


def error(sampler, num_steps, keys, diffusion):
    """Largest distance to the exact end, at each resolution, starting at N."""
    sample = Sample(sampler=sampler, num_steps=num_steps, threshold="none", start_at_n=True)
    alpha_bars = jnp.asarray(alpha_bar_table(diffusion.schedule, diffusion.num_steps))
    predict = functools.partial(best_denoiser, alpha_bars=alpha_bars)
    drawn = jax.jit(lambda keys: reverse(predict, keys, diffusion, sample, SHAPES, SCALES))(keys)
    start = per_sample_normal(jax.vmap(jax.random.fold_in, (0, None))(keys, diffusion.num_steps + 1), SHAPES)
    ends = [flow(x, shift(alpha_bars[-1], scale)) for x, scale in zip(start, SCALES, strict=True)]
    return np.array([np.abs(x - end).max() for x, end in zip(drawn, ends, strict=True)])


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(sampler, order, monkeypatch):
    # sigma / alpha = 20 (k / N)^2: without the squared cosine's leap at N, whose long step hides the order
    monkeypatch.setitem(SCHEDULES, "smooth", lambda n: 1 / (1 + (20 * (np.arange(1, n + 1) / n) ** 2) ** 2))
    keys = sample_keys(0, "image", 0, jnp.arange(6))
    errors = [error(sampler, n, keys, Diffusion(schedule="smooth")) for n in (50, 100, 200)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert (abs(np.log2(coarse / fine) - order) < 0.3).all(), errors
    assert errors[-1].max() < {"ddim": 4e-2, "dpmpp_2m": 6e-3, "heun": 1.5e-3}[sampler]


def test_2m_extrapolates_in_lambda_and_takes_plain_x0_at_both_ends():
    x0, before = jnp.asarray([1.0]), jnp.asarray([0.5])
    lam = lambda alpha_bar: np.log(alpha_bar / (1 - alpha_bar)) / 2  # noqa: E731

    def extrapolate(*levels):
        level_before, t, s = map(jnp.float32, levels)
        return DPMpp2M().extrapolate(x0, (before, level_before), Levels(t, t, s))

    r = (lam(0.4) - lam(0.2)) / (lam(0.7) - lam(0.4))
    np.testing.assert_allclose(extrapolate(0.2, 0.4, 0.7), (1 + 1 / (2 * r)) * x0 - before / (2 * r), rtol=1e-5)
    for ends in ((1.0, 0.4, 0.7), (0.2, 0.4, 1.0)):
        np.testing.assert_array_equal(extrapolate(*ends), x0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_perfect_denoiser_is_sampled_to_its_image_in_any_number_of_steps(sampler, num_steps):
    clean = [jnp.linspace(-0.9, 0.9, 6 * n).reshape(6, n) for (n,) in SHAPES]

    def predict(images, times):
        levels = [shift(ALPHA_BARS[times + 1], scale) for scale in SCALES]
        return [to_v(x0, x, alpha_bar) for x0, x, alpha_bar in zip(clean, images, levels, strict=True)]

    for start_at_n in (False, True):
        sample = Sample(sampler=sampler, num_steps=num_steps, start_at_n=start_at_n, threshold="none")
        drawn = reverse(predict, sample_keys(0, "image", 0, jnp.arange(6)), DIFFUSION, sample, SHAPES, SCALES)
        for image, x0 in zip(drawn, clean, strict=True):  # 1 / sqrt(alpha_bar[N]) = 2e4 of rounding from the start
            np.testing.assert_allclose(image, x0, atol=2e-2 if start_at_n else 2e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_below_sigma_min_the_last_x0_is_the_image(sampler):
    def predict(images, times):
        """An x0 that tells when it was predicted."""
        x0 = (times[:, None] + 1) / 1000
        return [to_v(jnp.broadcast_to(x0, x.shape), x, shift(ALPHA_BARS[times + 1], s)) for x, s in _with(images)]

    sample = Sample(sampler=sampler, num_steps=20, sigma_min=0.2)
    for image in reverse(predict, sample_keys(0, "image", 0, jnp.arange(2)), DIFFUSION, sample, SHAPES, SCALES):
        np.testing.assert_allclose(image, 0.143, atol=1e-3)  # the noise of steps 95 and 48 is 0.16 and 0.09


def test_sigma_min_leaves_out_steps_with_less_noise_and_never_all():
    steps = lambda **settings: evaluations(DIFFUSION, Sample(**settings)).tolist()  # noqa: E731
    whole = steps(sampler="ddpm", num_steps=250)
    assert steps(sampler="ddpm", num_steps=250, sigma_min=0.085) == [*whole[:238], [48, 48, 0]] and whole[238][0] == 48
    assert steps(sampler="dpmpp_2m", num_steps=20, sigma_min=0.085) == steps(sampler="dpmpp_2m", num_steps=20)
    assert steps(num_steps=20, sigma_min=1e9) == [[953, 953, 0]]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_is_its_keys_alone(sampler):
    sample = Sample(sampler=sampler, num_steps=5)
    draw = lambda indices: reverse(  # noqa: E731
        best_denoiser, sample_keys(3, "image", 0, jnp.asarray(indices)), DIFFUSION, sample, SHAPES, SCALES
    )
    for many, one in zip(draw([0, 1, 2, 3]), draw([2]), strict=True):
        np.testing.assert_allclose(many[2], one[0], atol=1e-6)
        assert np.abs(many[1] - many[2]).max() > 1e-2


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun"])
def test_deterministic_samplers_draw_noise_for_the_start_only(sampler):
    sample = Sample(sampler=sampler, num_steps=4)
    run = lambda keys: reverse(best_denoiser, keys, DIFFUSION, sample, SHAPES, SCALES)  # noqa: E731
    body = jax.make_jaxpr(run)(sample_keys(0, "image", 0, jnp.arange(2)))
    (scan,) = [e for e in body.eqns if e.primitive.name == "scan"]
    assert "random_bits" in str(body) and "random_bits" not in str(scan.params["jaxpr"])


@pytest.mark.parametrize(("sampler", "runs"), [("ddim", 4), ("dpmpp_2m", 4), ("heun", 7)])
def test_the_network_runs_once_a_step_and_twice_with_heun(sampler, runs):
    seen = []

    def predict(images, times):
        jax.debug.callback(lambda t: seen.append(int(t)), times[0])
        return best_denoiser(images, times)

    sample = Sample(sampler=sampler, num_steps=4, start_at_n=True)
    reverse(predict, sample_keys(0, "image", 0, jnp.arange(2)), DIFFUSION, sample, SHAPES, SCALES)
    jax.effects_barrier()
    assert len(seen) == runs and min(seen) == 249 and max(seen) == 999


def test_dynamic_threshold_acts_at_every_network_run():
    """x0 far outside is brought back before any sampler extrapolates it, so all land on the same bound."""

    def far(images, times):
        return [to_v(jnp.full_like(x, 7.0), x, shift(ALPHA_BARS[times + 1], s)) for x, s in _with(images)]

    for sampler in SAMPLERS:
        sample = Sample(sampler=sampler, num_steps=6, threshold="dynamic")
        drawn = reverse(far, sample_keys(0, "image", 0, jnp.arange(2)), DIFFUSION, sample, SHAPES, SCALES)
        np.testing.assert_allclose(drawn[0], 1, atol=1e-4)


def _with(images):
    return zip(images, SCALES, strict=True)


def test_a_step_of_2m_without_history_is_ddims():
    x0, x_t = (jax.random.normal(jax.random.key(i), (2, 3)) for i in range(2))
    t, s = jnp.float32(0.3), jnp.float32(0.6)
    levels = Levels(t, t, s)
    moved, carried = DPMpp2M().update(x_t, x0, (0 * x0, jnp.float32(1)), levels, 0.0)
    np.testing.assert_array_equal(moved, DDIM().update(x_t, x0, (), levels, 0.0)[0])
    np.testing.assert_array_equal(carried[0], x0)


def test_gaussian_data_keep_their_mean_and_deviation_under_the_ancestral_sampler():
    keys = sample_keys(1, "image", 0, jnp.arange(4000))
    sample = Sample(sampler="ddpm", num_steps=200, threshold="none")
    drawn = jax.jit(lambda keys: reverse(best_denoiser, keys, DIFFUSION, sample, SHAPES, SCALES))(keys)
    for x in drawn:  # 12 000 numbers or more: 3 standard errors of mean and deviation are 0.014
        assert abs(float(x.mean()) - MEAN) < 0.014 and abs(float(x.std()) - DEVIATION) < 0.014


@pytest.fixture(scope="module")
def nest():
    """(model, params, condition) of a tiny nest with random weights."""
    outer = small_nest()
    net = build_denoiser(outer, 6)
    text, mask = jnp.ones((2, 3, 6)), jnp.ones((2, 3), bool)
    images = [jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 4, 4, 3))]
    init = lambda m: m(images, jnp.zeros(2, int), m.condition(text, mask))  # noqa: E731
    shapes = jax.eval_shape(lambda: net.lazy_init(jax.random.key(0), method=init))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])
    return net, params, net.apply(params, text, mask, method="condition"), Model(denoiser=outer)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_a_nest(nest, sampler):
    net, params, condition, model = nest
    predict = lambda images, times: net.apply(params, images, times, condition)  # noqa: E731
    sample = Sample(sampler=sampler, num_steps=3)
    keys = sample_keys(0, "image", 0, jnp.arange(2))
    drawn = jax.jit(lambda: reverse(predict, keys, DIFFUSION, sample, sample_shapes(model), scales(model)))()
    assert [x.shape for x in drawn] == [(2, 8, 8, 3), (2, 4, 4, 3)]
    assert all(np.isfinite(x).all() and np.abs(x).max() <= 1 and x.std() > 0.05 for x in drawn)


def test_noise_at_alpha_bar_one_is_none():
    np.testing.assert_array_equal(add_noise(jnp.ones((1, 2)), jnp.full((1, 2), 9.0), jnp.ones(1)), np.ones((1, 2)))


class Jump:
    """A sampler from outside the package: to x0 and back to noise at every step (Song et al. 2023, Algorithm 1)."""

    is_noisy = True

    def times(self, steps):
        return samplers.once_a_step(steps)

    def init(self, x):
        return jnp.zeros((), int)

    def update(self, x, x0, carried, levels, noise):
        return jnp.sqrt(levels.s) * x0 + jnp.sqrt(1 - levels.s) * noise, carried + 1


def test_a_sampler_registered_from_outside_samples_by_its_name(monkeypatch):
    monkeypatch.setattr(samplers, "SAMPLERS", dict(SAMPLERS))
    monkeypatch.setattr(fields, "_more_words", {})
    samplers.register("jump", lambda sample: Jump())
    assert tiny_config(sample__sampler="jump").sample.sampler == "jump"
    sample, keys = Sample(sampler="jump", num_steps=20, threshold="none"), sample_keys(0, "image", 0, jnp.arange(500))
    for x in reverse(best_denoiser, keys, DIFFUSION, sample, SHAPES, SCALES):
        assert abs(float(x.mean()) - MEAN) < 0.1 and 0.2 < float(x.std()) < 0.6
