"""Reverse samplers: one lax.scan over network evaluations, every resolution at once (MDM, section 6).

A sampler is its rows (where the network looks), what it carries beside x, and `move`, which acts on one resolution.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from kaleido_jax.config.schema import Diffusion, Sample
from kaleido_jax.diffusion.guidance import with_memory
from kaleido_jax.diffusion.process import per_sample_normal, threshold, to_x0_eps
from kaleido_jax.diffusion.schedule import alpha_bar_table, log_snr, shift, step_list


def ancestral_step(x0, x_t, alpha_bar_t, alpha_bar_s, noise):
    """DDPM: a draw from q(x_s | x_t, x0) (Ho et al. 2020, Eq. 7)."""
    a = alpha_bar_t / alpha_bar_s
    b = 1 - a
    variance = b * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    mean = x0 * b * jnp.sqrt(alpha_bar_s) / (1 - alpha_bar_t) + x_t * jnp.sqrt(a) * (1 - alpha_bar_s) / (
        1 - alpha_bar_t
    )
    return mean + jnp.sqrt(variance) * noise


def ddim_step(x0, x_t, alpha_bar_t, alpha_bar_s, noise, ddim_eta: float):
    """DDIM (Song et al. 2021, Eq. 12); ddim_eta = 1 equals the ancestral step, 0 draws no noise."""
    eps = (x_t - jnp.sqrt(alpha_bar_t) * x0) / jnp.sqrt(1 - alpha_bar_t)
    variance = ddim_eta**2 * (1 - alpha_bar_t / alpha_bar_s) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    direction = jnp.sqrt(jnp.maximum(1 - alpha_bar_s - variance, 0))
    return x0 * jnp.sqrt(alpha_bar_s) + eps * direction + jnp.sqrt(variance) * noise


def multistep_x0(x0, x0_before, alpha_bar_before, alpha_bar_t, alpha_bar_s):
    """D of DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): x0 extrapolated in lambda = ln(alpha / sigma).

    D = x0 + h / (2 h_before) (x0 - x0_before). Plain x0 on the first step, marked by alpha_bar_before = 1, and on the
    last, where alpha_bar_s = 1 makes h infinite.
    """
    before, t, s = (log_snr(alpha_bar) / 2 for alpha_bar in (alpha_bar_before, alpha_bar_t, alpha_bar_s))
    between = (alpha_bar_before < 1) & (alpha_bar_s < 1)
    weight = jnp.where(between, (s - t) / (2 * jnp.where(between, t - before, 1)), 0)
    return x0 + weight * (x0 - x0_before)


# ----------------------------------- moves: (x, x0, carried, levels (at, t, s), noise, sample) -> (x, carried)
def _move_ddpm(x, x0, carried, alpha_bars, noise, sample):
    _, t, s = alpha_bars
    return ancestral_step(x0, x, t, s, noise), carried


def _move_ddim(x, x0, carried, alpha_bars, noise, sample):
    _, t, s = alpha_bars
    return ddim_step(x0, x, t, s, noise, sample.ddim_eta), carried


def _move_dpmpp_2m(x, x0, carried, alpha_bars, noise, sample):
    """The exponential integrator with x0 held fixed is DDIM without noise, so only x0 differs from it."""
    _, t, s = alpha_bars
    extrapolated = multistep_x0(x0, *carried, t, s)
    return ddim_step(extrapolated, x, t, s, noise, 0.0), (x0, t)


def _move_heun(x, x0, carried, alpha_bars, noise, sample):
    """Heun on dy/d sigma = (y - x0) / sigma with y = x / alpha, sigma = sqrt((1 - alpha_bar) / alpha_bar) (EDM).

    A look at t is Algorithm 1's Euler step to s and carries its start and slope; a look at s takes the step again
    with the mean slope. The look at s = 0 is left out, which makes the last step Euler. A step list with
    `start_at_n` is not for it: under the squared cosine the first step then leaps from sigma = 2e4 to a few tens.
    """
    at, t, s = alpha_bars
    start, slope = carried
    y, sigma = x / jnp.sqrt(at), _sigma(at)
    here = (y - x0) / sigma
    again = at != t
    start, mean = jnp.where(again, start, y), jnp.where(again, (slope + here) / 2, here)
    return (start + (_sigma(s) - _sigma(t)) * mean) * jnp.sqrt(s), (start, here)


def _sigma(alpha_bar):
    return jnp.sqrt((1 - alpha_bar) / alpha_bar)


# ------------------------------------------------------------------- rows: steps -> (at, t, s), one a network run
def _once_a_step(steps: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m 3"]:
    return np.stack([steps[:-1], steps[:-1], steps[1:]], axis=1)


def _at_both_ends(steps: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m 3"]:
    once = _once_a_step(steps)
    return np.stack([once, once[:, [2, 1, 2]]], axis=1).reshape(-1, 3)[:-1]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One entry of the table below."""

    move: Callable  # one resolution's (x, carried) after a network run
    carry: Callable = lambda x: ()  # what is carried beside x at the start
    rows: Callable = _once_a_step
    is_noisy: Callable = lambda sample: False  # whether `move` reads the noise


SAMPLERS = {
    "ddpm": Sampler(move=_move_ddpm, is_noisy=lambda sample: True),
    "ddim": Sampler(move=_move_ddim, is_noisy=lambda sample: sample.ddim_eta > 0),
    "dpmpp_2m": Sampler(move=_move_dpmpp_2m, carry=lambda x: (jnp.zeros_like(x), jnp.ones((), x.dtype))),
    "heun": Sampler(move=_move_heun, rows=_at_both_ends, carry=lambda x: (jnp.zeros_like(x), jnp.zeros_like(x))),
}


def reverse_step(images, carried, predictions, draws, alpha_bars, diffusion: Diffusion, sample: Sample, scales):
    """What one network run does at every resolution; lists over resolutions, high to low.

    `carried` is the sampler's own. `draws` is standard noise like `images`. alpha_bars (at, t, s), scalars, are the
    innermost resolution's where the network looked, and at both ends of the step; others are shifted by their scale.

    Returns (images, carried).
    """
    moved = []
    for x, kept, prediction, z, scale in zip(images, carried, predictions, draws, scales, strict=True):
        shifted = tuple(shift(alpha_bar, scale, diffusion.shift_power) for alpha_bar in alpha_bars)
        x0, _ = to_x0_eps(prediction, x, jnp.full(x.shape[:1], shifted[0]), diffusion.prediction)
        x0 = threshold(x0, sample.threshold)
        moved.append(SAMPLERS[sample.sampler].move(x, x0, kept, shifted, z, sample))
    return [x for x, _ in moved], [kept for _, kept in moved]


def reverse(
    predict: Callable,
    keys: Key[Array, "b"],
    diffusion: Diffusion,
    sample: Sample,
    shapes: tuple[tuple[int, ...], ...],
    scales: tuple[int, ...],
    memory=None,
) -> list[Float[Array, "b ..."]]:
    """Draws samples from pure noise.

    Args:
      predict: (images, network times (B,)) -> predictions; lists over resolutions, high to low. Guidance is
        already inside.
      keys: one key a sample; sample i depends on its key alone, not on the batch or the devices.
      diffusion: the process.
      sample: sampler, number of steps, threshold, ddim_eta.
      shapes: of one sample at each resolution.
      scales: of each resolution relative to the innermost.
      memory: of a `predict` that has one, (images, times, memory) -> (predictions, memory), at the start.

    Returns:
      The last x of every resolution, clipped to [-1, 1] where the threshold is not "none".
    """
    sampler = SAMPLERS[sample.sampler]
    alpha_bars = jnp.asarray(alpha_bar_table(diffusion.schedule, diffusion.num_steps), float)
    rows = jnp.asarray(sampler.rows(step_list(diffusion.num_steps, sample.num_steps, sample.start_at_n)))
    batch = keys.shape[0]
    if memory is None:
        predict, memory = with_memory(predict), ()

    def noise(purpose):
        return per_sample_normal(jax.vmap(jax.random.fold_in, (0, None))(keys, purpose), shapes)

    def run(state, row):
        images, carried, memory = state
        at = row[0]
        predictions, memory = predict(images, jnp.full((batch,), at - 1, jnp.int32), memory)
        # Steps are 1..N and the start uses N + 1, so no draw is used twice.
        draws = noise(at) if sampler.is_noisy(sample) else [0.0] * len(shapes)
        images, carried = reverse_step(images, carried, predictions, draws, alpha_bars[row], diffusion, sample, scales)
        return (images, carried, memory), None

    start = noise(diffusion.num_steps + 1)
    (images, _, _), _ = jax.lax.scan(run, (start, [sampler.carry(x) for x in start], memory), rows)
    return images if sample.threshold == "none" else [jnp.clip(x, -1, 1) for x in images]
