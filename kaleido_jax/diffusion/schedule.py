"""Noise schedules: alpha_bar = alpha^2 at steps 0..N, computed in float64 and stored as float32.

1 - alpha_bar = sigma^2 is the noise, alpha_bar / (1 - alpha_bar) the SNR.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

MAX_BETA = 0.999


def squared_cosine(num_steps: int) -> Float[np.ndarray, "n"]:
    """cos^2 with the betas capped at 0.999 (Nichol & Dhariwal 2021, Eq. 17), the schedule of MDM and Kaleido."""
    s = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    alpha_bar = np.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA)
    return np.exp(np.cumsum(np.log1p(-beta)))


def cosine(num_steps: int) -> Float[np.ndarray, "n"]:
    """logSNR(u) = -2 ln tan(a u + b) from +5 to -5."""
    b = math.atan(math.exp(-2.5))
    a = math.atan(math.exp(2.5)) - b
    log_snr = -2 * np.log(np.tan(a * np.linspace(0, 1, num_steps) + b))
    return 1 / (1 + np.exp(-log_snr))


def linear(num_steps: int) -> Float[np.ndarray, "n"]:
    """Beta linear from 1e-4 to 0.02 (Ho et al. 2020)."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, num_steps, dtype=np.float64))


SCHEDULES = {"squared_cosine": squared_cosine, "cosine": cosine, "linear": linear}


def alpha_bar_table(schedule: str, num_steps: int) -> Float[np.ndarray, "n"]:
    """alpha_bar[k] for k = 0..N, float32 (N+1,), with alpha_bar[0] = 1 (no noise)."""
    return np.concatenate([[1.0], SCHEDULES[schedule](num_steps)]).astype(np.float32)


def shift(alpha_bar: Float[Array, "..."], scale: int, power: float = 1.0) -> Float[Array, "..."]:
    """alpha_bar at a resolution `scale` times the innermost: SNR' = SNR / scale^power.

    "cosine-shift4" of Kaleido's Appendix B.1 is scale 4, power 1. The formula avoids SNR, which is infinite at
    alpha_bar = 1.
    """
    if scale == 1:
        return alpha_bar
    return alpha_bar / (alpha_bar + (1 - alpha_bar) * scale**power)


def step_list(num_steps: int, num_inference_steps: int, start_at_n: bool = False) -> Int[np.ndarray, "n"]:
    """Steps t_n > ... > t_0 = 0 of a sampler with n steps, int32 (n+1,).

    MDM's list is round_half_even(j (N+1)/(n+1)), whose first entry is not N (997 of 1000 for n = 250);
    `start_at_n` spaces the steps evenly from N instead.
    """
    j = np.arange(num_inference_steps, -1, -1)
    ratio = num_steps / num_inference_steps if start_at_n else (num_steps + 1) / (num_inference_steps + 1)
    return np.round(j * ratio).astype(np.int32)


def vdm_weights(alpha_bars: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """SNR[k-1] / SNR[k] - 1, the weight of an eps loss at step k in VDM's discrete bound (Kingma et al. 2021, Eq. 14).

    In float64 from the unshifted table alpha_bar[0..N], as in MDM; the first two entries, infinite by the formula, are
    copies of the third.
    """
    alpha_bars = alpha_bars.astype(np.float64)
    odds = alpha_bars[1:] / (1 - alpha_bars[1:])
    inner = odds[:-1] / odds[1:] - 1
    return np.concatenate([inner[:1], inner[:1], inner])


def log_snr(alpha_bar: Float[Array, "..."]) -> Float[Array, "..."]:
    """ln SNR = ln(alpha_bar / (1 - alpha_bar)); +inf at alpha_bar = 1."""
    return jnp.log(alpha_bar) - jnp.log1p(-alpha_bar)
