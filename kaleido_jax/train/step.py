"""Training step: the joint loss L = L_DM + eta * L_AR (Kaleido, Eq. 1) and one optimizer update on it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Int

from kaleido_jax.array_types import Batch, Keys, Logits, PerToken, Scalar, States, Tokens
from kaleido_jax.config.schema import Config, micro_names, sample_shapes, scales
from kaleido_jax.data.loader import to_model_range
from kaleido_jax.diffusion.loss import diffusion_loss, loss_weight, mixed_rows
from kaleido_jax.diffusion.process import per_sample_normal, pyramid, q_sample
from kaleido_jax.models.decode import shift_right
from kaleido_jax.models.kaleido import Kaleido, null_tokens
from kaleido_jax.models.t5 import PAD
from kaleido_jax.runtime.mesh import constrain, placing
from kaleido_jax.runtime.randomness import sample_keys
from kaleido_jax.train.caption_cache import ROW, TABLE
from kaleido_jax.train.optimizer import learning_rate, may_overflow
from kaleido_jax.train.state import State, adjusted, kept_if, moved_ema, moved_profiles

Metrics = dict[str, Scalar]


@runtime_checkable
class TrainStep(Protocol):
    """A pure function for jit."""

    def __call__(self, state: State, frozen: dict[str, Any], batch: Batch) -> tuple[State, Metrics]:
        """One optimizer step."""


class Whole(NamedTuple):
    """What a loss over a part of a batch must know of the whole, so that the parts' mean is the loss of the whole."""

    rows: Int[Array, "b"]  # of the part's samples in the batch
    tokens: Scalar  # valid target tokens of the batch, divided by the number of its parts
    weight: Scalar | None  # mean loss weight of the batch


def token_loss(nll: PerToken, weights: PerToken, tokens: Scalar | None = None) -> Scalar:
    """L_AR = -log p(z | c), a mean over the valid target tokens of the batch, or the sum divided by `tokens`.

    Kaleido's sum over tokens would make eta depend on the length of z.
    """
    return (nll * weights).sum() / jnp.maximum(weights.sum() if tokens is None else tokens, 1)


def chunked(function: Callable[..., Array], length: int, *inputs: Array) -> Float[Array, "b t"] | Tokens:
    """function(*inputs) over at most `length` positions (axis 1) at a time; 0 = all at once.

    What it makes inside, such as logits, exists for one chunk only, in the backward pass too.
    """
    total = inputs[0].shape[1]
    if not 0 < length < total:
        return function(*inputs)
    count = -(-total // length)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, count * length - total), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(padded.reshape(x.shape[0], count, length, *x.shape[2:]), 1, 0)

    out = jax.lax.map(jax.checkpoint(lambda chunk: function(*chunk)), tuple(map(split, inputs)))
    return jnp.moveaxis(out, 0, 1).reshape(out.shape[1], count * length)[:, :total]


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
    params: dict[str, Any],
    model: Kaleido,
    config: Config,
    batch: Batch,
    step: int | Int[Array, ""],
    whole: Whole | None = None,
) -> tuple[Scalar, Metrics]:
    """L = L_DM + eta * L_AR (Kaleido, Eq. 1) of one batch or, with `whole`, of a part of one, and its parts by name.

    c and z are dropped together for a share of samples, as guidance needs p(x) (Kaleido, Eq. 8): the denoiser then
    reads the encoded empty caption and no position of z. L_AR always reads the real caption.
    """
    diffusion, train, sizes = config.diffusion, config.train, scales(config.model)
    indices, metrics = jnp.arange(batch["image"].shape[0]) if whole is None else whole.rows, {}

    def apply(method: str, *args: Any, **keywords: Any) -> Any:
        return model.apply({"params": params}, *args, method=method, **keywords)

    def keys(purpose: str) -> Keys:
        return sample_keys(config.seed, purpose, step, indices)

    h_c, c_mask, h_null, null_mask = _captions(params, apply, batch)
    dropped = jax.vmap(jax.random.bernoulli, (0, None))(keys("drop"), diffusion.p_uncond)
    states = jnp.where(dropped[:, None, None], h_null, h_c), jnp.where(dropped[:, None], null_mask, c_mask)

    # H_z and L_AR, teacher-forced; both losses have a gradient into the prior
    loss_ar = 0.0
    if model.has_prior:
        h_z = apply("latents_states", h_c, c_mask, batch["decoder_input_tokens"])
        read, weights = h_z, batch["decoder_loss_weights"]
        if train.scheduled_sampling:
            # H_z stays that of the given z, which the image shows; only L_AR reads the prior's own tokens.
            logits = apply("latents_logits", h_z)
            inputs = mixed_inputs(keys("scheduled_sampling"), logits, batch, train.scheduled_sampling)
            read = apply("latents_states", h_c, c_mask, inputs)
        nll = token_nll(apply, read, batch["decoder_target_tokens"], train.logits_chunk)
        loss_ar = metrics["loss_ar"] = token_loss(nll, weights, whole and whole.tokens)
        states += (h_z, (weights > 0) & ~dropped[:, None])
    micros = {name: batch[key] for name in micro_names(config.model) if (key := f"micro_{name}") in batch}

    # x_t: one time per sample, independent noise at each resolution
    times = sample_times(config, step, indices)
    clean = pyramid(in_model_range(batch["image"]), sizes)
    eps = per_sample_normal(keys("noise"), sample_shapes(config.model))
    x_t, alpha_bars = q_sample(diffusion, clean, eps, times, sizes)
    clean, eps, x_t, alpha_bars = _mixed(train.mixed_ratio, clean, eps, x_t, alpha_bars)

    # L_DM and the sum
    predictions = apply("denoise", x_t, times, apply("condition", *states, micros=micros))
    weight = loss_weight(diffusion, times)
    loss_dm, each = diffusion_loss(
        diffusion, predictions, x_t, clean, eps, alpha_bars, weight, train.mixed_ratio, whole and whole.weight
    )
    loss = loss_dm + train.eta * loss_ar
    metrics |= {"loss": loss, "loss_dm": loss_dm} | {f"loss_dm_r{r}": loss for r, loss in enumerate(each)}
    return loss, metrics


def _captions(params: dict[str, Any], apply: Callable[..., Any], batch: Batch) -> tuple[Array, Array, Array, Array]:
    """(H_c, its mask, H_c of the empty caption, its mask)."""
    captions = batch["encoder_input_tokens"]
    nothing = null_tokens(captions.shape[1])
    if TABLE in params:  # few captions and a frozen encoder: it ran once on each
        states = params[TABLE]["states"]
        return constrain(states[batch[ROW]], "batch"), captions != PAD, states[-1:], nothing != PAD
    return *apply("encode", captions), *apply("encode", nothing)


def _mixed(ratio: tuple[int, ...], *of_resolutions: list[Array]) -> Iterator[list[Array]]:
    """Mixed batches: the outer nets get only the first rows; () changes nothing."""
    for arrays in of_resolutions:
        rows = mixed_rows(ratio, len(arrays[-1])) if ratio else map(len, arrays)
        yield [x[:n] for x, n in zip(arrays, rows, strict=True)]


def token_nll(apply: Callable[..., Any], h_z: States, targets: Tokens, chunk: int) -> PerToken:
    """-log p of each target token, from at most `chunk` positions' logits at a time."""

    def nll(states: Array, targets: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(apply("latents_logits", states), targets)

    return chunked(nll, chunk, h_z, targets)


def in_model_range(images: Array) -> Float[Array, "b ..."]:
    """Samples as the loader gives them, uint8 images or floats, as floats in the model range."""
    return to_model_range(images) if images.dtype == jnp.uint8 else images


def sample_times(config: Config, step: int | Int[Array, ""], rows: Int[Array, "b"]) -> Int[Array, "b"]:
    """Network times 0..N-1 of these rows of a batch, uniform."""
    keys = sample_keys(config.seed, "time", step, rows)
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, config.diffusion.num_steps))(keys)


# ----------------------------------------------------------------------------------------- gradient and update
def make_train_step(
    model: Kaleido, config: Config, optimizer: optax.GradientTransformation, mesh: Mesh | AbstractMesh | None = None
) -> TrainStep:
    """(state, frozen, batch) -> (state, metrics): Adam on the gradient of the joint loss, then the averages.

    A step whose loss, gradient or update is not finite changes no weight; it is counted. On a mesh of several processes
    all of them see the same sums, so they agree on it.

    Args:
      model: gives the networks.
      config: the experiment.
      optimizer: as of make_optimizer.
      mesh: on which activations are placed by config.mesh.rules; None = wherever XLA guesses.
    """

    def train_step(state: State, frozen: dict[str, Any], batch: Batch) -> tuple[State, Metrics]:
        with placing(mesh, config.mesh.rules):
            grads, metrics = _gradients(state, frozen, batch, model, config)
        norms = {f"grad_norm_{name}": optax.global_norm(part) for name, part in grads.items()}
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(sum(norms.values()))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        if may_overflow(config.train):  # only then, since it takes a pass over all weights and a copy of them
            finite &= jnp.isfinite(optax.global_norm(updates))
        params = optax.apply_updates(state.params, updates)
        params, opt_state = kept_if(finite, (params, opt_state), (state.params, state.opt_state))
        applied = state.step - state.guard.skipped  # a skipped step does not move the schedule
        guard = adjusted(state.guard, finite)
        state = state.replace(
            step=state.step + 1,
            params=params,
            ema=moved_ema(state.ema, params, state.step, config.train),
            opt_state=opt_state,
            guard=guard,
            profiles=moved_profiles(state.profiles, params, state.step, config.train),
        )
        metrics |= norms | {"learning_rate": jnp.float32(learning_rate(config.train)(applied))}
        metrics |= {"skipped_in_row": guard.skipped_in_row, "skipped_steps": guard.skipped}
        if model.config.precision == "float16":
            metrics["loss_scale"] = guard.loss_scale
        sums = {name: batch[name].sum() for name in ("replaced", "stop") if name in batch}
        return state, metrics | sums | {"rows": jnp.float32(batch["image"].shape[0])}

    return train_step


def _gradients(
    state: State, frozen: dict[str, Any], batch: Batch, model: Kaleido, config: Config
) -> tuple[dict[str, Any], Metrics]:
    """The gradient of the joint loss over a batch, in float32, and the loss's metrics."""
    count, rows = config.train.accumulate, jnp.arange(batch["image"].shape[0])
    scale = state.guard.loss_scale if model.config.precision == "float16" else None

    def scaled_loss(params: dict[str, Any], part: Batch, whole: Whole | None) -> tuple[Scalar, Metrics]:
        loss, metrics = joint_loss(params | frozen, model, config, part, state.step, whole)
        return (loss if scale is None else loss * scale), metrics

    gradient = jax.grad(scaled_loss, has_aux=True)
    if count == 1:
        grads, metrics = gradient(state.params, batch, None)
    else:
        weight = loss_weight(config.diffusion, sample_times(config, state.step, rows))
        tokens = batch["decoder_loss_weights"].sum() / count if model.has_prior else jnp.float32(1)
        parts = jax.tree.map(lambda x: _parts(x, count), (batch, rows))

        def of_part(part: tuple[Batch, Array]) -> tuple[dict[str, Any], Metrics]:
            whole = Whole(part[1], tokens, None if weight is None else weight.mean())
            return gradient(state.params, part[0], whole)

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, of_part(part)), None

        shapes = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        grads, metrics = jax.tree.map(lambda x: x / count, jax.lax.scan(add, zeros, parts)[0])
    return (grads if scale is None else jax.tree.map(lambda g: g / scale, grads)), metrics


def _parts(x: Array, count: int) -> Array:
    """(count, B / count, ...): row i goes into part i % count, so that each device's rows stay on it."""
    return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)
