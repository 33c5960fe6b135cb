"""Profiles of averages: their widths, and any profile as a sum of snapshots of two others."""

import numpy as np
import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.runtime.posthoc_ema import MAX_SIGMA_REL, coefficients, gamma_of

STORED = (0.05, 0.10)


def weights_of(sigma_rel, time, steps):
    """What an average at `time` weighs the parameters of steps 1..`steps` by: the profile's integral over each."""
    gamma = gamma_of(sigma_rel)
    edges = np.minimum(np.arange(steps + 1), time) / time
    return np.diff(edges ** (gamma + 1))


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_a_profile_has_the_width_that_names_it(sigma_rel):
    """Its mean and standard deviation, summed up numerically."""
    count = 400_000
    shares, t = weights_of(sigma_rel, count, count), (np.arange(count) + 0.5) / count
    mean = shares @ t
    np.testing.assert_allclose(np.sqrt(shares @ (t - mean) ** 2), sigma_rel, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.01, 1, 6.94, 16.97, 500])
def test_an_exponent_is_found_from_the_width_of_its_profile(gamma):
    """6.94 and 16.97 are those that the paper gives for 0.10 and 0.05."""
    t = (np.arange(400_000) + 0.5) / 400_000
    shares = t**gamma / (t**gamma).sum()
    np.testing.assert_allclose(gamma_of(np.sqrt(shares @ (t - shares @ t) ** 2)), gamma, rtol=2e-3)


@pytest.mark.parametrize("sigma_rel", [0, -0.1, MAX_SIGMA_REL, 0.5, float("nan")])
def test_a_width_out_of_range_is_one_line(sigma_rel):
    with pytest.raises(UserError, match=r"sigma_rel = .*; expected a number between 0 and 0.2886; use e.g."):
        gamma_of(sigma_rel)


def walk(steps, parameters=200):
    """A made-up history of parameters, (steps, parameters): they drift, and jump about as with a high learning rate."""
    rng = np.random.default_rng(0)
    return 3 + np.cumsum(rng.normal(size=(steps, parameters)), axis=0) / steps**0.5 + rng.normal(size=(steps, 1))


def reconstructed(history, every, sigma_rel, dtype=np.float64):
    """(the average of `sigma_rel` from snapshots of STORED, the profile's error, the best of the last snapshots)."""
    steps = len(history)
    times, widths = np.repeat(np.arange(every, steps + 1, every), 2), np.tile(STORED, steps // every)
    stored = [weights_of(w, t, steps) @ history for t, w in zip(times, widths, strict=True)]
    factors, error = coefficients(times, widths, steps, sigma_rel)
    return factors @ np.asarray(stored, dtype).astype(np.float64), error, stored[-2:]


def off(found, expected):
    return np.sqrt(np.mean((found - expected) ** 2))


@pytest.mark.parametrize("sigma_rel", [0.06, 0.08, 0.12, 0.2])
def test_snapshots_of_two_profiles_sum_up_to_a_third(sigma_rel):
    """Within the error that least squares tells, which a single snapshot exceeds a hundred times."""
    history = walk(1600)
    expected = weights_of(sigma_rel, 1600, 1600) @ history
    found, error, single = reconstructed(history, 20, sigma_rel)
    best = min(off(one, expected) for one in single)
    assert error < 2e-3 and off(found, expected) < 0.02 * best
    profile = weights_of(sigma_rel, 1600, 1600)
    times, widths = np.repeat(np.arange(20, 1601, 20), 2), np.tile(STORED, 80)
    factors, _ = coefficients(times, widths, 1600, sigma_rel)
    made = factors @ [weights_of(w, t, 1600) for t, w in zip(times, widths, strict=True)]
    np.testing.assert_allclose(
        np.linalg.norm(made - profile) / np.linalg.norm(profile), error, rtol=0.1
    )  # the L2 distance, summed up numerically


@pytest.mark.parametrize("sigma_rel", STORED)
def test_a_profile_that_is_stored_is_its_last_snapshot(sigma_rel):
    times, widths = np.repeat(np.arange(20, 1601, 20), 2), np.tile(STORED, 80)
    factors, error = coefficients(times, widths, 1600, sigma_rel)
    np.testing.assert_allclose(factors, (times == 1600) & (widths == sigma_rel), atol=1e-8)
    assert error < 1e-6


def test_few_snapshots_leave_constant_parameters_as_they_are():
    times, widths = np.asarray([2, 2, 4, 4]), np.asarray(STORED * 2)
    for sigma_rel in (0.03, 0.08, 0.25):
        factors, _ = coefficients(times, widths, 4, sigma_rel)
        np.testing.assert_allclose(factors.sum(), 1, rtol=1e-12)
    assert coefficients(times, widths, 4, 0.25)[1] > 0.1 > coefficients(times, widths, 4, 0.08)[1]


def test_rounding_of_snapshots_to_float16_is_not_enlarged():
    """A third profile is as exact as one weight in float16; bfloat16 would lose eight times as much."""
    history = walk(1600)
    exact = reconstructed(history, 20, 0.08)[0]
    rounded = reconstructed(history, 20, 0.08, np.float16)[0]
    np.testing.assert_allclose(rounded, exact, rtol=2**-10)
    assert off(rounded, exact) > 1e-6 * off(exact, 0)  # so it was rounded
    import ml_dtypes

    assert off(reconstructed(history, 20, 0.08, ml_dtypes.bfloat16)[0], exact) > 4 * off(rounded, exact)
