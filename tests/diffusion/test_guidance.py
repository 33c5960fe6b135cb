import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.config.schema import Diffusion, Sample
from kaleido_jax.diffusion.guidance import (
    annealed,
    autoguidance,
    classifier_free,
    condition_annealed,
    guided_rule,
    in_one_batch,
    no_guidance,
    projected,
    start_memory,
    with_memory,
    within,
)
from kaleido_jax.diffusion.process import change_prediction, expand
from kaleido_jax.diffusion.samplers import SAMPLERS, reverse
from kaleido_jax.diffusion.schedule import alpha_bar_table, shift
from kaleido_jax.runtime.randomness import sample_keys

DIFFUSION, BATCH = Diffusion(), 4
SHAPES, SCALES = ((4, 4, 3), (2, 2, 3)), (2, 1)
GAMMAS = jnp.asarray(alpha_bar_table(DIFFUSION.schedule, DIFFUSION.num_steps))
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


CFG = classifier_free(denoise, C, U, GAMMA)(IMAGES, TIMES)
PLAIN = no_guidance(denoise, C)(IMAGES, TIMES)


def rule_of(gamma=GAMMA, bad=None, **sample):
    return guided_rule(Sample(**sample), DIFFUSION, SCALES, gamma, denoise, U, bad)


def run(rule, sample=None, images=IMAGES):
    return rule(images, TIMES, start_memory(sample or Sample(), BATCH, SHAPES))[0]


# ---------------------------------------------------------------------------------------------- interval
def test_an_interval_over_everything_is_cfg_and_an_empty_one_the_conditional():
    same(run(rule_of(guidance_interval=(0.0, 1e9))(C)), CFG)
    same(run(rule_of(guidance_interval=(1e8, 1e9))(C)), PLAIN)
    same(run(rule_of()(C)), CFG)
    same(run(rule_of(gamma=None)(C)), PLAIN)


def test_the_interval_is_in_sigma_of_the_innermost_and_closed_above():
    sigma = float(jnp.sqrt((1 - GAMMAS[601]) / GAMMAS[601]))
    for interval, inside in (((0.0, sigma), True), ((sigma, 9.0), False), ((0.0, 0.99 * sigma), False)):
        same(run(rule_of(guidance_interval=interval)(C)), CFG if inside else PLAIN)


def test_the_unconditional_pass_is_not_run_outside_the_interval():
    rows = []

    def counting(images, times, condition):
        jax.debug.callback(lambda: rows.append(len(times)))
        return denoise(images, times, condition)

    rule = guided_rule(Sample(guidance_interval=(0.5, 5.0)), DIFFUSION, SCALES, GAMMA, counting, U, None)(C)
    sample = Sample(sampler="ddim", num_steps=10, start_at_n=True)
    reverse(rule, KEYS, DIFFUSION, sample, SHAPES, SCALES, memory=())
    jax.effects_barrier()
    sigmas = np.sqrt((1 - GAMMAS) / GAMMAS)[100 * np.arange(10, 0, -1)]
    assert rows == [2 * BATCH if 0.5 < sigma <= 5 else BATCH for sigma in sigmas]
    assert len(set(rows)) == 2


# -------------------------------------------------------------------------------------------------- CADS
def noised(times=TIMES, **sample):
    noise = jax.random.normal(jax.random.key(1), STATES.shape)
    return annealed(STATES, MASK, noise, times, DIFFUSION, Sample(**sample))


def test_cads_without_noise_is_the_condition_itself():
    np.testing.assert_allclose(noised(cads_tau=(0.7, 0.9)), STATES, atol=1e-6)  # still below tau_1
    np.testing.assert_allclose(noised(cads_tau=(1.0, 1.0)), STATES, atol=1e-6)
    np.testing.assert_allclose(noised(cads_tau=(0.2, 0.9), cads_noise=0.0), STATES, atol=1e-6)  # scaled, and back
    assert np.isfinite(noised(cads_tau=(0.2, 0.3), cads_noise=0.0)).all()  # nothing is left to scale back


def test_cads_keeps_mean_and_deviation_over_the_valid_positions():
    out = np.asarray(noised(cads_tau=(0.2, 0.9), cads_noise=2.0, cads_mix=1.0))
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
    out = noised(cads_tau=(0.2, 0.9), cads_noise=0.5, cads_mix=0.0)
    np.testing.assert_allclose(out[0], expected, atol=1e-5)


def cads(keys, states, mask, times=TIMES, unconditional=U, **sample):
    sample = Sample(guidance="cads", **sample)
    rule = guided_rule(sample, DIFFUSION, SCALES, GAMMA, denoise, unconditional, None)
    return condition_annealed(rule, read, (states, mask), keys, DIFFUSION, sample)


def test_cads_with_a_clean_condition_is_cfg():
    clean = classifier_free(denoise, read(STATES, MASK), U, GAMMA)(IMAGES, TIMES)
    same(run(cads(KEYS, STATES, MASK, cads_tau=(1.0, 1.0))), clean, atol=1e-5)
    assert np.abs(run(cads(KEYS, STATES, MASK, cads_tau=(0.1, 0.2)))[0] - clean[0]).max() > 1e-2


def test_cads_noise_is_new_at_every_time_and_a_function_of_the_samples_key():
    settings = {"cads_tau": (0.0, 0.1), "cads_noise": 1.0}
    rule = cads(KEYS, STATES, MASK, **settings)
    one, u = slice(2, 3), {"a": U["a"][2:3]}
    alone = cads(KEYS[one], STATES[one], MASK[one], unconditional=u, **settings)
    many = rule(IMAGES, TIMES, ())[0]
    same([x[one] for x in many], alone([x[one] for x in IMAGES], TIMES[one], ())[0], atol=1e-6)
    constant = lambda images, times, condition: [expand(condition["a"], x) + 0 * x for x in images]  # noqa: E731
    settings = Sample(guidance="cads", **settings)
    plain = guided_rule(settings, DIFFUSION, SCALES, None, constant, U, None)
    noisy = condition_annealed(plain, read, (STATES, MASK), KEYS, DIFFUSION, settings)
    first, second = (noisy(IMAGES, TIMES + i, ())[0][0] for i in range(2))
    assert np.abs(first - second).max() > 1e-3


# --------------------------------------------------------------------------------------------------- APG
def apg(**sample):
    settings = Sample(guidance="apg", **({"apg_eta": 1.0, "apg_threshold": 0.0, "apg_momentum": 0.0} | sample))
    return projected(in_one_batch(denoise, C, U), GAMMA, DIFFUSION, settings, SCALES), settings


def as_x0(predictions, r):
    gamma = shift(GAMMAS[TIMES + 1], SCALES[r])
    return np.asarray(change_prediction(predictions[r], IMAGES[r], gamma, "v", "x0")).reshape(BATCH, -1)


def test_apg_with_everything_off_is_cfg():
    rule, settings = apg()
    same(run(rule, settings), CFG, atol=2e-5)
    rule, settings = apg(apg_threshold=1e6)
    same(run(rule, settings), CFG, atol=2e-5)
    same(run(rule_of(guidance="apg", apg_eta=1.0, apg_momentum=0.0)(C), settings), CFG, atol=2e-5)


def test_apg_without_the_parallel_part_moves_at_right_angles_to_the_prediction():
    rule, settings = apg(apg_eta=0.0)
    predictions = run(rule, settings)
    for r in range(2):
        conditional = as_x0(PLAIN, r)
        moved = as_x0(predictions, r) - conditional
        assert np.abs((moved * conditional).sum(1)).max() < 1e-3 * (np.abs(moved) * np.abs(conditional)).sum(1).max()
        full = as_x0(CFG, r) - conditional
        np.testing.assert_allclose((moved * full).sum(1), (moved**2).sum(1), rtol=1e-3)  # an orthogonal projection


def test_apg_bounds_the_update_by_its_threshold_times_the_scale():
    rule, settings = apg(apg_threshold=0.3)
    predictions = run(rule, settings)
    for r, scale in enumerate(SCALES):
        norm = np.linalg.norm(as_x0(predictions, r) - as_x0(PLAIN, r), axis=1) / (float(GAMMA) - 1)
        np.testing.assert_allclose(norm, 0.3 * scale, rtol=1e-3)


def test_apg_momentum_adds_a_share_of_the_last_update():
    rule, settings = apg(apg_momentum=-0.5)
    _, memory = rule(IMAGES, TIMES, start_memory(settings, BATCH, SHAPES))
    predictions, memory_after = rule(IMAGES, TIMES, memory)
    for r in range(2):
        update = (as_x0(CFG, r) - as_x0(PLAIN, r)) / (float(GAMMA) - 1)
        moved = (as_x0(predictions, r) - as_x0(PLAIN, r)) / (float(GAMMA) - 1)
        np.testing.assert_allclose(memory[r].reshape(BATCH, -1), update, atol=1e-4)
        np.testing.assert_allclose(moved, update - 0.5 * update, atol=1e-4)
        np.testing.assert_allclose(memory_after[r].reshape(BATCH, -1), 0.5 * update, atol=1e-4)


def test_apg_in_another_prediction_space_is_the_same_rule_on_x0():
    def other(space):
        def moved(images, times, condition):
            levels = [shift(GAMMAS[times + 1], scale) for scale in SCALES]
            predictions = denoise(images, times, condition)
            return [change_prediction(v, x, g, "v", space) for v, x, g in zip(predictions, images, levels, strict=True)]

        return moved

    _, settings = apg(apg_eta=0.2, apg_threshold=0.5)
    for space in ("eps", "x0"):
        diffusion = dataclasses.replace(DIFFUSION, prediction=space)
        rule = projected(in_one_batch(other(space), C, U), GAMMA, diffusion, settings, SCALES)
        reference = run(projected(in_one_batch(denoise, C, U), GAMMA, DIFFUSION, settings, SCALES), settings)
        for r, prediction in enumerate(run(rule, settings)):
            level = shift(GAMMAS[TIMES + 1], SCALES[r])
            x0 = change_prediction(prediction, IMAGES[r], level, space, "x0")
            np.testing.assert_allclose(x0.reshape(BATCH, -1), as_x0(reference, r), atol=1e-4)


# ------------------------------------------------------------------------------------------ autoguidance
def test_autoguidance_away_from_oneself_is_no_guidance():
    plain = no_guidance(denoise, C)
    same(autoguidance(plain, plain, GAMMA)(IMAGES, TIMES), PLAIN)
    same(run(rule_of(guidance="autoguidance", bad=plain)(C)), PLAIN)


def test_autoguidance_extrapolates_from_the_worse_model():
    plain, bad = (no_guidance(denoise, side) for side in (C, U))
    same(autoguidance(plain, bad, GAMMA)(IMAGES, TIMES), CFG, atol=1e-5)


# ----------------------------------------------------------------------------------------- all, sampling
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", ["cfg", "cads", "apg", "autoguidance"])
def test_every_rule_goes_with_every_sampler(guidance, sampler):
    sample = Sample(sampler=sampler, guidance=guidance, num_steps=3, guidance_interval=(0.1, 3.0))
    rule = guided_rule(sample, DIFFUSION, SCALES, GAMMA, denoise, U, no_guidance(denoise, U))
    predict = rule(C)
    if guidance == "cads":
        predict = condition_annealed(rule, read, (STATES, MASK), KEYS, DIFFUSION, sample)
    memory = start_memory(sample, BATCH, SHAPES)
    drawn = jax.jit(lambda: reverse(predict, KEYS, DIFFUSION, sample, SHAPES, SCALES, memory))()
    assert all(np.isfinite(x).all() and np.abs(x).max() <= 1 for x in drawn)


def test_a_rule_without_memory_hands_it_on():
    assert with_memory(no_guidance(denoise, C))(IMAGES, TIMES, "memory")[1] == "memory"
    both = within((0.0, 1e9), DIFFUSION, *2 * [with_memory(no_guidance(denoise, C))])
    same(both(IMAGES, TIMES, ())[0], PLAIN)
