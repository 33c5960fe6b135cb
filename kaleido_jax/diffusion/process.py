"""Forward process and prediction spaces (MDM, Section 3). Works on any sample shape: images or points.

At signal level alpha_bar a sample is x_t = alpha x + sigma eps, with alpha^2 = alpha_bar and sigma^2 = 1 - alpha_bar.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from kaleido_jax.array_types import AlphaBar, AlphaBars, Keys, PerSample, Pyramid, Sample, Scales, Shapes, Times
from kaleido_jax.config.schema import Diffusion
from kaleido_jax.diffusion.schedule import alpha_bar_table, shift

DYNAMIC_THRESHOLDS = {"dynamic": (0.995, 100.0), "dynamic_capped": (0.95, 1.5)}  # (quantile, cap)


def expand(per_sample: PerSample, like: Sample) -> Sample:
    """Appends axes so that one number per sample multiplies a batch."""
    return per_sample.reshape(per_sample.shape + (1,) * (like.ndim - per_sample.ndim))


def add_noise(x: Sample, eps: Sample, alpha_bar: AlphaBar) -> Sample:
    """x_t = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) eps (Ho et al. 2020, Eq. 4)."""
    alpha_bar = expand(alpha_bar, x)
    return jnp.sqrt(alpha_bar) * x + jnp.sqrt(1 - alpha_bar) * eps


def to_x0_eps(prediction: Sample, x_t: Sample, alpha_bar: AlphaBar, space: str) -> tuple[Sample, Sample]:
    """(x0, eps) from a prediction in space "v", "eps" or "x0" (Salimans & Ho 2022, Section 4 and Appendix D)."""
    alpha_bar = expand(alpha_bar, x_t)
    alpha, sigma = jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)
    if space == "v":
        return alpha * x_t - sigma * prediction, sigma * x_t + alpha * prediction
    if space == "eps":
        return (x_t - sigma * prediction) / alpha, prediction
    return prediction, (x_t - alpha * prediction) / sigma


def from_x0_eps(x0: Sample, eps: Sample, alpha_bar: AlphaBar, space: str) -> Sample:
    """The target in a space: v = alpha eps - sigma x0 (Salimans & Ho 2022, Section 4)."""
    if space == "v":
        alpha_bar = expand(alpha_bar, x0)
        return jnp.sqrt(alpha_bar) * eps - jnp.sqrt(1 - alpha_bar) * x0
    return eps if space == "eps" else x0


def change_prediction(prediction: Sample, x_t: Sample, alpha_bar: AlphaBar, source: str, target: str) -> Sample:
    """A prediction in the space `source`, written in the space `target`."""
    if source == target:  # also for accuracy: converting to x0 and back would add rounding
        return prediction
    return from_x0_eps(*to_x0_eps(prediction, x_t, alpha_bar, source), alpha_bar, target)


def threshold(x0: Sample, kind: str) -> Sample:
    """Brings predicted x0 back to the model range (Saharia et al. 2022, Section 2.3, for the dynamic forms).

    "none"; "clip" to [-1, 1]; "dynamic": by the sample's 99.5 % quantile of |x0|, at least 1; "dynamic_capped":
    by its 95 % quantile, between 1 and 1.5.
    """
    if kind == "none":
        return x0
    if kind == "clip":
        return jnp.clip(x0, -1.0, 1.0)
    quantile, cap = DYNAMIC_THRESHOLDS[kind]
    q = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), quantile, axis=1)
    q = expand(jnp.clip(q, 1.0, cap), x0)
    return jnp.clip(x0, -q, q) / q


def pyramid(x: Sample, scales: Scales) -> Pyramid:
    """Clean images from high to low resolution by average pooling (MDM, Eq. 3); points have a single entry."""
    levels = [x]
    for high, low in zip(scales, scales[1:], strict=False):
        b, h, w, c = levels[-1].shape
        f = high // low
        levels.append(levels[-1].reshape(b, h // f, f, w // f, f, c).mean((2, 4)))
    return levels


def per_sample_normal(keys: Keys, shapes: Shapes) -> Pyramid:
    """Independent standard noise for each resolution; one key per sample."""
    return [
        jax.vmap(lambda key, r=r, shape=shape: jax.random.normal(jax.random.fold_in(key, r), shape))(keys)
        for r, shape in enumerate(shapes)
    ]


def alpha_bars_at(config: Diffusion, times: Times, scales: Scales, dtype: DTypeLike = jnp.float32) -> AlphaBars:
    """alpha_bar of each resolution at network times 0..N-1, shifted by its scale.

    The network's time is the schedule's step minus one: time k is noise level k + 1, since step 0 has no noise.
    """
    table = jnp.asarray(alpha_bar_table(config.schedule, config.num_steps), dtype)
    return [shift(table[times + 1], scale, config.shift_power) for scale in scales]


def q_sample(
    config: Diffusion, clean: Pyramid, eps: Pyramid, times: Times, scales: Scales
) -> tuple[Pyramid, AlphaBars]:
    """A draw from q(x_t | x) at every resolution, and its alpha_bar there (MDM, Eq. 3).

    All resolutions share the time but have independent noise: `eps` is not pooled from high to low.
    """
    alpha_bars = alpha_bars_at(config, times, scales, jnp.promote_types(clean[0].dtype, jnp.float32))
    return [add_noise(x, e, a) for x, e, a in zip(clean, eps, alpha_bars, strict=True)], alpha_bars
