"""Reverse samplers: one lax.scan over the step list, every resolution at once (MDM, section 6)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from kaleido_jax.config import Diffusion, Sample
from kaleido_jax.diffusion.process import per_sample_normal, threshold, to_x0_eps
from kaleido_jax.diffusion.schedule import make_gammas, shift, step_list


def ancestral_step(x0, x_t, gamma_t, gamma_s, noise):
    """DDPM: a draw from q(x_s | x_t, x0) (Ho et al. 2020, Eq. 7)."""
    a = gamma_t / gamma_s
    b = 1 - a
    variance = b * (1 - gamma_s) / (1 - gamma_t)
    mean = x0 * b * jnp.sqrt(gamma_s) / (1 - gamma_t) + x_t * jnp.sqrt(a) * (1 - gamma_s) / (1 - gamma_t)
    return mean + jnp.sqrt(variance) * noise


def ddim_step(x0, x_t, gamma_t, gamma_s, noise, ddim_eta: float):
    """DDIM (Song et al. 2021, Eq. 12); ddim_eta = 1 equals the ancestral step, 0 draws no noise."""
    eps = (x_t - jnp.sqrt(gamma_t) * x0) / jnp.sqrt(1 - gamma_t)
    variance = ddim_eta**2 * (1 - gamma_t / gamma_s) * (1 - gamma_s) / (1 - gamma_t)
    direction = jnp.sqrt(jnp.maximum(1 - gamma_s - variance, 0))
    return x0 * jnp.sqrt(gamma_s) + eps * direction + jnp.sqrt(variance) * noise


def reverse_step(images, predictions, draws, gamma_t, gamma_s, diffusion: Diffusion, sample: Sample, scales):
    """One step t -> s at every resolution; lists over resolutions, high to low.

    `draws` is standard noise like `images`. gamma_t and gamma_s (scalars) are the innermost resolution's; those
    of the others are shifted by their scale.
    """
    moved = []
    for x_t, prediction, z, scale in zip(images, predictions, draws, scales, strict=True):
        g_t, g_s = (shift(gamma, scale, diffusion.shift_power) for gamma in (gamma_t, gamma_s))
        x0, _ = to_x0_eps(prediction, x_t, jnp.full(x_t.shape[:1], g_t), diffusion.prediction)
        x0 = threshold(x0, sample.threshold)
        if sample.sampler == "ddpm":
            moved.append(ancestral_step(x0, x_t, g_t, g_s, z))
        else:
            moved.append(ddim_step(x0, x_t, g_t, g_s, z, sample.ddim_eta))
    return moved


def reverse(
    predict: Callable,
    keys: Key[Array, "b"],
    diffusion: Diffusion,
    sample: Sample,
    shapes: tuple[tuple[int, ...], ...],
    scales: tuple[int, ...],
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

    Returns:
      The last x of every resolution, clipped to [-1, 1] where the threshold is not "none".
    """
    gammas = jnp.asarray(make_gammas(diffusion.schedule, diffusion.num_steps), float)
    steps = jnp.asarray(step_list(diffusion.num_steps, sample.num_steps, sample.start_at_n))
    batch = keys.shape[0]

    def noise(purpose):
        return per_sample_normal(jax.vmap(jax.random.fold_in, (0, None))(keys, purpose), list(shapes))

    def move(images, pair):
        t, s = pair
        predictions = predict(images, jnp.full((batch,), t - 1, jnp.int32))
        draws = noise(t)  # steps are 1..N and the start uses N + 1, so no draw is used twice
        return reverse_step(images, predictions, draws, gammas[t], gammas[s], diffusion, sample, scales), None

    images, _ = jax.lax.scan(move, noise(diffusion.num_steps + 1), (steps[:-1], steps[1:]))
    return images if sample.threshold == "none" else [jnp.clip(x, -1, 1) for x in images]
