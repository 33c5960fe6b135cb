"""The UNet of Matryoshka Diffusion Models (Gu et al. 2023, MDM): blocks, text path and one plain net.

Layout is NHWC. Module names follow ml-mdm's parameter names, so that its weights map one to one. Layers that end a
residual start at zero.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from kaleido_jax.config.schema import UNet as UNetConfig
from kaleido_jax.models.attention import attend, merge_heads, split_heads
from kaleido_jax.models.layers import GroupNorm, conv, gelu, layer_norm, linear
from kaleido_jax.models.remat import rematerialize

NUM_HEADS = 8  # everywhere in MDM
ATTENTION_GROUPS = 32


# -------------------------------------------------------------------------------------- embeddings
def frequencies(emb_channels: int) -> np.ndarray:
    """Frequencies of the time embedding, float32 (E/8,): exp(-j ln(10000) / (E/8))."""
    half = emb_channels // 8
    return np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(10000) / half), dtype=np.float32)


def sinusoid(values: Float[Array, "b"], emb_channels: int) -> Float[Array, "b q"]:
    """(B, E/4): sines first. `values` are raw numbers such as the step 0..N-1; nothing is rescaled."""
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    angles = values[:, None] * frequencies(emb_channels)[None].astype(values.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class EmbeddingMLP(nn.Module):
    """Two dense layers on a sinusoid, silu between."""

    emb_channels: int
    dtype: Any
    zero_last: bool = False

    def setup(self):
        """E/4 -> E -> E."""
        e = self.emb_channels
        self.layer1 = linear(e // 4, e, self.dtype)
        self.layer2 = linear(e, e, self.dtype, zero=self.zero_last, axes=("mlp", "embed"))

    def __call__(self, values: Float[Array, "b"]) -> Float[Array, "b e"]:
        """Embeds one number a sample."""
        values = values.astype(jnp.promote_types(self.dtype, jnp.float32))
        return self.layer2(nn.silu(self.layer1(sinusoid(values, self.emb_channels).astype(self.dtype))))


class TimeEmbedding(nn.Module):
    """Time, pooled text and micro conditions, summed."""

    config: UNetConfig
    dtype: Any

    def setup(self):
        """One MLP for time, one for each micro condition (starting at zero)."""
        e = self.config.emb_channels
        self.time = EmbeddingMLP(e, self.dtype)
        self.micro = {name: EmbeddingMLP(e, self.dtype, zero_last=True) for name, _ in self.config.micro}

    def __call__(self, times, pooled, micros) -> Float[Array, "b e"]:
        """Times (B,) steps 0..N-1; micros maps a name to values (B,), absent names take their default."""
        emb = self.time(times)
        emb = emb if pooled is None else emb + pooled.astype(emb.dtype)
        for name, default in self.config.micro:
            value = (micros or {}).get(name, jnp.full(times.shape, default))
            value = value.astype(jnp.promote_types(self.dtype, jnp.float32))
            value = jnp.minimum(value / default, 1) * default if name == "scale" else 1000 * value
            emb = emb + self.micro[name](value)
        return emb


# -------------------------------------------------------------------------------------- text path
class Condition(struct.PyTreeNode):
    """Everything the net needs of [H_c ; H_z], computed once a sample and the same at every step.

    pooled: (B, E), added to the time embedding. keys_values: (k, v) of each attention block in the order in which
    the net meets them, each (B, heads, L, d). mask: (B, L), True where a token may be seen; None = all.
    """

    pooled: Array | None
    keys_values: tuple[tuple[Array, Array], ...]
    mask: Array | None


class TextBlock(nn.Module):
    """Self-attention over the text and an MLP, pre-norm, both starting at zero."""

    channels: int
    dtype: Any

    def setup(self):
        """ml-mdm's lm_head block."""
        c = self.channels
        self.attn_norm = layer_norm(self.dtype)
        self.attn_qkv = linear(c, 3 * c, self.dtype, axes=("embed", "heads"))
        self.attn_proj_out = linear(c, c, self.dtype, zero=True, axes=("heads", "embed"))
        self.mlp_norm = layer_norm(self.dtype)
        self.mlp_in = linear(c, 4 * c, self.dtype)
        self.mlp_out = linear(4 * c, c, self.dtype, zero=True, axes=("mlp", "embed"))

    def __call__(self, x: Float[Array, "b l c"], mask) -> Float[Array, "b l c"]:
        """No positional information: T5's states already carry it."""
        q, k, v = (split_heads(part, NUM_HEADS) for part in jnp.split(self.attn_qkv(self.attn_norm(x)), 3, -1))
        x = x + self.attn_proj_out(merge_heads(scaled_attend(q, k, v, mask)))
        return x + self.mlp_out(gelu(self.mlp_in(self.mlp_norm(x))))


def scaled_attend(q, k, v, mask):
    """Attention with queries and keys both multiplied by d^(-1/4); mask (B, L) over keys or None."""
    scale = q.shape[-1] ** -0.25
    return attend(q * scale, k * scale, v, mask=None if mask is None else mask[:, None, None, :])


class TextPath(nn.Module):
    """Projection, text layers and the pooled vector."""

    config: UNetConfig
    text_channels: int
    dtype: Any

    def setup(self):
        """lm_proj, lm_head and cond_emb."""
        c = self.config
        width = c.text_proj_channels or self.text_channels
        if c.text_proj_channels:
            self.lm_proj = linear(self.text_channels, width, self.dtype)
        self.lm_head = [TextBlock(width, self.dtype) for _ in range(c.num_text_layers)]
        self.cond_emb = linear(width, c.emb_channels, self.dtype, bias=False)

    def __call__(self, text: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None):
        """Returns (text (B, L, D'), pooled (B, E), the mask that attention uses or None)."""
        c = self.config
        x = text.astype(self.dtype)
        x = self.lm_proj(x) if c.text_proj_channels else x
        attention_mask = mask if c.masked_cross_attention else None
        for block in self.lm_head:
            x = block(x, attention_mask)
        plain = mask is None or (not c.masked_cross_attention and c.num_text_layers > 0)
        return x, self.cond_emb(mean_over_tokens(x, None if plain else mask)), attention_mask


def mean_over_tokens(x: Float[Array, "b l c"], mask) -> Float[Array, "b c"]:
    """Mean over (valid) tokens; a row without any gives zeros, where the reference divides 0 by 0."""
    if mask is None:
        return x.mean(1)
    weights = mask.astype(jnp.promote_types(x.dtype, jnp.float32))[..., None]
    return ((x * weights).sum(1) / jnp.maximum(weights.sum(1), 1)).astype(x.dtype)


# ------------------------------------------------------------------------------------ image blocks
class ResNet(nn.Module):
    """Residual block: norm, silu, conv, twice; time enters as scale and shift of the second norm."""

    in_channels: int
    channels: int
    config: UNetConfig
    dtype: Any

    def setup(self):
        """conv3 is the 1x1 shortcut, only where the width changes."""
        a, b, groups = self.in_channels, self.channels, self.config.num_groups
        self.norm1 = GroupNorm(groups, self.dtype)
        self.conv1 = conv(a, b, self.dtype)
        self.time_layer = linear(self.config.emb_channels, 2 * b, self.dtype)
        self.norm2 = GroupNorm(groups, self.dtype)
        self.conv2 = conv(b, b, self.dtype, zero=True)
        if a != b:
            self.conv3 = conv(a, b, self.dtype, size=1)

    def __call__(self, x: Float[Array, "b h w a"], temb: Float[Array, "b e"]) -> Float[Array, "b h w c"]:
        """Temb is the raw embedding; silu is applied here."""
        h = self.conv1(nn.silu(self.norm1(x)))
        scale, shift = jnp.split(self.time_layer(nn.silu(temb)), 2, -1)
        h = self.conv2(nn.silu(self.norm2(h, scale, shift)))
        return h + (x if self.in_channels == self.channels else self.conv3(x))


class AttentionBlock(nn.Module):
    """Self-attention over pixels plus cross-attention over text with the same queries: two softmaxes, added."""

    channels: int
    text_width: int
    config: UNetConfig
    dtype: Any

    def setup(self):
        """1x1 convolutions as dense layers over the channels."""
        c = self.channels
        self.norm = GroupNorm(ATTENTION_GROUPS, self.dtype)
        self.qkv = linear(c, 3 * c, self.dtype, axes=("embed", "heads"))
        self.norm_cond = layer_norm(self.dtype)
        self.kv_cond = linear(self.text_width, 2 * c, self.dtype, axes=("embed", "heads"))
        self.proj_out = linear(c, c, self.dtype, zero=True, axes=("heads", "embed"))
        if self.config.attention_ffn:
            self.ffn_norm = GroupNorm(ATTENTION_GROUPS, self.dtype)
            self.ffn_in = linear(c, 4 * c, self.dtype)
            self.ffn_out = linear(4 * c, c, self.dtype, zero=True, axes=("mlp", "embed"))

    def keys_values(self, text: Float[Array, "b l d"]) -> tuple[Array, Array]:
        """Keys and values of the text; the image never changes them."""
        k, v = jnp.split(self.kv_cond(self.norm_cond(text)), 2, -1)
        return split_heads(k, NUM_HEADS), split_heads(v, NUM_HEADS)

    def __call__(self, x: Float[Array, "b h w c"], text_kv, mask) -> Float[Array, "b h w c"]:
        """text_kv from `keys_values`; mask (B, L) over text or None."""
        b, h, w, c = x.shape
        tokens = self.qkv(self.norm(x)).reshape(b, h * w, 3 * c)
        q, k, v = (split_heads(part, NUM_HEADS) for part in jnp.split(tokens, 3, -1))
        a = scaled_attend(q, k, v, None) + scaled_attend(q, *text_kv, mask)
        x = x + self.proj_out(merge_heads(a).reshape(b, h, w, c))
        if self.config.attention_ffn:
            x = x + self.ffn_out(gelu(self.ffn_in(self.ffn_norm(x))))
        return x


class Level(nn.Module):
    """The blocks of one resolution, on the way down or up; `in_channels` gives each residual block's input."""

    in_channels: tuple[int, ...]
    channels: int
    num_attn: int  # attention blocks after each residual block
    text_width: int
    config: UNetConfig
    dtype: Any
    resample_stride: int = 0  # 2 = strided conv down, 1 = conv after nearest x2 up, 0 = none

    def setup(self):
        """resnets_j, attn_m with m = j * num_attn + index, resample."""
        resnet, attention = (rematerialize(block, self.config.remat) for block in (ResNet, AttentionBlock))
        self.resnets = [resnet(a, self.channels, self.config, self.dtype) for a in self.in_channels]
        self.attn = [
            attention(self.channels, self.text_width, self.config, self.dtype)
            for _ in range(self.num_attn * len(self.in_channels))
        ]
        if self.resample_stride:
            self.resample = conv(self.channels, self.channels, self.dtype, stride=self.resample_stride)

    def block(self, j: int, x, temb, keys_values, mask):
        """Residual block j and its attention blocks; `keys_values` is an iterator over the net's."""
        x = self.resnets[j](x, temb)
        for m in range(j * self.num_attn, (j + 1) * self.num_attn):
            x = self.attn[m](x, next(keys_values), mask)
        return x


class UNet(nn.Module):
    """One net: an image path of levels with skips, and optionally a text path and middle blocks.

    Its parts are separate methods because a NestedUNet runs another net between `down` and `up`.
    """

    config: UNetConfig
    text_channels: int
    text_width: int  # of the text that attention sees: the innermost net's projection
    dtype: Any = jnp.float32
    has_text_path: bool = True
    has_mid: bool = True

    def setup(self):
        """Widths follow the skip stack: conv_in, every block on the way down, every strided conv."""
        c, dtype = self.config, self.dtype

        def level(widths, channels, num_attn, resample_stride=0):
            return Level(widths, channels, num_attn, self.text_width, c, dtype, resample_stride)

        if self.has_text_path:
            self.text_path = TextPath(c, self.text_channels, dtype)
        self.temb = TimeEmbedding(c, dtype)
        self.conv_in = conv(3, c.channels[0], dtype)
        last = len(c.channels) - 1
        skips, width, down = [c.channels[0]], c.channels[0], []
        for i, channels in enumerate(c.channels):
            widths = (width,) + (channels,) * (c.num_res_blocks[i] - 1)
            down.append(level(widths, channels, c.num_attn_layers[i], 2 if i < last else 0))
            skips += [channels] * (c.num_res_blocks[i] + (i < last))
            width = channels
        self.down_blocks = down
        if self.has_mid:
            self.mid_blocks = [level((width,), width, 1), level((width,), width, 0)]
        up = []
        for i in reversed(range(last + 1)):
            widths = []
            for _ in range(c.num_res_blocks[i] + 1):
                widths.append(width + skips.pop())
                width = c.channels[i]
            up.append(level(tuple(widths), width, c.num_attn_layers[i], 1 if i else 0))
        self.up_blocks = up
        self.norm_out = GroupNorm(c.num_groups, dtype)
        self.conv_out = conv(c.channels[0], 3, dtype, zero=True)

    # ---- text, once a sample
    def read_text(self, text, mask):
        """(text as attention sees it, pooled vector, mask for attention)."""
        return self.text_path(text, mask)

    def keys_values(self, text, middle=()) -> tuple:
        """Cross-attention keys and values of every block in running order; `middle` is an inner net's."""
        middle = middle or (_keys_values(self.mid_blocks, text) if self.has_mid else ())
        return _keys_values(self.down_blocks, text) + middle + _keys_values(self.up_blocks, text)

    def condition(self, text: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None) -> Condition:
        """Turns text states into what every step needs (text is never updated by the image)."""
        text, pooled, mask = self.read_text(text, mask)
        return Condition(pooled=pooled, keys_values=self.keys_values(text), mask=mask)

    # ---- image, once a step
    def down(self, x, temb, keys_values, mask):
        """From conv_in's features to the lowest level; returns it and the stack of skips."""
        skips = [x]
        for level in self.down_blocks:
            for j in range(len(level.in_channels)):
                x = level.block(j, x, temb, keys_values, mask)
                skips.append(x)
            if level.resample_stride:
                x = level.resample(x)
                skips.append(x)
        return x, skips

    def up(self, x, skips, temb, keys_values, mask):
        """Back up; returns the last features, before norm_out."""
        for level in self.up_blocks:
            for j in range(len(level.in_channels)):
                x = jnp.concatenate([x, skips.pop()], -1)
                x = level.block(j, x, temb, keys_values, mask)
            if level.resample_stride:
                x = level.resample(nearest_x2(x))
        return x

    def head(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
        """The prediction, float32 (or wider) whatever the compute dtype."""
        out = self.conv_out(nn.silu(self.norm_out(x)))
        return out.astype(jnp.promote_types(out.dtype, jnp.float32))

    def __call__(self, images, times, condition: Condition, micros=None):
        """One step of a plain net.

        Args:
          images: list with one noisy image (B, H, W, 3).
          times: (B,) network time, the step index minus 1, 0..N-1.
          condition: from `condition`.
          micros: name -> (B,) values of micro conditions; absent ones take their default.

        Returns:
          [prediction (B, H, W, 3)].
        """
        return self.run(images, times, condition, micros, None, iter(condition.keys_values))[0]

    def run(self, images, times, condition, micros, features, keys_values):
        """`__call__` inside a nest: adds the outer net's `features` after conv_in and also returns the last ones."""
        temb = self.temb(times, condition.pooled, micros)
        x = self.conv_in(images[0].astype(self.dtype))
        x = x if features is None else x + features
        x, skips = self.down(x, temb, keys_values, condition.mask)
        for level in self.mid_blocks if self.has_mid else ():
            x = level.block(0, x, temb, keys_values, condition.mask)
        x = self.up(x, skips, temb, keys_values, condition.mask)
        return [self.head(x)], x


def _keys_values(levels, text) -> tuple:
    return tuple(block.keys_values(text) for level in levels for block in level.attn)


def nearest_x2(x: Float[Array, "b h w c"]) -> Float[Array, "b 2h 2w c"]:
    """Each pixel twice in both directions."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
