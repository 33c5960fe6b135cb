"""NestedUNet (MDM, section 3): an outer UNet whose middle is another UNet or NestedUNet."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kaleido_jax.config.schema import UNet as UNetConfig
from kaleido_jax.config.schema import nested
from kaleido_jax.models.layers import conv
from kaleido_jax.models.unet import Condition, UNet


def build_denoiser(config: UNetConfig, text_channels: int, dtype=jnp.float32) -> nn.Module:
    """A UNet, or a NestedUNet where the config has an inner net, for text states of `text_channels`."""
    width = nested(config)[-1].text_proj_channels or text_channels
    if config.inner is None:
        return UNet(config, text_channels, width, dtype, has_mid=config.mid_blocks)
    return NestedUNet(config, text_channels, width, dtype)


class NestedUNet(nn.Module):
    """Predicts at every resolution; adapters start at zero, so the inner net first behaves as it does alone."""

    config: UNetConfig
    text_channels: int
    text_width: int
    dtype: Any = jnp.float32

    def setup(self):
        """The outer net has no text path and no middle of its own; the innermost net's serve all."""
        c = self.config
        self.outer = UNet(c, self.text_channels, self.text_width, self.dtype, has_text_path=False, has_mid=False)
        self.inner = build_denoiser(c.inner, self.text_channels, self.dtype)
        self.in_adapter = conv(c.channels[-1], c.inner.channels[0], self.dtype, zero=True)
        self.out_adapter = conv(c.inner.channels[0], c.channels[-1], self.dtype, zero=True)

    # ---- text, once a sample
    def read_text(self, text, mask):
        """The innermost net reads the text for the whole nest."""
        return self.inner.read_text(text, mask)

    def keys_values(self, text) -> tuple:
        """Of every attention block in running order: outer down, inner net, outer up."""
        return self.outer.keys_values(text, middle=self.inner.keys_values(text))

    def condition(self, text: Float[Array, "b l d"], mask: Bool[Array, "b l"] | None) -> Condition:
        """As UNet's."""
        text, pooled, mask = self.read_text(text, mask)
        return Condition(pooled=pooled, keys_values=self.keys_values(text), mask=mask)

    # ---- image, once a step
    def __call__(self, images, times, condition: Condition, micros=None):
        """As UNet's, with `images` and the result as lists from high to low resolution.

        An image may have fewer rows than the lower resolutions (mixed batches); they are the first rows of the
        batch.
        """
        return self.run(images, times, condition, micros, None, iter(condition.keys_values))[0]

    def run(self, images, times, condition, micros, features, keys_values):
        """`__call__` inside a nest; see UNet.run."""
        rows, all_rows = images[0].shape[0], times.shape[0]
        first = _first_rows(condition, rows)
        temb = self.outer.temb(times[:rows], first.pooled, {k: v[:rows] for k, v in (micros or {}).items()})
        x = images[0].astype(jnp.promote_types(self.dtype, jnp.float32))
        if self.config.normalize_input:
            x = x / jnp.std(x, axis=(1, 2, 3), ddof=1, keepdims=True)
        x = self.outer.conv_in(x.astype(self.dtype))
        x = x if features is None else x + features
        own = ((k[:rows], v[:rows]) for k, v in keys_values)
        x, skips = self.outer.down(x, temb, own, first.mask)
        handed_in = jnp.pad(self.in_adapter(x), ((0, all_rows - rows), (0, 0), (0, 0), (0, 0)))
        predictions, inner_features = self.inner.run(images[1:], times, condition, micros, handed_in, keys_values)
        x = x + self.out_adapter(inner_features[:rows])
        x = self.outer.up(x, skips, temb, own, first.mask)
        return [self.outer.head(x), *predictions], x


def _first_rows(condition: Condition, rows: int) -> Condition:
    cut = lambda x: None if x is None else x[:rows]  # noqa: E731
    return condition.replace(pooled=cut(condition.pooled), mask=cut(condition.mask))
