"""Training step: the joint loss L = L_DM + eta * L_AR (Kaleido, Eq. 1) and one optimizer update on it."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from kaleido_jax.array_types import Batch, Keys, Logits, PerToken, Scalar, Tokens
from kaleido_jax.config.schema import Config, micro_names, sample_shapes, scales
from kaleido_jax.diffusion.loss import diffusion_loss, loss_weight, mixed_rows
from kaleido_jax.diffusion.process import per_sample_normal, pyramid, q_sample
from kaleido_jax.models.decode import shift_right
from kaleido_jax.models.kaleido import Kaleido, null_tokens
from kaleido_jax.models.t5 import PAD
from kaleido_jax.runtime.randomness import sample_keys
from kaleido_jax.train.caption_cache import ROW, TABLE
from kaleido_jax.train.optimizer import learning_rate
from kaleido_jax.train.state import State

Metrics = dict[str, Scalar]


@runtime_checkable
class TrainStep(Protocol):
    """A pure function for jit."""

    def __call__(self, state: State, frozen: dict[str, Any], batch: Batch) -> tuple[State, Metrics]:
        """One optimizer step."""


def token_loss(logits: Logits, targets: Tokens, weights: PerToken) -> Scalar:
    """L_AR = -log p(z | c), a mean over the valid target tokens of the batch.

    Kaleido's sum over tokens would make eta depend on the length of z.
    """
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return (nll * weights).sum() / jnp.maximum(weights.sum(), 1)


def mixed_inputs(keys: Keys, logits: Logits, batch: Batch, share: float) -> Tokens:
    """Decoder inputs in which a share of the tokens before each position are drawn from the logits of a first pass.

    Parallel scheduled sampling with one pass (Duckworth et al. 2019; Mihaylova & Martins 2019): the draws are made
    teacher-forced and no gradient goes through them. Positions of weight 0 stay as they are.
    """

    def mix(key: Array, logits: Array, targets: Array, weights: Array) -> Array:
        token_key, mix_key = jax.random.split(key)
        drawn = jax.random.categorical(token_key, jax.lax.stop_gradient(logits))
        swap = jax.random.bernoulli(mix_key, share, targets.shape) & (weights > 0)
        return jnp.where(swap, drawn.astype(targets.dtype), targets)

    return shift_right(jax.vmap(mix)(keys, logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"]))


def joint_loss(
    params: dict[str, Any], model: Kaleido, config: Config, batch: Batch, step: int | Int[Array, ""]
) -> tuple[Scalar, Metrics]:
    """L = L_DM + eta * L_AR (Kaleido, Eq. 1) of one batch, and {"loss", "loss_dm", "loss_ar", "loss_dm_r0", ...}.

    c and z are dropped together for a share of samples, as guidance needs p(x) (Kaleido, Eq. 8): the denoiser then
    reads the encoded empty caption and no position of z. L_AR always reads the real caption.
    """
    diffusion, train, sizes = config.diffusion, config.train, scales(config.model)
    indices, metrics = jnp.arange(batch["image"].shape[0]), {}

    def apply(method: str, *args: Any, **keywords: Any) -> Any:
        return model.apply({"params": params}, *args, method=method, **keywords)

    def keys(purpose: str) -> Keys:
        return sample_keys(config.seed, purpose, step, indices)

    # H_c, of the caption or of the empty one
    captions = batch["encoder_input_tokens"]
    if TABLE in params:  # few captions and a frozen encoder: it ran once on each
        states = params[TABLE]["states"]
        h_c, c_mask = states[batch[ROW]], captions != PAD
        h_null, null_mask = states[-1:], null_tokens(captions.shape[1]) != PAD
    else:
        h_c, c_mask = apply("encode", captions)
        h_null, null_mask = apply("encode", null_tokens(captions.shape[1]))
    dropped = jax.vmap(jax.random.bernoulli, (0, None))(keys("drop"), diffusion.p_uncond)
    states = jnp.where(dropped[:, None, None], h_null, h_c), jnp.where(dropped[:, None], null_mask, c_mask)

    # H_z and L_AR, teacher-forced; both losses have a gradient into the prior
    loss_ar = 0.0
    if model.has_prior:
        h_z, logits = apply("read_latents", h_c, c_mask, batch["decoder_input_tokens"])
        weights = batch["decoder_loss_weights"]
        if train.scheduled_sampling:
            # H_z stays that of the given z, which the image shows; only L_AR reads the prior's own tokens.
            inputs = mixed_inputs(keys("scheduled_sampling"), logits, batch, train.scheduled_sampling)
            _, logits = apply("read_latents", h_c, c_mask, inputs)
        loss_ar = metrics["loss_ar"] = token_loss(logits, batch["decoder_target_tokens"], weights)
        states += (h_z, (weights > 0) & ~dropped[:, None])
    micros = {name: batch[key] for name in micro_names(config.model) if (key := f"micro_{name}") in batch}

    # x_t: one time per sample, independent noise at each resolution
    times = jax.vmap(lambda key: jax.random.randint(key, (), 0, diffusion.num_steps))(keys("time"))
    clean = pyramid(batch["image"], sizes)
    eps = per_sample_normal(keys("noise"), sample_shapes(config.model))
    x_t, alpha_bars = q_sample(diffusion, clean, eps, times, sizes)
    if train.mixed_ratio:  # the outer nets get only the first rows
        rows = mixed_rows(train.mixed_ratio, len(times))
        clean, eps, x_t, alpha_bars = (
            [x[:n] for x, n in zip(xs, rows, strict=True)] for xs in (clean, eps, x_t, alpha_bars)
        )

    # L_DM and the sum
    predictions = apply("denoise", x_t, times, apply("condition", *states, micros=micros))
    weight = loss_weight(diffusion, times)
    loss_dm, each = diffusion_loss(diffusion, predictions, x_t, clean, eps, alpha_bars, weight, train.mixed_ratio)
    loss = loss_dm + train.eta * loss_ar
    metrics |= {"loss": loss, "loss_dm": loss_dm} | {f"loss_dm_r{r}": loss for r, loss in enumerate(each)}
    return loss, metrics


def make_train_step(model: Kaleido, config: Config, optimizer: optax.GradientTransformation) -> TrainStep:
    """(state, frozen, batch) -> (state, metrics): Adam on the gradient of the joint loss, then the EMA."""

    def train_step(state: State, frozen: dict[str, Any], batch: Batch) -> tuple[State, Metrics]:
        def loss_of(params: dict[str, Any]) -> tuple[Scalar, Metrics]:
            return joint_loss(params | frozen, model, config, batch, state.step)

        (_, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = optax.incremental_update(params, state.ema, 1 - config.train.ema_decay)
        metrics |= {f"grad_norm_{name}": optax.global_norm(part) for name, part in grads.items()}
        metrics["learning_rate"] = jnp.float32(learning_rate(config.train)(state.step))
        return State(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), metrics

    return train_step
