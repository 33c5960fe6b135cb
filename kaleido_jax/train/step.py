"""The joint loss L = L_DM + eta * L_AR (paper, Eq. 1) and one optimizer step on it."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from kaleido_jax.config.schema import Config, sample_shapes, scales
from kaleido_jax.diffusion.loss import diffusion_loss, loss_weight, mixed_rows
from kaleido_jax.diffusion.process import per_sample_normal, pyramid, q_sample
from kaleido_jax.models.decode import shift_right
from kaleido_jax.models.kaleido import Kaleido, null_tokens
from kaleido_jax.models.t5 import PAD
from kaleido_jax.runtime.randomness import sample_keys
from kaleido_jax.train.caption_cache import ROW, TABLE
from kaleido_jax.train.optimizer import learning_rate
from kaleido_jax.train.state import State


def token_loss(logits: Float[Array, "b t v"], targets, weights) -> Float[Array, ""]:
    """L_AR: negative log-likelihood, mean over the valid target tokens of the batch."""
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return (nll * weights).sum() / jnp.maximum(weights.sum(), 1)


def mixed_inputs(keys, logits: Float[Array, "b t v"], batch: dict, share: float) -> Int[Array, "b t"]:
    """Decoder inputs in which a share of the tokens before each position are drawn from the logits of a first pass.

    Parallel scheduled sampling with one pass (Duckworth et al. 2019; Mihaylova & Martins 2019): the draws are made
    teacher-forced and no gradient goes through them. Positions of weight 0 stay as they are.
    """

    def mix(key, logits, targets, weights):
        token_key, mix_key = jax.random.split(key)
        drawn = jax.random.categorical(token_key, jax.lax.stop_gradient(logits))
        swap = jax.random.bernoulli(mix_key, share, targets.shape) & (weights > 0)
        return jnp.where(swap, drawn.astype(targets.dtype), targets)

    return shift_right(jax.vmap(mix)(keys, logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"]))


def joint_loss(params: dict, model: Kaleido, config: Config, batch: dict, step) -> tuple[Array, dict]:
    """(L, {"loss_dm", "loss_ar", "loss_dm_r0", ...}) of one batch at a step.

    c and z are dropped together for a share of samples: the denoiser then sees the encoded empty caption and no
    z position. The AR loss always reads the real caption.
    """
    apply = lambda method, *args: model.apply({"params": params}, *args, method=method)  # noqa: E731
    indices = jnp.arange(batch["image"].shape[0])
    keys = lambda purpose: sample_keys(config.seed, purpose, step, indices)  # noqa: E731
    metrics = {}

    # the condition: H_c, H_z and what replaces them where (c, z) is dropped
    captions = batch["encoder_input_tokens"]
    if TABLE in params:
        states = params[TABLE]["states"]
        h_c, c_mask = states[batch[ROW]], captions != PAD
        h_null, null_mask = states[-1:], null_tokens(captions.shape[1]) != PAD
    else:
        h_c, c_mask = apply("encode", captions)
        h_null, null_mask = apply("encode", null_tokens(captions.shape[1]))
    dropped = jax.vmap(jax.random.bernoulli, (0, None))(keys("drop"), config.diffusion.p_uncond)
    seen = jnp.where(dropped[:, None, None], h_null, h_c), jnp.where(dropped[:, None], null_mask, c_mask)
    loss_ar = 0.0
    if model.has_prior:
        h_z, logits = apply("read_latents", h_c, c_mask, batch["decoder_input_tokens"])
        weights = batch["decoder_loss_weights"]
        if config.train.scheduled_sampling:
            # H_z stays that of the given z, of which the image is; only the AR loss sees the prior's own tokens.
            inputs = mixed_inputs(keys("scheduled_sampling"), logits, batch, config.train.scheduled_sampling)
            _, logits = apply("read_latents", h_c, c_mask, inputs)
        loss_ar = token_loss(logits, batch["decoder_target_tokens"], weights)
        metrics["loss_ar"] = loss_ar
        seen += (h_z, (weights > 0) & ~dropped[:, None])
    condition = apply("condition", *seen)

    # the diffusion: one time a sample, independent noise at each resolution
    times = jax.vmap(lambda key: jax.random.randint(key, (), 0, config.diffusion.num_steps))(keys("time"))
    clean = pyramid(batch["image"], scales(config.model))
    eps = per_sample_normal(keys("noise"), sample_shapes(config.model))
    x_t, alpha_bars = q_sample(config.diffusion, clean, eps, times, scales(config.model))
    if config.train.mixed_ratio:  # the outer nets see the first rows only
        rows = mixed_rows(config.train.mixed_ratio, len(times))
        clean, eps, x_t, alpha_bars = (
            [x[:n] for x, n in zip(xs, rows, strict=True)] for xs in (clean, eps, x_t, alpha_bars)
        )
    predictions = apply("denoise", x_t, times, condition)
    weight = loss_weight(config.diffusion, times)
    loss_dm, each = diffusion_loss(
        config.diffusion, predictions, x_t, clean, eps, alpha_bars, weight, config.train.mixed_ratio
    )

    metrics |= {"loss_dm": loss_dm} | {f"loss_dm_r{r}": loss for r, loss in enumerate(each)}
    loss = loss_dm + config.train.eta * loss_ar
    return loss, metrics | {"loss": loss}


def make_train_step(model: Kaleido, config: Config, optimizer):
    """(state, frozen, batch) -> (state, metrics), a pure function for jit."""

    def train_step(state: State, frozen: dict, batch: dict) -> tuple[State, dict]:
        def loss_of(params):
            return joint_loss(params | frozen, model, config, batch, state.step)

        (_, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = optax.incremental_update(params, state.ema, 1 - config.train.ema_decay)
        metrics |= {f"grad_norm_{name}": optax.global_norm(part) for name, part in grads.items()}
        metrics["learning_rate"] = jnp.float32(learning_rate(config.train)(state.step))
        return State(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), metrics

    return train_step
