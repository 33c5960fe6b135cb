"""T5 v1.1: encoder and decoder (Raffel et al. 2020, arXiv 1910.10683; Shazeer 2020, arXiv 2002.05202).

Parameters have t5x's names. Layers are scanned, so every layer leaf has a leading layer axis; the relative bias is one
table for each stack and enters the scan as a constant. Parameters and norms are float32, the rest runs in `dtype`. In
float16, where the pretrained models are known to overflow, the residual stream and the end of each MLP stay float32.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from kaleido_jax.array_types import AttentionBias, AttentionMask, Logits, PerHead, States, TokenLogits, Tokens
from kaleido_jax.config.schema import T5
from kaleido_jax.models import cpu
from kaleido_jax.models.attention import attend, merge_heads, split_heads
from kaleido_jax.models.fused_attention import fused_causal_attend
from kaleido_jax.models.layers import Dense
from kaleido_jax.models.remat import rematerialize
from kaleido_jax.runtime.mesh import constrain

PAD, EOS, UNK = 0, 1, 2  # the decoder starts from PAD
NUM_BUCKETS, MAX_DISTANCE, NORM_EPS = 32, 128, 1e-6


def relative_buckets(query_length: int, key_length: int, bidirectional: bool) -> Int[np.ndarray, "q k"]:
    """Bucket of each (query, key) pair, int32 (query_length, key_length) in 0..31.

    Half of the buckets (of each sign when bidirectional) are exact distances, the rest are spaced
    logarithmically up to 128. float32 arithmetic as in t5x; equal to Hugging Face's for |distance| <= 300.
    """
    relative = np.arange(key_length)[None, :] - np.arange(query_length)[:, None]
    buckets = NUM_BUCKETS // 2 if bidirectional else NUM_BUCKETS
    offset = np.where(relative > 0, buckets, 0) if bidirectional else 0
    distance = np.abs(relative) if bidirectional else np.maximum(-relative, 0)
    exact = buckets // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact + np.finfo(np.float32).eps)
    logarithmic = exact + (ratio / math.log(MAX_DISTANCE / exact) * (buckets - exact)).astype(np.int32)
    return (offset + np.where(distance < exact, distance, np.minimum(logarithmic, buckets - 1))).astype(np.int32)


_normal = nn.initializers.normal
_FAN_IN = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def _dense(features: int, axes: tuple[str, str], init: Callable, dtype: DTypeLike) -> Dense:
    """A projection without bias, like all of T5's."""
    return Dense(features, dtype, nn.with_logical_partitioning(init, axes), out_axis=axes[-1])


def _residual_dtype(dtype: DTypeLike) -> DTypeLike:
    return jnp.float32 if dtype == jnp.float16 else dtype


def _residual(x: Float[Array, "b t d"], dtype: DTypeLike) -> States:
    """The residual stream, whose placement XLA would otherwise guess anew in every layer."""
    return constrain(x.astype(_residual_dtype(dtype)), "batch", None, "act_embed")


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * scale, statistics in float32; no mean, no bias."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Normalizes the last axis."""
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), x.shape[-1:])
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + NORM_EPS)
        return normed.astype(self.dtype) * jnp.broadcast_to(scale.astype(self.dtype), x.shape)


class RelativeBias(nn.Module):
    """The table added to self-attention logits, shared by all layers of a stack."""

    num_heads: int
    bidirectional: bool

    def setup(self) -> None:
        """The table, (heads, 32)."""
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        self.table = self.param(
            "rel_embedding",
            nn.with_logical_partitioning(init, ("heads", "buckets")),
            (self.num_heads, NUM_BUCKETS),
        )

    def __call__(self, query_length: int, key_length: int) -> Float[Array, "1 n q k"]:
        """Bias of every pair of positions."""
        return self.table[:, relative_buckets(query_length, key_length, self.bidirectional)][None]

    def row(self, index: Int[Array, ""], length: int) -> Float[Array, "1 n 1 k"]:
        """The bias of one query among `length` positions; the other queries' are not computed."""
        buckets = jnp.asarray(relative_buckets(length, length, self.bidirectional))[index]
        return jnp.asarray(self.table)[:, buckets][None, :, None]


class Attention(nn.Module):
    """Multi-head attention without scaling: T5 folds 1/sqrt(head_dim) into the query's initialization."""

    config: T5
    dtype: DTypeLike

    def setup(self) -> None:
        """Projections: inner = heads * head_dim, head-major, which may differ from d_model."""
        c = self.config
        inner = c.num_heads * c.head_dim
        self.query = _dense(inner, ("embed", "heads"), _normal((c.d_model * c.head_dim) ** -0.5), self.dtype)
        self.key = _dense(inner, ("embed", "heads"), _normal(c.d_model**-0.5), self.dtype)
        self.value = _dense(inner, ("embed", "heads"), _normal(c.d_model**-0.5), self.dtype)
        self.out = _dense(c.d_model, ("heads", "embed"), _normal(inner**-0.5), self.dtype)

    def keys_values(self, x: States) -> tuple[PerHead, PerHead]:
        """Keys and values of x."""
        heads = self.config.num_heads
        return split_heads(self.key(x), heads), split_heads(self.value(x), heads)

    def read(
        self,
        x: States,
        k: Float[Array, "b n k d_n"],
        v: Float[Array, "b n k d_n"],
        bias: AttentionBias | None,
        mask: AttentionMask | None,
        attend: Callable[..., PerHead] = attend,
    ) -> States:
        """Attends from x to given keys and values."""
        q = split_heads(self.query(x), self.config.num_heads)
        return self.out(merge_heads(attend(q, k, v, bias, mask)))

    def __call__(
        self, x: States, source: Float[Array, "b s d"], bias: AttentionBias | None, mask: AttentionMask | None
    ) -> States:
        """Attends from x to source."""
        return self.read(x, *self.keys_values(source), bias, mask)

    def causal(self, x: States, bias: AttentionBias, mask: AttentionMask) -> States:
        """Attends from each token of x to itself and those before it."""
        by = fused_causal_attend if self.config.attention == "fused" else attend
        return self.read(x, *self.keys_values(x), bias, mask, by)


class GatedMLP(nn.Module):
    """(gelu(x wi_0) * (x wi_1)) wo, tanh gelu."""

    config: T5
    dtype: DTypeLike

    def setup(self) -> None:
        """Two branches in, one out."""
        c = self.config
        self.wi_0 = _dense(c.d_ff, ("embed", "mlp"), _FAN_IN, self.dtype)
        self.wi_1 = _dense(c.d_ff, ("embed", "mlp"), _FAN_IN, self.dtype)
        self.wo = _dense(c.d_model, ("mlp", "embed"), _FAN_IN, _residual_dtype(self.dtype))

    def __call__(self, x: States) -> States:
        """Position-wise."""
        wide = _residual_dtype(self.dtype)
        return self.wo(nn.gelu(self.wi_0(x), approximate=True).astype(wide) * self.wi_1(x).astype(wide))


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each with its own pre-norm and a plain residual."""

    config: T5
    dtype: DTypeLike

    def setup(self) -> None:
        """Sub-layers under t5x's names."""
        self.pre_attention_layer_norm = RMSNorm(self.dtype)
        self.attention = Attention(self.config, self.dtype)
        self.pre_mlp_layer_norm = RMSNorm(self.dtype)
        self.mlp = GatedMLP(self.config, self.dtype)

    def __call__(self, x: States, bias: AttentionBias, mask: AttentionMask) -> tuple[States, None]:
        """Returns (x, None) for the scan."""
        h = self.pre_attention_layer_norm(x)
        x = x + self.attention(h, h, bias, mask)
        x = _residual(x + self.mlp(self.pre_mlp_layer_norm(x)), self.dtype)
        self.sow("intermediates", "state", x)
        return x, None


class LayerCache(struct.PyTreeNode):
    """Keys and values of the decoder for cached decoding, stacked over layers.

    Self entries are (layers, B, heads, max_len, head_dim) and filled one position at a time; cross entries are
    (layers, B, heads, Lc, head_dim) and computed once.
    """

    self_k: Any  # arrays, or whatever jax.tree.map makes of them
    self_v: Any
    cross_k: Any
    cross_v: Any

    @property
    def max_len(self) -> int:
        """Positions of the cache."""
        return self.self_k.shape[-2]


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and MLP, each with its own pre-norm and a plain residual."""

    config: T5
    dtype: DTypeLike

    def setup(self) -> None:
        """Sub-layers under t5x's names."""
        self.pre_self_attention_layer_norm = RMSNorm(self.dtype)
        self.self_attention = Attention(self.config, self.dtype)
        self.pre_cross_attention_layer_norm = RMSNorm(self.dtype)
        self.encoder_decoder_attention = Attention(self.config, self.dtype)
        self.pre_mlp_layer_norm = RMSNorm(self.dtype)
        self.mlp = GatedMLP(self.config, self.dtype)

    def __call__(
        self,
        x: States,
        states: Float[Array, "b s d"],
        bias: AttentionBias,
        self_mask: AttentionMask,
        cross_mask: Bool[Array, "b 1 1 s"],
    ) -> tuple[States, None]:
        """Teacher-forced, all positions at once; returns (x, None) for the scan."""
        x = x + self.self_attention.causal(self.pre_self_attention_layer_norm(x), bias, self_mask)
        h = self.pre_cross_attention_layer_norm(x)
        x = x + self.encoder_decoder_attention(h, states, None, cross_mask)
        x = _residual(x + self.mlp(self.pre_mlp_layer_norm(x)), self.dtype)
        self.sow("intermediates", "state", x)
        return x, None

    def cross_keys_values(self, carry: Array, states: States) -> tuple[Array, tuple[PerHead, PerHead]]:
        """Keys and values of the encoder's states, for the cache."""
        return carry, self.encoder_decoder_attention.keys_values(states)

    def step(
        self,
        x: Float[Array, "b 1 d"],
        cache: LayerCache,
        index: Int[Array, ""],
        bias: AttentionBias,
        self_mask: AttentionMask,
        cross_mask: Bool[Array, "b 1 1 s"],
    ) -> tuple[Float[Array, "b 1 d"], tuple[PerHead, PerHead]]:
        """Only position `index`; returns x and the layer's new self-attention keys and values.

        The cross entries are not returned: the scan would rewrite them at every token.
        """
        h = self.pre_self_attention_layer_norm(x)
        k, v = self.self_attention.keys_values(h)
        self_k = jax.lax.dynamic_update_slice_in_dim(cache.self_k, k, index, axis=2)
        self_v = jax.lax.dynamic_update_slice_in_dim(cache.self_v, v, index, axis=2)
        x = x + self.self_attention.read(h, self_k, self_v, bias, self_mask)
        h = self.pre_cross_attention_layer_norm(x)
        x = x + self.encoder_decoder_attention.read(h, cache.cross_k, cache.cross_v, None, cross_mask)
        x = x + self.mlp(self.pre_mlp_layer_norm(x))
        return x, (self_k, self_v)


def _stack(layer: type[nn.Module], length: int, remat: str, methods: Mapping[str, tuple]) -> Callable[..., nn.Module]:
    """Scans `layer` over its parameters; `methods` maps each method to the scan axes of its arguments."""
    layer = rematerialize(layer, remat, scanned=True)
    common = {
        "variable_axes": {"params": 0, "intermediates": 0},
        "split_rngs": {"params": True},
        "length": length,
        "metadata_params": {nn.PARTITION_NAME: "layers"},
    }
    return nn.scan(layer, methods={name: {"in_axes": axes, **common} for name, axes in methods.items()})


def _embedder(vocab_size: int, config: T5, dtype: DTypeLike) -> nn.Embed:
    # N(0, 1) as in t5x: there is no sqrt(d) scaling after the lookup.
    init = nn.with_logical_partitioning(_normal(1.0), ("vocab", "embed"))
    return nn.Embed(vocab_size, config.d_model, dtype=dtype, embedding_init=init)


class Encoder(nn.Module):
    """The caption's states."""

    config: T5
    vocab_size: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Table, scanned layers, final norm."""
        c = self.config
        self.token_embedder = _embedder(self.vocab_size, c, self.dtype)
        self.relpos_bias = RelativeBias(c.num_heads, bidirectional=True)
        methods = {"__call__": (nn.broadcast, nn.broadcast)}
        self.layers = _stack(EncoderLayer, c.num_encoder_layers, c.remat, methods)(c, self.dtype)
        self.encoder_norm = RMSNorm(self.dtype)

    def __call__(self, tokens: Tokens) -> States:
        """States after the final norm; rows at pad tokens are meaningless, and the caller must mask them."""
        length = tokens.shape[1]
        mask = (tokens != PAD)[:, None, None, :]
        x = _residual(self.token_embedder(tokens), self.dtype)
        x, _ = self.layers(x, self.relpos_bias(length, length), mask)
        return self.encoder_norm(x)


class Decoder(nn.Module):
    """The prior's network: states and next-token logits, teacher forced or one position at a time."""

    config: T5
    vocab_size: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Table, scanned layers, final norm, untied head."""
        c = self.config
        self.token_embedder = _embedder(self.vocab_size, c, self.dtype)
        self.relpos_bias = RelativeBias(c.num_heads, bidirectional=False)
        every = nn.broadcast
        methods = {
            "__call__": (every, every, every, every),
            "cross_keys_values": (every,),
            "step": (0, every, every, every, every),
        }
        self.layers = _stack(DecoderLayer, c.num_decoder_layers, c.remat, methods)(c, self.dtype)
        self.decoder_norm = RMSNorm(self.dtype)
        # As in t5x, the head runs in float32, whatever the compute dtype is.
        self.logits_dense = _dense(self.vocab_size, ("embed", "vocab"), _FAN_IN, jnp.float32)

    def __call__(
        self, tokens: Tokens, states: Float[Array, "b s d"], states_mask: Bool[Array, "b s"]
    ) -> tuple[States, Logits]:
        """Teacher forced: tokens are the targets shifted right after a PAD.

        Returns the states after the final norm and float32 logits of each position's next token.
        """
        x = self.read(tokens, states, states_mask)
        return x, self.logits(x)

    def read(self, tokens: Tokens, states: Float[Array, "b s d"], states_mask: Bool[Array, "b s"]) -> States:
        """The states of `__call__` alone."""
        length = tokens.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
        bias, cross_mask = self.relpos_bias(length, length), states_mask[:, None, None, :]
        x, _ = self.layers(_residual(self.token_embedder(tokens), self.dtype), states, bias, causal, cross_mask)
        return self.decoder_norm(x)

    def logits(self, states: States) -> Logits:
        """Float32 logits of each position's next token."""
        return self.logits_dense(states)

    def init_cache(self, states: Float[Array, "b s d"], max_len: int) -> LayerCache | cpu.Unstacked:
        """An empty cache for `max_len` positions with the cross-attention part filled in."""
        c = self.config
        _, (cross_k, cross_v) = self.layers.cross_keys_values(jnp.zeros(()), states)
        shape = (c.num_decoder_layers, states.shape[0], c.num_heads, max_len, c.head_dim)
        empty = jnp.zeros(shape, self.dtype)
        cache = LayerCache(self_k=empty, self_v=empty, cross_k=cross_k, cross_v=cross_v)
        return cpu.unstack(cache, self.layers, self.logits_dense) if cpu.enabled() else cache

    def step(
        self,
        token: Int[Array, "b"],
        index: Int[Array, ""],
        cache: LayerCache | cpu.Unstacked,
        states_mask: Bool[Array, "b s"],
    ) -> tuple[Float[Array, "b d"], TokenLogits, LayerCache | cpu.Unstacked]:
        """The state and logits of position `index`, given its input token and the cache of those before."""
        x = _residual(self.token_embedder(token[:, None]), self.dtype)
        known = (jnp.arange(cache.max_len) <= index)[None, None, None, :]
        args = index, self.relpos_bias.row(index, cache.max_len), known, states_mask[:, None, None, :]
        if isinstance(cache, cpu.Unstacked):
            layer = DecoderLayer(self.config, self.dtype, parent=None)
            x, logits, cache = cache.step(x, args, layer, self.decoder_norm, self.logits_dense)
        else:
            x, (self_k, self_v) = self.layers.step(x, cache, *args)
            x = self.decoder_norm(x)
            logits, cache = self.logits_dense(x), cache.replace(self_k=self_k, self_v=self_v)
        return x[:, 0], logits[:, 0], cache
