"""Noising, prediction spaces and the loss (MDM, sections 4 and 5). Works on any sample shape: images or points."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from kaleido_jax.config.schema import Diffusion
from kaleido_jax.diffusion.schedule import make_gammas, shift, vdm_weights

DYNAMIC_THRESHOLDS = {"dynamic": (0.995, 100.0), "dynamic_capped": (0.95, 1.5)}  # (quantile, cap)


def expand(per_sample: Float[Array, "b"], like: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Appends axes so that one number a sample multiplies a batch."""
    return per_sample.reshape(per_sample.shape + (1,) * (like.ndim - per_sample.ndim))


def add_noise(x, eps, gamma: Float[Array, "b"]):
    """x_t = sqrt(gamma) x + sqrt(1 - gamma) eps."""
    gamma = expand(gamma, x)
    return jnp.sqrt(gamma) * x + jnp.sqrt(1 - gamma) * eps


def to_x0_eps(prediction, x_t, gamma: Float[Array, "b"], space: str):
    """(x0, eps) from a prediction in space "v", "eps" or "x0"."""
    gamma = expand(gamma, x_t)
    alpha, sigma = jnp.sqrt(gamma), jnp.sqrt(1 - gamma)
    if space == "v":
        return alpha * x_t - sigma * prediction, sigma * x_t + alpha * prediction
    if space == "eps":
        return (x_t - sigma * prediction) / alpha, prediction
    return prediction, (x_t - alpha * prediction) / sigma


def from_x0_eps(x0, eps, gamma: Float[Array, "b"], space: str):
    """The target in a space: v = alpha eps - sigma x0 (Salimans & Ho 2022)."""
    if space == "v":
        gamma = expand(gamma, x0)
        return jnp.sqrt(gamma) * eps - jnp.sqrt(1 - gamma) * x0
    return eps if space == "eps" else x0


def convert(prediction, x_t, gamma: Float[Array, "b"], source: str, target: str):
    """A prediction moved from one space to another."""
    if source == target:
        return prediction
    return from_x0_eps(*to_x0_eps(prediction, x_t, gamma, source), gamma, target)


def threshold(x0: Float[Array, "b ..."], kind: str) -> Float[Array, "b ..."]:
    """Brings predicted x0 back to the model range (Saharia et al. 2022 for the dynamic forms).

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


def pyramid(x: Float[Array, "b ..."], scales: tuple[int, ...]) -> list[Float[Array, "b ..."]]:
    """Clean images from high to low resolution by average pooling; points stay one entry."""
    levels = [x]
    for high, low in zip(scales, scales[1:], strict=False):
        b, h, w, c = levels[-1].shape
        f = high // low
        levels.append(levels[-1].reshape(b, h // f, f, w // f, f, c).mean((2, 4)))
    return levels


def per_sample_normal(keys: Key[Array, "b"], shapes: list[tuple[int, ...]]) -> list[Float[Array, "b ..."]]:
    """Independent standard noise for each resolution, one key a sample."""
    return [
        jax.vmap(lambda key, r=r, shape=shape: jax.random.normal(jax.random.fold_in(key, r), shape))(keys)
        for r, shape in enumerate(shapes)
    ]


def noised(
    config: Diffusion,
    clean: list[Float[Array, "b ..."]],
    eps: list[Float[Array, "b ..."]],
    times: Int[Array, "b"],
    scales: tuple[int, ...],
):
    """(list of x_t, list of gammas) at network times 0..N-1, i.e. at gamma[time + 1], shifted by resolution."""
    table = jnp.asarray(make_gammas(config.schedule, config.num_steps))
    base = table.astype(jnp.promote_types(clean[0].dtype, jnp.float32))[times + 1]
    gammas = [shift(base, scale, config.shift_power) for scale in scales]
    return [add_noise(x, e, g) for x, e, g in zip(clean, eps, gammas, strict=True)], gammas


def mixed_rows(ratio: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """Rows of each resolution, high to low, in a mixed batch (MDM): "2:1" sees two thirds in high resolution.

    The ratio's cumulative sums over its total are the shares, so the innermost always has every row.
    """
    return tuple(batch * sum(ratio[: r + 1]) // sum(ratio) for r in range(len(ratio)))


def loss_weight(config: Diffusion, times: Int[Array, "b"]) -> Float[Array, "b"] | None:
    """The weight of each sample in L_DM at network times 0..N-1; None where all count the same."""
    if not config.vdm_weights:
        return None
    table = vdm_weights(make_gammas(config.schedule, config.num_steps))
    return jnp.asarray(table, jnp.float32)[times + 1]


def diffusion_loss(
    config: Diffusion, predictions, x_t, clean, eps, gammas, weight: Float[Array, "b"] | None = None, mixed_ratio=()
):
    """L_DM: squared error in `loss_space`, mean over a sample, weighted sum over resolutions, mean over the batch.

    A resolution may have fewer rows than the innermost (mixed batches): the sum over them is divided by its share of
    the batch in `mixed_ratio` as MDM does, not by the rows, which are rounded down; without the ratio by the rows.
    `weight` makes the mean over the batch sum(loss * weight) / sum(weight); see `loss_weight`.

    Returns (loss, list of each resolution's loss before `loss_weights`), float32 scalars.
    """
    losses = []
    for r, (prediction, noisy, x, e, gamma) in enumerate(zip(predictions, x_t, clean, eps, gammas, strict=True)):
        predicted = convert(prediction, noisy, gamma, config.prediction, config.loss_space)
        target = from_x0_eps(x, e, gamma, config.loss_space)
        squared = (predicted - target) ** 2
        if weight is not None:
            squared = squared * expand(weight[: len(x)] / weight.mean(), squared)
        rounded = len(x) * sum(mixed_ratio) / (len(clean[-1]) * sum(mixed_ratio[: r + 1])) if mixed_ratio else 1
        losses.append(jnp.mean(squared) * rounded)
    weights = config.loss_weights or (1.0,) * len(losses)
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)), losses
