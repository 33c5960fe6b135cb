"""Sampling as pure functions: model, parameters and settings are arguments; the results are tokens or images.

Row i belongs to sample i and no row reads another, so rows may be split over devices: inputs placed by `batch_sharding`
give outputs with the same placement, whatever the shardings of the parameters.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float, Int, UInt32

from kaleido_jax.array_types import Condition, Keys, Mask, Rows, Scalar, States, TokenLogits, Tokens
from kaleido_jax.array_types import Sample as SampleArray
from kaleido_jax.config.schema import Diffusion, Sample, sample_shapes, scales
from kaleido_jax.diffusion import guidance, samplers
from kaleido_jax.diffusion.samplers import Reversing
from kaleido_jax.latents.constrain import Constraint
from kaleido_jax.models import decode
from kaleido_jax.models.decode import Decoding, sample_tokens, shift_right
from kaleido_jax.models.kaleido import Kaleido, null_tokens
from kaleido_jax.models.t5 import PAD
from kaleido_jax.runtime.files import fingerprint


class EncodedCaptions(struct.PyTreeNode):
    """States of captions, and of the empty caption that replaces them in the unconditional prediction."""

    states: States  # H_c, (b, t, d)
    mask: Mask
    null_states: Float[Array, "1 t d"]
    null_mask: Bool[Array, "1 t"]

    def take(self, rows: Int[Array, "n"]) -> "EncodedCaptions":
        """The captions of these rows, for several samples of one caption."""
        return self.replace(states=self.states[rows], mask=self.mask[rows])


def encode_captions(model: Kaleido, params: dict, captions: Tokens) -> EncodedCaptions:
    """H_c of each caption; the latents and every image of a caption are sampled from the same states."""
    encode = functools.partial(model.apply, {"params": params}, method="encode")
    return EncodedCaptions(*encode(captions), *encode(null_tokens(captions.shape[1])))


def sample_latents(
    model: Kaleido,
    params: dict,
    captions: EncodedCaptions,
    keys: Keys,
    *,
    max_len: int,
    constraint: Constraint | None = None,
    prefix: Tokens | None = None,
    temperature: float | Array = 1.0,
    top_k: int | Array = 0,
    top_p: float | Array = 1.0,
) -> Tokens:
    """z ~ p(z | c) as token ids (b, max_len), padded with 0 after eos; the arguments are those of `sample_tokens`."""
    return sample_tokens(
        _prior_step(model, params, captions.mask),
        _empty_cache(model, params, captions.states, max_len),
        keys,
        max_len=max_len,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        prefix=prefix,
        constraint=constraint,
    )


def start_latents(
    model: Kaleido, params: dict, captions: EncodedCaptions, *, max_len: int, constraint: Constraint
) -> Decoding:
    """Where `sample_latents` begins, for programs that have its loop outside."""
    cache = _empty_cache(model, params, captions.states, max_len)
    return decode.start(cache, jnp.zeros(captions.states.shape[0], bool), max_len, constraint)


def latents_step(
    model: Kaleido,
    params: dict,
    captions: EncodedCaptions,
    keys: Keys,
    state: Decoding,
    *,
    forced: Tokens,
    constraint: Constraint,
    temperature: float | Array,
    top_k: int | Array,
    top_p: float | Array,
) -> Decoding:
    """One more token of each z: a turn of the loop of `sample_latents`; `forced` is 0 where nothing is."""
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return decode.sample_next(_prior_step(model, params, captions.mask), state, keys, forced, constraint, **settings)


def _empty_cache(model: Kaleido, params: dict, states: States, max_len: int) -> Any:
    return model.apply({"params": params}, states, max_len, method="start_decoding")


def _prior_step(model: Kaleido, params: dict, mask: Mask) -> decode.Step:
    def step(token: Int[Array, "b"], index: Int[Array, ""], cache: Any) -> tuple[Array, TokenLogits, Any]:
        return model.apply({"params": params}, token, index, cache, mask, method="decode_step")

    return step


def condition_states(model: Kaleido, params: dict, captions: EncodedCaptions, z: Tokens) -> tuple[tuple, tuple]:
    """(cond, uncond): what `Kaleido.condition` takes, (H_c, mask) and with a prior (H_z, mask) behind it.

    Without a condition the empty caption replaces c, and every position of z is masked, as in training.
    """
    cond = (captions.states, captions.mask)
    uncond = (
        jnp.broadcast_to(captions.null_states, captions.states.shape),
        jnp.broadcast_to(captions.null_mask, captions.mask.shape),
    )
    if model.has_prior:
        h_z, _ = model.apply({"params": params}, *cond, shift_right(z), method="read_latents")
        cond += (h_z, z != PAD)
        uncond += (h_z, jnp.zeros_like(z, bool))
    return cond, uncond


class Conditioned(struct.PyTreeNode):
    """What the denoiser reads at every evaluation: computed once a sample, keys and values included."""

    cond: Condition
    uncond: Condition
    states: tuple[Array, ...]  # what `cond` was computed from
    worse: "Conditioned | None"  # of a worse model, for autoguidance


def condition_images(
    model: Kaleido,
    params: dict,
    captions: EncodedCaptions,
    z: Tokens,
    bad: tuple[dict, EncodedCaptions] | None,
    *,
    sample: Sample,
) -> Conditioned:
    """The condition of images; the arguments are those of `sample_images`."""
    cond, uncond = condition_states(model, params, captions, z)
    read = _reader(model, params, z.shape[0], sample)
    worse = bad and condition_images(model, *bad, z, None, sample=sample)
    return Conditioned(cond=read(*cond), uncond=read(*uncond), states=cond, worse=worse)


def start_images(
    model: Kaleido, keys: Keys, gamma: Scalar | None, *, diffusion: Diffusion, sample: Sample
) -> Reversing:
    """The noise that images begin with, one key per sample."""
    rule = guidance.from_config(sample, diffusion, scales(model.config), gamma)
    return samplers.start(rule, keys, diffusion, sample, sample_shapes(model.config))


def image_step(
    model: Kaleido,
    params: dict,
    condition: Conditioned,
    keys: Keys,
    gamma: Scalar | None,
    bad_params: dict | None,
    state: Reversing,
    evaluation: Int[Array, "3"],
    *,
    diffusion: Diffusion,
    sample: Sample,
) -> tuple[Reversing, SampleArray]:
    """(state, x0) after one of `samplers.evaluations`; x0 is the prediction at the highest resolution."""
    denoiser = _denoiser(model, params, condition, sample)
    if bad_params is not None:
        denoiser = dataclasses.replace(denoiser, worse=_denoiser(model, bad_params, condition.worse, sample))
    sizes = scales(model.config)
    rule = guidance.from_config(sample, diffusion, sizes, gamma)
    state, x0 = samplers.evaluate(denoiser, rule, keys, state, evaluation, diffusion, sample, sizes)
    return state, x0[0]


def sample_images(
    model: Kaleido,
    params: dict,
    captions: EncodedCaptions,
    z: Tokens,
    keys: Keys,
    gamma: Scalar | None,
    bad: tuple[dict, EncodedCaptions] | None,
    *,
    diffusion: Diffusion,
    sample: Sample,
) -> SampleArray:
    """x ~ p(x | c, z) at the highest resolution, in the model range, as one program.

    The pipeline calls `condition_images`, `start_images` and `image_step` instead: one compilation serves any number of
    steps, and every step can be shown or be the last. The last bits of the results may differ.

    Args:
      model: gives the networks.
      params: of encoder, prior (where there are latents) and denoiser.
      captions: one per sample.
      z: tokens of each sample's latents, padded with 0; not read by a baseline.
      keys: one per sample.
      gamma: guidance weight; None = no guidance, and no unconditional rows.
      bad: parameters of a worse model and its states of the same captions, for autoguidance.
      diffusion: the process.
      sample: sampler, steps, guidance rule, threshold.
    """
    condition = condition_images(model, params, captions, z, bad, sample=sample)

    def step(state: Reversing, evaluation: Int[Array, "3"]) -> tuple[Reversing, None]:
        bad_params = bad and bad[0]
        inputs = model, params, condition, keys, gamma, bad_params, state, evaluation
        return image_step(*inputs, diffusion=diffusion, sample=sample)[0], None

    state = start_images(model, keys, gamma, diffusion=diffusion, sample=sample)
    state, _ = jax.lax.scan(step, state, jnp.asarray(samplers.evaluations(diffusion, sample)))
    return samplers.finish(state, sample)[0]


def _denoiser(model: Kaleido, params: dict, condition: Conditioned, sample: Sample) -> guidance.Denoiser:
    return guidance.Denoiser(
        denoise=functools.partial(model.apply, {"params": params}, method="denoise"),
        cond=condition.cond,
        uncond=condition.uncond,
        read=_reader(model, params, condition.states[0].shape[0], sample),
        states=condition.states,
    )


def _reader(model: Kaleido, params: dict, batch: Rows, sample: Sample) -> guidance.ReadCondition:
    micros = {name: jnp.full(batch, value) for name, value in sample.micro}  # with and without a condition
    return functools.partial(model.apply, {"params": params}, method="condition", micros=micros)


# --------------------------------------------------------------------------------------------- identity
def weights_checksum(params: dict) -> str:
    """16 hex digits that change with any bit of any parameter, and with their names, shapes and dtypes.

    Sums of integers wrap around and do not depend on their order, so every mesh gives the same digits; each parameter
    is read once, on its own devices.
    """
    leaves = flatten_dict(params, sep="/")
    parts = jax.device_get({name: _own_sums(leaf) for name, leaf in leaves.items()})
    sums = np.asarray([sum(map(int, each)) % 2**32 for each in parts.values()], np.uint32)
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(sums).sum(0, dtype=np.uint32)
    lines = dict(zip(parts, sums, strict=True))
    return fingerprint(
        *(f"{name} {leaves[name].shape} {leaves[name].dtype} {lines[name]}\n" for name in sorted(leaves))
    )


def _own_sums(leaf: Array | np.ndarray) -> list[UInt32[Array, ""] | np.uint32]:
    """Bit sums of the parts of an array on this process's devices, each part of the whole once over all processes.

    Part by part, without collectives: hundreds of these at a time deadlock on CPU.
    """
    if not isinstance(leaf, jax.Array):
        return [_bit_sum(leaf, (0,) * leaf.ndim, leaf.shape)]
    sums = []
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            start = tuple(part.start or 0 for part in shard.index)
            # Memory of CPU devices is the host's, where numpy need not compile a function for each shape (3 s in all).
            if shard.device.platform == "cpu":
                sums.append(_bit_sum(np.asarray(shard.data), start, leaf.shape))
            else:
                sums.append(_compiled_bit_sum(shard.data, start, leaf.shape))
    return sums


def _bit_sum(part: Array | np.ndarray, start: tuple[int, ...], shape: tuple[int, ...]) -> UInt32[Array, ""] | np.uint32:
    """Sum of the values' bits, each times an odd number of its position in the whole array of that shape."""
    xp = part.__array_namespace__()
    bits = part.view(f"uint{8 * part.dtype.itemsize}").astype(xp.uint32)
    position = xp.zeros(part.shape, xp.uint32)
    for axis, (size, offset) in enumerate(zip(part.shape, start, strict=True)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        index = (xp.arange(size, dtype=xp.uint32) + xp.uint32(offset)) * xp.uint32(stride)
        position += index.reshape(*(size if i == axis else 1 for i in range(part.ndim)))
    return xp.sum(bits * (position * xp.uint32(2654435761) | xp.uint32(1)), dtype=xp.uint32)


_compiled_bit_sum = jax.jit(_bit_sum, static_argnums=(1, 2))
