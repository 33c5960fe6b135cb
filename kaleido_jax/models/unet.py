"""UNet of Matryoshka Diffusion Models (MDM, Gu et al. 2023, arXiv 2310.15111): blocks, text path and one plain net.

Layout is NHWC. Module names follow ml-mdm's parameter names, so that its weights map one to one. Layers that end a
residual branch start at zero, so that every block starts as the identity.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Num

from kaleido_jax.array_types import Features, PerHead, PerSample, Pyramid, Times
from kaleido_jax.config.schema import UNet as UNetConfig
from kaleido_jax.models.attention import attend, merge_heads, split_heads
from kaleido_jax.models.fused_attention import fused_attend
from kaleido_jax.models.layers import GroupNorm, conv, gelu, layer_norm, linear
from kaleido_jax.models.remat import rematerialize
from kaleido_jax.runtime.mesh import constrain

NUM_HEADS = 8  # everywhere in MDM
ATTENTION_GROUPS = 32  # of the norms in attention blocks, whatever num_groups is

Embedding = Float[Array, "b e"]
Text = Float[Array, "b l d"]
TextMask = Bool[Array, "b l"]  # True where a pixel may attend to a token
# Of the text, for one attention block. Levels differ in the width of a head, so it is not named: the checker tries one
# block of a tuple and would bind it.
KeysValues = tuple[Float[Array, "b n l _"], Float[Array, "b n l _"]]
Blocks = Iterator[KeysValues]  # of the net's attention blocks, in running order
# Text as attention sees it, the pooled vector, and the mask that attention uses.
ReadText = tuple[Float[Array, "b l d2"], Embedding, TextMask | None]


# -------------------------------------------------------------------------------------- embeddings
def frequencies(emb_channels: int) -> Float[np.ndarray, "f"]:
    """Frequencies of the time embedding, float32 (E/8,): exp(-j ln(10000) / (E/8))."""
    half = emb_channels // 8
    return np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(10000) / half), dtype=np.float32)


def sinusoid(values: PerSample, emb_channels: int) -> Float[Array, "b q"]:
    """(B, E/4): sines first. `values` are raw numbers such as the step 0..N-1; nothing is rescaled."""
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    angles = values[:, None] * frequencies(emb_channels)[None].astype(values.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class EmbeddingMLP(nn.Module):
    """Two dense layers on a sinusoid, with silu between them."""

    emb_channels: int
    dtype: DTypeLike
    zero_last: bool = False

    def setup(self) -> None:
        """E/4 -> E -> E."""
        e = self.emb_channels
        self.layer1 = linear(e // 4, e, self.dtype)
        self.layer2 = linear(e, e, self.dtype, zero=self.zero_last, axes=("mlp", "embed"))

    def __call__(self, values: Num[Array, "b"]) -> Embedding:
        """Embeds one number of each sample."""
        values = values.astype(jnp.promote_types(self.dtype, jnp.float32))
        return self.layer2(nn.silu(self.layer1(sinusoid(values, self.emb_channels).astype(self.dtype))))


class TimeEmbedding(nn.Module):
    """Time, pooled text and micro conditions, summed."""

    config: UNetConfig
    dtype: DTypeLike

    def setup(self) -> None:
        """One MLP for time, one for each micro condition (starting at zero)."""
        e = self.config.emb_channels
        self.time = EmbeddingMLP(e, self.dtype)
        self.micro = {name: EmbeddingMLP(e, self.dtype, zero_last=True) for name, _ in self.config.micro}

    def __call__(self, times: Times, pooled: Embedding | None, micros: Mapping[str, PerSample]) -> Embedding:
        """Micro conditions that `micros` does not name take the config's default."""
        emb = self.time(times)
        emb = emb if pooled is None else emb + pooled.astype(emb.dtype)
        for name, default in self.config.micro:
            value = micros.get(name, jnp.full(times.shape, default))
            value = value.astype(jnp.promote_types(self.dtype, jnp.float32))
            # `scale` is px of the photo's shorter side; a photo that is not enlarged counts as this net's own size.
            # Others are about 0..1, and 1000 gives them the range of the times, which the sinusoid is made for.
            value = jnp.minimum(value / default, 1) * default if name == "scale" else 1000 * value
            emb = emb + self.micro[name](value)
        return emb


# -------------------------------------------------------------------------------------- text path
class Condition(struct.PyTreeNode):
    """Everything the net needs besides image and time, computed once per sample and used at every step.

    Fields are Any, since jax.tree.map may put other values than arrays there.
    """

    pooled: Any  # Embedding of [H_c ; H_z], added to that of the time
    keys_values: Any  # tuple of KeysValues of [H_c ; H_z], in the order in which the net meets its attention blocks
    mask: Any  # TextMask; None = every token may be attended to
    micros: Any  # name -> PerSample, the micro conditions that do not take their default


class TextBlock(nn.Module):
    """Self-attention over the text and an MLP, pre-norm, both starting at zero."""

    channels: int
    dtype: DTypeLike

    def setup(self) -> None:
        """ml-mdm's lm_head block."""
        c = self.channels
        self.attn_norm = layer_norm(self.dtype)
        self.attn_qkv = linear(c, 3 * c, self.dtype, axes=("embed", "heads"))
        self.attn_proj_out = linear(c, c, self.dtype, zero=True, axes=("heads", "embed"))
        self.mlp_norm = layer_norm(self.dtype)
        self.mlp_in = linear(c, 4 * c, self.dtype)
        self.mlp_out = linear(4 * c, c, self.dtype, zero=True, axes=("mlp", "embed"))

    def __call__(self, x: Text, mask: TextMask | None) -> Text:
        """No positional information: T5's states already carry it."""
        q, k, v = (split_heads(part, NUM_HEADS) for part in jnp.split(self.attn_qkv(self.attn_norm(x)), 3, -1))
        x = x + self.attn_proj_out(merge_heads(scaled_attend(q, k, v, mask)))
        return x + self.mlp_out(gelu(self.mlp_in(self.mlp_norm(x))))


def scaled_attend(
    q: PerHead, k: Float[Array, "b n l d_n"], v: Float[Array, "b n l d_n"], mask: TextMask | None
) -> PerHead:
    """Attention with queries and keys both multiplied by d^(-1/4), for half precision's range; mask over keys."""
    return attend(*_scaled(q, k), v, mask=None if mask is None else mask[:, None, None, :])


def _scaled(q: Array, k: Array) -> tuple[Array, Array]:
    scale = q.shape[-1] ** -0.25
    return q * scale, k * scale


class TextPath(nn.Module):
    """Projection, text layers and the pooled vector."""

    config: UNetConfig
    text_channels: int
    dtype: DTypeLike

    def setup(self) -> None:
        """lm_proj, lm_head and cond_emb."""
        c = self.config
        width = c.text_proj_channels or self.text_channels
        if c.text_proj_channels:
            self.lm_proj = linear(self.text_channels, width, self.dtype)
        self.lm_head = [TextBlock(width, self.dtype) for _ in range(c.num_text_layers)]
        self.cond_emb = linear(width, c.emb_channels, self.dtype, bias=False)

    def __call__(self, text: Text, mask: TextMask | None) -> ReadText:
        """Reads text states with the mask of valid tokens; None = all are valid."""
        c = self.config
        x = text.astype(self.dtype)
        x = self.lm_proj(x) if c.text_proj_channels else x
        attention_mask = mask if c.masked_cross_attention else None
        for block in self.lm_head:
            x = block(x, attention_mask)
        # Released nets do not hide padding from attention, but without text layers they pool over valid tokens only.
        plain = mask is None or (not c.masked_cross_attention and c.num_text_layers > 0)
        return x, self.cond_emb(mean_over_tokens(x, None if plain else mask)), attention_mask


def mean_over_tokens(x: Text, mask: TextMask | None) -> Float[Array, "b d"]:
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
    dtype: DTypeLike

    def setup(self) -> None:
        """conv3 is the 1x1 shortcut, only if the width changes."""
        a, b, groups = self.in_channels, self.channels, self.config.num_groups
        self.norm1 = GroupNorm(groups, self.dtype)
        self.conv1 = conv(a, b, self.dtype)
        self.time_layer = linear(self.config.emb_channels, 2 * b, self.dtype)
        self.norm2 = GroupNorm(groups, self.dtype)
        self.conv2 = conv(b, b, self.dtype, zero=True)
        if a != b:
            self.conv3 = conv(a, b, self.dtype, size=1)

    def __call__(self, x: Float[Array, "b h w a"], temb: Embedding) -> Features:
        """Temb is the raw embedding; silu is applied here."""
        h = self.conv1(nn.silu(self.norm1(x)))
        scale, shift = jnp.split(self.time_layer(nn.silu(temb)), 2, -1)
        h = self.conv2(nn.silu(self.norm2(h, scale, shift)))
        return _placed(h + (x if self.in_channels == self.channels else self.conv3(x)))


class AttentionBlock(nn.Module):
    """Self-attention over pixels plus cross-attention over text with the same queries: two softmaxes, added."""

    channels: int
    text_width: int
    config: UNetConfig
    dtype: DTypeLike

    def setup(self) -> None:
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

    def keys_values(self, text: Text) -> KeysValues:
        """Keys and values of the text; the image never changes them."""
        k, v = jnp.split(self.kv_cond(self.norm_cond(text)), 2, -1)
        return split_heads(k, NUM_HEADS), split_heads(v, NUM_HEADS)

    def __call__(self, x: Features, text_kv: KeysValues, mask: TextMask | None) -> Features:
        """`text_kv` comes from `keys_values`; the mask is over the text."""
        b, h, w, c = x.shape
        tokens = self.qkv(self.norm(x)).reshape(b, h * w, 3 * c)
        q, k, v = (split_heads(part, NUM_HEADS) for part in jnp.split(tokens, 3, -1))
        between_pixels = fused_attend if self.config.attention == "fused" else attend
        a = between_pixels(*_scaled(q, k), v) + scaled_attend(q, *text_kv, mask)
        x = x + self.proj_out(merge_heads(a).reshape(b, h, w, c))
        if self.config.attention_ffn:
            x = x + self.ffn_out(gelu(self.ffn_in(self.ffn_norm(x))))
        return _placed(x)


def _placed(x: Features) -> Features:
    return constrain(x, "batch", None, None, "act_conv")


class Level(nn.Module):
    """The blocks of one resolution, on the way down or up; `in_channels` gives each residual block's input."""

    in_channels: tuple[int, ...]
    channels: int
    num_attn: int  # attention blocks after each residual block
    text_width: int
    config: UNetConfig
    dtype: DTypeLike
    resample_stride: int = 0  # 2 = strided conv down, 1 = conv after nearest x2 up, 0 = none

    def setup(self) -> None:
        """resnets_j, attn_m with m = j * num_attn + index, resample."""
        resnet, attention = (rematerialize(block, self.config.remat) for block in (ResNet, AttentionBlock))
        self.resnets = [resnet(a, self.channels, self.config, self.dtype) for a in self.in_channels]
        self.attn = [
            attention(self.channels, self.text_width, self.config, self.dtype)
            for _ in range(self.num_attn * len(self.in_channels))
        ]
        if self.resample_stride:
            self.resample = conv(self.channels, self.channels, self.dtype, stride=self.resample_stride)

    def block(
        self, j: int, x: Float[Array, "b h w a"], temb: Embedding, keys_values: Blocks, mask: TextMask | None
    ) -> Features:
        """Residual block j and its attention blocks."""
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
    dtype: DTypeLike = jnp.float32
    has_text_path: bool = True
    has_mid: bool = True

    def setup(self) -> None:
        """Widths follow the skip stack: conv_in, every block on the way down, every strided conv."""
        c, dtype = self.config, self.dtype

        def level(widths: tuple[int, ...], channels: int, num_attn: int, resample_stride: int = 0) -> Level:
            return Level(widths, channels, num_attn, self.text_width, c, dtype, resample_stride)

        if self.has_text_path:
            self.text_path = TextPath(c, self.text_channels, dtype)
        self.temb = TimeEmbedding(c, dtype)
        self.conv_in = conv(3 * c.patch**2, c.channels[0], dtype)
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
        self.conv_out = conv(c.channels[0], 3 * c.patch**2, dtype, zero=True)

    # ---- text, once for each sample
    def read_text(self, text: Text, mask: TextMask | None) -> ReadText:
        """As TextPath."""
        return self.text_path(text, mask)

    def keys_values(self, text: Text, middle: tuple[KeysValues, ...] = ()) -> tuple[KeysValues, ...]:
        """Cross-attention keys and values of every block in running order; `middle` is an inner net's."""
        middle = middle or (keys_values_of(self.mid_blocks, text) if self.has_mid else ())
        return keys_values_of(self.down_blocks, text) + middle + keys_values_of(self.up_blocks, text)

    def condition(self, text: Text, mask: TextMask | None, micros: Mapping[str, PerSample] | None = None) -> Condition:
        """Turns text states into what every step needs: the image never updates the text. See `Condition`."""
        text, pooled, mask = self.read_text(text, mask)
        return Condition(pooled=pooled, keys_values=self.keys_values(text), mask=mask, micros=dict(micros or {}))

    # ---- image, once for each step
    def stem(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """conv_in's features of the image's patches."""
        return self.conv_in(to_patches(image.astype(self.dtype), self.config.patch))

    def down(
        self, x: Features, temb: Embedding, keys_values: Blocks, mask: TextMask | None
    ) -> tuple[Float[Array, "b h2 w2 c2"], list[Array]]:
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

    def up(
        self, x: Features, skips: list[Array], temb: Embedding, keys_values: Blocks, mask: TextMask | None
    ) -> Float[Array, "b h2 w2 c2"]:
        """Back up; returns the last features, before norm_out."""
        for level in self.up_blocks:
            for j in range(len(level.in_channels)):
                x = jnp.concatenate([x, skips.pop()], -1)
                x = level.block(j, x, temb, keys_values, mask)
            if level.resample_stride:
                x = level.resample(nearest_x2(x))
        return x

    def head(self, x: Features) -> Float[Array, "b h2 w2 3"]:
        """The prediction, in float32 or wider, whatever the compute dtype is."""
        out = from_patches(self.conv_out(nn.silu(self.norm_out(x))), self.config.patch)
        return out.astype(jnp.promote_types(out.dtype, jnp.float32))

    def __call__(self, images: Pyramid, times: Times, condition: Condition) -> Pyramid:
        """The prediction for one noisy image (B, H, W, 3) at network times: the step index minus 1, 0..N-1."""
        return self.run(images, times, condition, None, iter(condition.keys_values))[0]

    def run(
        self, images: Pyramid, times: Times, condition: Condition, features: Features | None, keys_values: Blocks
    ) -> tuple[Pyramid, Float[Array, "b h w c2"]]:
        """`__call__` inside a nest: adds the outer net's `features` after conv_in, and returns the last ones too."""
        temb = self.temb(times, condition.pooled, condition.micros)
        x = self.stem(images[0])
        x = x if features is None else x + features
        x, skips = self.down(x, temb, keys_values, condition.mask)
        for level in self.mid_blocks if self.has_mid else ():
            x = level.block(0, x, temb, keys_values, condition.mask)
        x = self.up(x, skips, temb, keys_values, condition.mask)
        return [self.head(x)], x


def keys_values_of(levels: Sequence[Level], text: Text) -> tuple[KeysValues, ...]:
    """Cross-attention keys and values of every attention block of some levels."""
    return tuple(block.keys_values(text) for level in levels for block in level.attn)


def to_patches(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 c2"]:
    """Space to depth: squares of patch x patch positions become channels, (row, column, channel) from slow to fast."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // patch, w // patch, patch * patch * c)


def from_patches(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 c2"]:
    """Undoes `to_patches`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * patch, w * patch, c // patch**2)


def nearest_x2(x: Features) -> Float[Array, "b 2*h 2*w c"]:
    """Each pixel twice in both directions."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
