import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.config.schema import UNet
from kaleido_jax.models.remat import POLICIES
from kaleido_jax.models.unet import Level

RNG = np.random.default_rng(0)
X, TEMB, TEXT = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((2, 4, 4, 32), (2, 16), (2, 3, 8)))


@functools.cache
def gradients(remat):
    config = UNet(emb_channels=16, num_groups=4, attention_ffn=False, remat=remat)
    level = Level((32,), 32, 1, 8, config, jnp.float32)

    def run(level, x):
        keys_values = iter([level.attn[0].keys_values(TEXT)])
        return level.block(0, x, TEMB, keys_values, None)

    shapes = nn.meta.unbox(jax.eval_shape(lambda: level.init(jax.random.key(0), X, method=run)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.1, jnp.float32), shapes)
    loss = lambda params: (level.apply(params, X, method=run) ** 2).sum()  # noqa: E731
    traced = jax.jit(jax.grad(loss)).trace(params)
    return str(traced.jaxpr), traced.lower().compile()(params)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_recomputed_unet_blocks_give_the_same_gradients(policy):
    (jaxpr, recomputed), (plain_jaxpr, plain) = gradients(policy), gradients("none")
    assert "remat" in jaxpr and "remat" not in plain_jaxpr
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), recomputed, plain)
