"""Joint model: frozen T5 encoder, T5 decoder as the prior p(z | c), and the denoiser p(x | c, z)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from kaleido_jax.array_types import Logits, Mask, PerSample, Pyramid, States, Times, TokenLogits, Tokens
from kaleido_jax.config.schema import Config, Model, sample_shapes
from kaleido_jax.models import cpu
from kaleido_jax.models.nested_unet import build_denoiser
from kaleido_jax.models.point_net import PointNet
from kaleido_jax.models.t5 import EOS, PAD, Decoder, Encoder, LayerCache
from kaleido_jax.models.unet import Condition

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class Kaleido(nn.Module):
    """Parts under the names `encoder`, `prior` and `denoiser`; without latents (the baseline) there is no prior.

    encoder_vocab_size and prior_vocab_size are the rows of the token tables: the encoder's is T5's, the prior's also
    has the vokens.
    """

    config: Model
    encoder_vocab_size: int
    prior_vocab_size: int
    has_prior: bool = True

    def setup(self) -> None:
        """Builds the parts in the config's compute dtype."""
        c, dtype = self.config, DTYPES[self.config.precision]
        self.encoder = Encoder(c.t5, self.encoder_vocab_size, dtype)
        if self.has_prior:
            self.prior = Decoder(c.t5, self.prior_vocab_size, dtype)
        if c.denoiser is not None:
            self.denoiser = build_denoiser(c.denoiser, c.t5.d_model, dtype)
        else:
            self.denoiser = PointNet(c.point_denoiser, c.t5.d_model, dtype)

    # ------------------------------------------------------------------------------------ the three parts
    def encode(self, tokens: Tokens) -> tuple[States, Mask]:
        """H_c and its mask; padding rows are exactly zero. No gradient unless the encoder is trainable."""
        mask = tokens != PAD
        states = self.encoder(tokens) * mask[..., None]
        return (states if self.config.t5.encoder.trainable else jax.lax.stop_gradient(states)), mask

    def read_latents(
        self, h_c: Float[Array, "b s d"], c_mask: Bool[Array, "b s"], inputs: Tokens
    ) -> tuple[States, Logits]:
        """Teacher-forced prior: (H_z, float32 logits of each position's next token) for decoder inputs."""
        return self.prior(inputs, h_c, c_mask)

    def latents_states(self, h_c: Float[Array, "b s d"], c_mask: Bool[Array, "b s"], inputs: Tokens) -> States:
        """H_z of `read_latents` alone."""
        return self.prior.read(inputs, h_c, c_mask)

    def latents_logits(self, h_z: States) -> Logits:
        """The logits of `read_latents`, for any positions of H_z."""
        return self.prior.logits(h_z)

    def start_decoding(self, h_c: States, max_len: int) -> LayerCache | cpu.Unstacked:
        """An empty cache for sampling z."""
        return self.prior.init_cache(h_c, max_len)

    def decode_step(
        self, token: Int[Array, "b"], index: Int[Array, ""], cache: LayerCache | cpu.Unstacked, c_mask: Mask
    ) -> tuple[Float[Array, "b d"], TokenLogits, LayerCache | cpu.Unstacked]:
        """One cached step of the prior: (state, logits, cache)."""
        return self.prior.step(token, index, cache, c_mask)

    def condition(
        self,
        h_c: States,
        c_mask: Mask,
        h_z: Float[Array, "b z d"] | None = None,
        z_mask: Bool[Array, "b z"] | None = None,
        *,
        micros: Mapping[str, PerSample] | None = None,
    ) -> Condition:
        """[H_c ; H_z] with the joint mask and micro conditions, turned into what the denoiser needs at every step."""
        if h_z is None:
            return self.denoiser.condition(h_c, c_mask, micros)
        text = jnp.concatenate([h_c, h_z * z_mask[..., None]], axis=1)
        return self.denoiser.condition(text, jnp.concatenate([c_mask, z_mask], axis=1), micros)

    def denoise(self, images: Pyramid, times: Times, condition: Condition) -> Pyramid:
        """Predictions at every resolution, high to low, float32."""
        return self.denoiser(images, times, condition)

    def init_all(self, captions: Tokens, z: Tokens, images: Pyramid) -> Pyramid:
        """Touches every parameter once; only for `init`."""
        h_c, c_mask = self.encode(captions)
        latents = ()
        if self.has_prior:
            latents = (self.read_latents(h_c, c_mask, z)[0], z == PAD)
        return self.denoise(images, z[:, 0], self.condition(h_c, c_mask, *latents))


def build_model(config: Config, base_vocab_size: int) -> Kaleido:
    """The model of an experiment whose vocabulary has `base_vocab_size` rows before the vokens."""
    rows = base_vocab_size + config.latents.codebook_size
    return Kaleido(config.model, base_vocab_size, rows, has_prior=bool(config.latents.segments))


def init_params(model: Kaleido, key: Key[Array, ""]) -> dict[str, Any]:
    """Fresh float32 parameters, {"encoder": ..., "prior": ..., "denoiser": ...}, with logical axis metadata.

    Inputs are shapes only, so that no forward pass is compiled.
    """
    return model.lazy_init(key, *_shapes_of_inputs(model), method="init_all")["params"]


def boxed_shapes(model: Kaleido) -> dict[str, Any]:
    """Shapes and dtypes of `init_params`, with logical axis metadata; nothing is computed.

    Half a second faster than `init_params` under `jax.eval_shape`, where `lazy_init` would split what needs values from
    what does not although nothing has any.
    """
    init = functools.partial(model.init, method="init_all")
    with cpu.plain():  # the plain formulas have the same parameters, and no gradients to trace
        return jax.eval_shape(init, jax.random.key(0), *_shapes_of_inputs(model))["params"]


def _shapes_of_inputs(model: Kaleido) -> tuple:
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    images = [jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in sample_shapes(model.config)]
    return tokens, tokens, images


def abstract_params(model: Kaleido) -> dict[str, Any]:
    """Shapes and dtypes of the parameters, without metadata; nothing is computed."""
    return nn.meta.unbox(boxed_shapes(model))


def eval_init(init: Callable[..., Any], *inputs: Any) -> Any:
    """Shapes and dtypes of the result of init(key, *inputs), without metadata; nothing is computed."""
    return nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), *inputs))


def split_frozen(params: dict, config: Config) -> tuple[dict, dict]:
    """(trainable, frozen) parts of the parameters: a frozen encoder is not in optimizer, EMA or checkpoints."""
    if config.model.t5.encoder.trainable:
        return params, {}
    return {k: v for k, v in params.items() if k != "encoder"}, {"encoder": params["encoder"]}


def count_params(tree: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def null_tokens(length: int) -> Int[Array, "1 t"]:
    """The empty caption, eos alone: it replaces a dropped c, whose z has every position masked."""
    return jnp.zeros((1, length), jnp.int32).at[0, 0].set(EOS)
