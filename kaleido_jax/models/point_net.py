"""MLP denoiser for data that are points (figure 3 of the paper), with UNet's interface."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kaleido_jax.array_types import PerSample, Pyramid, Times
from kaleido_jax.config.schema import PointNet as PointNetConfig
from kaleido_jax.models.layers import linear
from kaleido_jax.models.unet import Condition, EmbeddingMLP, Text, TextMask, mean_over_tokens


class PointNet(nn.Module):
    """Time and the pooled text enter every layer by addition."""

    config: PointNetConfig
    text_channels: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Input, residual layers, zero-initialized output."""
        c = self.config
        self.cond_emb = linear(self.text_channels, c.emb_channels, self.dtype)
        self.time = EmbeddingMLP(c.emb_channels, self.dtype)
        self.layer_in = linear(c.dim, c.width, self.dtype)
        self.layers = [linear(c.width, c.width, self.dtype) for _ in range(c.num_layers)]
        self.embs = [linear(c.emb_channels, c.width, self.dtype) for _ in range(c.num_layers)]
        self.layer_out = linear(c.width, c.dim, self.dtype, zero=True)

    def condition(self, text: Text, mask: TextMask | None, micros: Mapping[str, PerSample] | None = None) -> Condition:
        """The mean over valid tokens, which is all that a point needs of z; there are no micro conditions."""
        pooled = self.cond_emb(mean_over_tokens(text, mask).astype(self.dtype))
        return Condition(pooled=pooled, keys_values=(), mask=mask, micros={})

    def __call__(self, images: Pyramid, times: Times, condition: Condition) -> Pyramid:
        """As UNet's, with points (B, dim) in a list of one."""
        emb = nn.silu(self.time(times) + condition.pooled)
        x = self.layer_in(images[0].astype(self.dtype))
        for layer, project in zip(self.layers, self.embs, strict=True):
            x = x + layer(nn.silu(x + project(emb)))
        return [self.layer_out(nn.silu(x)).astype(jnp.float32)]
