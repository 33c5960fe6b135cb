"""NestedUNet (MDM, section 3.2): an outer UNet whose middle is another UNet or NestedUNet."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from kaleido_jax.array_types import PerSample, Pyramid, Times
from kaleido_jax.config.schema import UNet as UNetConfig
from kaleido_jax.config.schema import nested
from kaleido_jax.models.layers import conv
from kaleido_jax.models.unet import Blocks, Condition, KeysValues, ReadText, Text, TextMask, UNet


def build_denoiser(config: UNetConfig, text_channels: int, dtype: DTypeLike = jnp.float32) -> "UNet | NestedUNet":
    """A UNet, or a NestedUNet if the config has an inner net, for text states of width `text_channels`."""
    width = nested(config)[-1].text_proj_channels or text_channels
    if config.inner is None:
        return UNet(config, text_channels, width, dtype, has_mid=config.mid_blocks)
    return NestedUNet(config, text_channels, width, dtype)


class NestedUNet(nn.Module):
    """Predicts at every resolution; adapters start at zero, so at first the inner net behaves as on its own."""

    config: UNetConfig
    text_channels: int
    text_width: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """The outer net has no text path and no middle of its own; the innermost net's serve all."""
        c = self.config
        self.outer = UNet(c, self.text_channels, self.text_width, self.dtype, has_text_path=False, has_mid=False)
        self.inner = build_denoiser(c.inner, self.text_channels, self.dtype)
        self.in_adapter = conv(c.channels[-1], c.inner.channels[0], self.dtype, zero=True)
        self.out_adapter = conv(c.inner.channels[0], c.channels[-1], self.dtype, zero=True)

    # ---- text, once for each sample
    def read_text(self, text: Text, mask: TextMask | None) -> ReadText:
        """As UNet's; the innermost net reads the text for the whole nest."""
        return self.inner.read_text(text, mask)

    def keys_values(self, text: Text) -> tuple[KeysValues, ...]:
        """Of every attention block in running order: outer down, inner net, outer up."""
        return self.outer.keys_values(text, middle=self.inner.keys_values(text))

    def condition(self, text: Text, mask: TextMask | None, micros: Mapping[str, PerSample] | None = None) -> Condition:
        """As UNet's; each net of the nest reads the same micro conditions against its own defaults."""
        text, pooled, mask = self.read_text(text, mask)
        return Condition(pooled=pooled, keys_values=self.keys_values(text), mask=mask, micros=dict(micros or {}))

    # ---- image, once for each step
    def __call__(self, images: Pyramid, times: Times, condition: Condition) -> Pyramid:
        """As UNet's, with `images` and predictions from high to low resolution.

        An image may have fewer rows than the lower resolutions (mixed batches); they are the first rows of the
        batch.
        """
        return self.run(images, times, condition, None, iter(condition.keys_values))[0]

    def run(
        self,
        images: Pyramid,
        times: Times,
        condition: Condition,
        features: Float[Array, "r h w c"] | None,
        keys_values: Blocks,
    ) -> tuple[Pyramid, Float[Array, "r h w c"]]:
        """`__call__` inside a nest; see UNet.run. r = rows of this net's own image."""
        rows, inner_rows = images[0].shape[0], images[1].shape[0]
        first = jax.tree.map(lambda leaf: leaf[:rows], condition.replace(keys_values=()))
        own = (jax.tree.map(lambda leaf: leaf[:rows], block) for block in keys_values)
        temb = self.outer.temb(times[:rows], first.pooled, first.micros)
        x = images[0].astype(jnp.promote_types(self.dtype, jnp.float32))
        if self.config.normalize_input:
            x = x / jnp.std(x, axis=(1, 2, 3), ddof=1, keepdims=True)
        x = self.outer.stem(x)
        x = x if features is None else x + features
        x, skips = self.outer.down(x, temb, own, first.mask)
        handed_in = jnp.pad(self.in_adapter(x), ((0, inner_rows - rows), (0, 0), (0, 0), (0, 0)))
        predictions, inner_features = self.inner.run(images[1:], times, condition, handed_in, keys_values)
        x = x + self.out_adapter(inner_features[:rows])
        x = self.outer.up(x, skips, temb, own, first.mask)
        return [self.outer.head(x), *predictions], x
