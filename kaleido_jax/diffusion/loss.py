"""Denoising loss L_DM over all resolutions (MDM, Section 3.1), its weights, and mixed batches."""

import jax.numpy as jnp

from kaleido_jax.array_types import AlphaBars, PerSample, Pyramid, Scalar, Times
from kaleido_jax.config.schema import Diffusion
from kaleido_jax.diffusion.process import change_prediction, expand, from_x0_eps
from kaleido_jax.diffusion.schedule import alpha_bar_table, vdm_weights


def mixed_rows(ratio: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """Rows of each resolution, high to low, in a mixed batch: (2, 1) trains the outer net on two thirds of the rows.

    The ratio's cumulative sums over its total are the shares, so the innermost always has every row.
    """
    return tuple(batch * sum(ratio[: r + 1]) // sum(ratio) for r in range(len(ratio)))


def loss_weight(config: Diffusion, times: Times) -> PerSample | None:
    """The weight of each sample in L_DM at network times 0..N-1; None if all count the same."""
    if not config.vdm_weights:
        return None
    table = vdm_weights(alpha_bar_table(config.schedule, config.num_steps))
    return jnp.asarray(table, jnp.float32)[times + 1]


def diffusion_loss(
    config: Diffusion,
    predictions: Pyramid,
    x_t: Pyramid,
    clean: Pyramid,
    eps: Pyramid,
    alpha_bars: AlphaBars,
    weight: PerSample | None = None,
    mixed_ratio: tuple[int, ...] = (),
    mean_weight: Scalar | None = None,
) -> tuple[Scalar, list[Scalar]]:
    """L_DM = sum_r w_r E ||prediction_r - target_r||^2, a mean over a sample's numbers and over the batch (MDM, Eq. 4).

    The network predicts in `config.prediction`, the error is taken in `loss_space`. With v and eps, the released
    models' choice, that is alpha_bar ||v_hat - v||^2, so very noisy steps count little.

    A resolution may have fewer rows than the innermost (mixed batches). `weight`, from `loss_weight`, makes the mean
    over the batch sum(loss * weight) / sum(weight); `mean_weight` is that of the whole batch if this is a part of one.

    Returns (loss, list of each resolution's loss before `loss_weights`), float32 scalars.
    """
    losses = []
    if weight is not None:
        weight = weight / (weight.mean() if mean_weight is None else mean_weight)
    for r, (prediction, noisy, x, e, alpha_bar) in enumerate(
        zip(predictions, x_t, clean, eps, alpha_bars, strict=True)
    ):
        predicted = change_prediction(prediction, noisy, alpha_bar, config.prediction, config.loss_space)
        target = from_x0_eps(x, e, alpha_bar, config.loss_space)
        squared = (predicted - target) ** 2
        if weight is not None:
            squared = squared * expand(weight[: len(x)], squared)
        loss = jnp.mean(squared)
        if mixed_ratio:
            # MDM divides the sum over the rows by the resolution's share of the batch, not by the number of rows, which
            # is rounded down.
            loss *= len(x) * sum(mixed_ratio) / (len(clean[-1]) * sum(mixed_ratio[: r + 1]))
        losses.append(loss)
    weights = config.loss_weights or (1.0,) * len(losses)
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)), losses
