import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.config import fields
from kaleido_jax.config.schema import Diffusion, Sample
from kaleido_jax.diffusion import guidance
from kaleido_jax.diffusion.guidance import CFG, Autoguidance, from_config
from kaleido_jax.diffusion.process import change_prediction, expand
from kaleido_jax.diffusion.samplers import SAMPLERS, reverse
from kaleido_jax.diffusion.schedule import alpha_bar_table, shift
from kaleido_jax.errors import UserError
from kaleido_jax.runtime.randomness import sample_keys
from tests.diffusion.denoisers import denoiser
from tests.tiny import tiny_config

DIFFUSION, BATCH = Diffusion(), 4
SHAPES, SCALES = ((4, 4, 3), (2, 2, 3)), (2, 1)
ALPHA_BARS = jnp.asarray(alpha_bar_table(DIFFUSION.schedule, DIFFUSION.num_steps))
KEYS = sample_keys(0, "image", 0, jnp.arange(BATCH))
RNG = np.random.default_rng(0)
IMAGES = [jnp.asarray(RNG.normal(size=(BATCH, *shape)), jnp.float32) for shape in SHAPES]
TIMES = jnp.full(BATCH, 600)
STATES = jnp.asarray(RNG.normal(size=(BATCH, 5, 8)) * 0.2 + 0.1, jnp.float32)
MASK = jnp.asarray(np.arange(5) < np.array([[5], [3], [4], [1]]))
GAMMA = jnp.float32(3.0)
C, U = {"a": jnp.arange(1.0, 5.0)}, {"a": -jnp.ones(BATCH)}


def denoise(images, times, condition):
    """A network that mixes its input, the time and the condition, row by row."""
    a, t = condition["a"], times / 1000
    return [jnp.tanh(x * expand(0.3 * a, x) + expand(t, x)) for x in images]


def read(states, mask):
    """A condition of one number a sample, which sees more than the mean."""
    weights = jnp.linspace(-1, 1, states[0].size).reshape(1, *states.shape[1:])
    return {"a": (states * weights * mask[..., None]).sum((1, 2))}


def same(ours, theirs, atol=2e-6):
    """But for rounding, which gamma multiplies: what is fused differs inside and outside of a branch."""
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


MODEL = denoiser(denoise, C, U)
PLAIN = MODEL.predict(IMAGES, TIMES)


def rule_of(gamma=GAMMA, **sample):
    return from_config(Sample(**sample), DIFFUSION, SCALES, gamma)


def run(rule, model=MODEL, images=IMAGES, times=TIMES, keys=KEYS):
    return rule(model, images, times, keys, rule.init(len(times), SHAPES))[0]


GUIDED = run(CFG(gamma=GAMMA))


# ---------------------------------------------------------------------------------------------- interval
def test_an_interval_over_everything_is_cfg_and_an_empty_one_the_conditional():
    same(run(rule_of(guidance_interval=(0.0, 1e9))), GUIDED)
    same(run(rule_of(guidance_interval=(1e8, 1e9))), PLAIN)
    same(run(rule_of()), GUIDED)
    same(run(rule_of(gamma=None)), PLAIN)


def test_the_interval_is_in_sigma_of_the_innermost_and_closed_above():
    sigma = float(jnp.sqrt((1 - ALPHA_BARS[601]) / ALPHA_BARS[601]))
    for interval, inside in (((0.0, sigma), True), ((sigma, 9.0), False), ((0.0, 0.99 * sigma), False)):
        same(run(rule_of(guidance_interval=interval)), GUIDED if inside else PLAIN)


def test_the_unconditional_pass_is_not_run_outside_the_interval():
    rows = []

    def counting(images, times, condition):
        jax.debug.callback(lambda: rows.append(len(times)))
        return denoise(images, times, condition)

    sample = Sample(sampler="ddim", num_steps=10, start_at_n=True)
    rule = rule_of(guidance_interval=(0.5, 5.0))
    reverse(denoiser(counting, C, U), rule, KEYS, DIFFUSION, sample, SHAPES, SCALES)
    jax.effects_barrier()
    sigmas = np.sqrt((1 - ALPHA_BARS) / ALPHA_BARS)[100 * np.arange(10, 0, -1)]
    assert rows == [2 * BATCH if 0.5 < sigma <= 5 else BATCH for sigma in sigmas]
    assert len(set(rows)) == 2


# -------------------------------------------------------------------------------------------------- CADS
def anneal(times=TIMES, **sample):
    noise = jax.random.normal(jax.random.key(1), STATES.shape)
    return rule_of(guidance="cads", **sample).anneal(STATES, MASK, noise, times)


def test_cads_without_noise_is_the_condition_itself():
    np.testing.assert_allclose(anneal(cads_tau=(0.7, 0.9)), STATES, atol=1e-6)  # still below tau_1
    np.testing.assert_allclose(anneal(cads_tau=(1.0, 1.0)), STATES, atol=1e-6)
    np.testing.assert_allclose(anneal(cads_tau=(0.2, 0.9), cads_noise=0.0), STATES, atol=1e-6)  # scaled, and back
    assert np.isfinite(anneal(cads_tau=(0.2, 0.3), cads_noise=0.0)).all()  # nothing is left to scale back


def test_cads_keeps_mean_and_deviation_over_the_valid_positions():
    out = np.asarray(anneal(cads_tau=(0.2, 0.9), cads_noise=2.0, cads_mix=1.0))
    for row, (states, mask) in enumerate(zip(np.asarray(STATES), np.asarray(MASK), strict=True)):
        np.testing.assert_allclose(out[row][mask].mean(), states[mask].mean(), atol=1e-6)
        np.testing.assert_allclose(out[row][mask].std(), states[mask].std(), rtol=1e-4)
        np.testing.assert_array_equal(out[row][~mask], states[~mask])
        assert np.abs(out[row][mask] - states[mask]).max() > 0.05


def test_cads_follows_its_formula_without_rescaling():
    a = (0.9 - 0.601) / 0.7
    std = np.asarray(STATES[0]).std()
    noise = np.asarray(jax.random.normal(jax.random.key(1), STATES.shape))[0]
    expected = np.sqrt(a) * STATES[0] + 0.5 * std * np.sqrt(1 - a) * noise
    out = anneal(cads_tau=(0.2, 0.9), cads_noise=0.5, cads_mix=0.0)
    np.testing.assert_allclose(out[0], expected, atol=1e-5)


def of_states(rows=slice(None), net=denoise):
    """A denoiser that reads its condition from states."""
    states, mask, uncond = STATES[rows], MASK[rows], {"a": U["a"][rows]}
    return denoiser(net, read(states, mask), uncond, read=read, states=(states, mask))


def test_cads_with_a_clean_condition_is_cfg():
    clean = run(CFG(gamma=GAMMA), of_states())
    same(run(rule_of(guidance="cads", cads_tau=(1.0, 1.0)), of_states()), clean, atol=1e-5)
    assert np.abs(run(rule_of(guidance="cads", cads_tau=(0.1, 0.2)), of_states())[0] - clean[0]).max() > 1e-2


def test_cads_noise_is_new_at_every_time_and_a_function_of_the_samples_key():
    settings = {"guidance": "cads", "cads_tau": (0.0, 0.1), "cads_noise": 1.0}
    rule, one = rule_of(**settings), slice(2, 3)
    alone = run(rule, of_states(one), [x[one] for x in IMAGES], TIMES[one], KEYS[one])
    same([x[one] for x in run(rule, of_states())], alone, atol=1e-6)
    constant = lambda images, times, condition: [expand(condition["a"], x) + 0 * x for x in images]  # noqa: E731
    noisy = of_states(net=constant)
    first, second = (run(rule_of(gamma=None, **settings), noisy, times=TIMES + i)[0] for i in range(2))
    assert np.abs(first - second).max() > 1e-3


# --------------------------------------------------------------------------------------------------- APG
def apg(diffusion=DIFFUSION, **sample):
    off = {"guidance": "apg", "apg_eta": 1.0, "apg_threshold": 0.0, "apg_momentum": 0.0}
    return from_config(Sample(**off | sample), diffusion, SCALES, GAMMA)


def as_x0(predictions, r):
    alpha_bar = shift(ALPHA_BARS[TIMES + 1], SCALES[r])
    return np.asarray(change_prediction(predictions[r], IMAGES[r], alpha_bar, "v", "x0")).reshape(BATCH, -1)


def test_apg_with_everything_off_is_cfg():
    same(run(apg()), GUIDED, atol=2e-5)
    same(run(apg(apg_threshold=1e6)), GUIDED, atol=2e-5)


def test_apg_without_the_parallel_part_moves_at_right_angles_to_the_prediction():
    predictions = run(apg(apg_eta=0.0))
    for r in range(2):
        conditional = as_x0(PLAIN, r)
        moved = as_x0(predictions, r) - conditional
        assert np.abs((moved * conditional).sum(1)).max() < 1e-3 * (np.abs(moved) * np.abs(conditional)).sum(1).max()
        full = as_x0(GUIDED, r) - conditional
        np.testing.assert_allclose((moved * full).sum(1), (moved**2).sum(1), rtol=1e-3)  # an orthogonal projection


def test_apg_bounds_the_update_by_its_threshold_times_the_scale():
    predictions = run(apg(apg_threshold=0.3))
    for r, scale in enumerate(SCALES):
        norm = np.linalg.norm(as_x0(predictions, r) - as_x0(PLAIN, r), axis=1) / (float(GAMMA) - 1)
        np.testing.assert_allclose(norm, 0.3 * scale, rtol=1e-3)


def test_apg_momentum_adds_a_share_of_the_last_update():
    rule = apg(apg_momentum=-0.5)
    _, state = rule(MODEL, IMAGES, TIMES, KEYS, rule.init(BATCH, SHAPES))
    predictions, state_after = rule(MODEL, IMAGES, TIMES, KEYS, state)
    for r in range(2):
        update = (as_x0(GUIDED, r) - as_x0(PLAIN, r)) / (float(GAMMA) - 1)
        moved = (as_x0(predictions, r) - as_x0(PLAIN, r)) / (float(GAMMA) - 1)
        np.testing.assert_allclose(state[r].reshape(BATCH, -1), update, atol=1e-4)
        np.testing.assert_allclose(moved, update - 0.5 * update, atol=1e-4)
        np.testing.assert_allclose(state_after[r].reshape(BATCH, -1), 0.5 * update, atol=1e-4)


def test_apg_in_another_prediction_space_is_the_same_rule_on_x0():
    def other(space):
        def moved(images, times, condition):
            levels = [shift(ALPHA_BARS[times + 1], scale) for scale in SCALES]
            predictions = denoise(images, times, condition)
            return [change_prediction(v, x, g, "v", space) for v, x, g in zip(predictions, images, levels, strict=True)]

        return moved

    settings = {"apg_eta": 0.2, "apg_threshold": 0.5}
    reference = run(apg(**settings))
    for space in ("eps", "x0"):
        rule = apg(dataclasses.replace(DIFFUSION, prediction=space), **settings)
        for r, prediction in enumerate(run(rule, denoiser(other(space), C, U))):
            level = shift(ALPHA_BARS[TIMES + 1], SCALES[r])
            x0 = change_prediction(prediction, IMAGES[r], level, space, "x0")
            np.testing.assert_allclose(x0.reshape(BATCH, -1), as_x0(reference, r), atol=1e-4)


# ------------------------------------------------------------------------------------------ autoguidance
def test_autoguidance_away_from_oneself_is_no_guidance():
    same(run(Autoguidance(gamma=GAMMA), dataclasses.replace(MODEL, worse=MODEL)), PLAIN)


def test_autoguidance_extrapolates_from_the_worse_model():
    worse = denoiser(denoise, U)
    same(run(rule_of(guidance="autoguidance"), dataclasses.replace(MODEL, worse=worse)), GUIDED, atol=1e-5)


def test_autoguidance_without_a_worse_model_is_an_error_unless_it_is_off():
    with pytest.raises(UserError, match="worse model"):
        run(Autoguidance(gamma=GAMMA))
    same(run(Autoguidance(gamma=1.0)), PLAIN)


# ----------------------------------------------------------------------------------------- all, sampling
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", ["cfg", "cads", "apg", "autoguidance"])
def test_every_rule_goes_with_every_sampler(guidance, sampler):
    sample = Sample(sampler=sampler, guidance=guidance, num_steps=3, guidance_interval=(0.1, 3.0))
    rule = from_config(sample, DIFFUSION, SCALES, GAMMA)
    model = dataclasses.replace(of_states(), worse=denoiser(denoise, U))
    drawn = jax.jit(lambda: reverse(model, rule, KEYS, DIFFUSION, sample, SHAPES, SCALES))()
    assert all(np.isfinite(x).all() and np.abs(x).max() <= 1 for x in drawn)


@pytest.mark.parametrize("guidance", ["cfg", "cads", "apg", "autoguidance"])
def test_a_rule_that_is_off_hands_its_state_on_and_runs_each_row_once(guidance):
    rows = []

    def counting(images, times, condition):
        rows.append(len(times))
        return denoise(images, times, condition)

    rule = rule_of(gamma=None, guidance=guidance, guidance_interval=(0.1, 3.0), cads_tau=(1.0, 1.0))
    model = of_states(net=counting)
    predictions, state = rule(model, IMAGES, TIMES, KEYS, GAMMA)
    same(predictions, model.predict(IMAGES, TIMES), atol=1e-6)
    assert state is GAMMA and rows == [BATCH, BATCH]


class Towards:
    """A rule from outside the package: the mean of the last prediction and this one."""

    def init(self, batch, shapes):
        return [jnp.zeros((batch, *shape)) for shape in shapes]

    def __call__(self, model, images, times, keys, state):
        predictions = model.predict(images, times)
        return [(v + last) / 2 for v, last in zip(predictions, state, strict=True)], predictions


def test_a_rule_registered_from_outside_is_sampled_by_its_name(monkeypatch):
    monkeypatch.setattr(guidance, "RULES", dict(guidance.RULES))
    monkeypatch.setattr(fields, "_more_words", {})
    guidance.register("towards", lambda sample, diffusion, scales, gamma: Towards())
    sample = Sample(guidance="towards", num_steps=3, guidance_interval=(0.0, 1e9))
    assert tiny_config(sample__guidance="towards").sample.guidance == "towards"
    rule = from_config(sample, DIFFUSION, SCALES, GAMMA)
    drawn = reverse(MODEL, rule, KEYS, DIFFUSION, sample, SHAPES, SCALES)
    plain = reverse(MODEL, CFG(gamma=1.0), KEYS, DIFFUSION, sample, SHAPES, SCALES)
    assert all(np.isfinite(x).all() and np.abs(x - y).max() > 1e-2 for x, y in zip(drawn, plain, strict=True))
