"""Micro conditions: values that a caller gives change predictions, and absent ones are the released defaults."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.config.schema import nested
from kaleido_jax.models.nested_unet import build_denoiser
from tests.tiny import small_nest

RNG = np.random.default_rng(0)
NEST = dataclasses.replace(small_nest(), micro=(("scale", 8.0),))
NEST = dataclasses.replace(NEST, inner=dataclasses.replace(NEST.inner, micro=(("scale", 4.0), ("quality", 0.0))))
TEXT, TIMES = jnp.asarray(RNG.normal(size=(3, 5, 16)), jnp.float32), jnp.asarray([3, 500, 999])
IMAGES = [jnp.asarray(RNG.normal(size=(3, size, size, 3)), jnp.float32) for size in (8, 4)]


def run(net, images, micros):
    return net(images, TIMES, net.condition(TEXT, None, micros))


@pytest.fixture(scope="module")
def predict():
    net, rng = build_denoiser(NEST, 16), np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: nn.meta.unbox(net.init(jax.random.key(0), IMAGES, {}, method=run)))
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.2, jnp.float32), shapes)
    apply = jax.jit(lambda micros: net.apply(params, IMAGES, micros, method=run))
    return lambda **micros: apply({name: jnp.full(3, value) for name, value in micros.items()})


@pytest.mark.slow
def test_values_of_a_sample_change_its_prediction_alone(predict):
    default = predict()
    for value in ({"scale": jnp.asarray([2.0, 8.0, 8.0])}, {"quality": jnp.asarray([0.5, 0.0, 0.0])}):
        for out, same in zip(predict(**value), default, strict=True):
            assert np.abs(out[0] - same[0]).max() > 1e-3
            np.testing.assert_allclose(out[1:], same[1:], atol=1e-5)


def test_a_photo_of_the_outer_nets_size_or_more_is_the_default_of_every_net(predict):
    for out, default in zip(predict(scale=100.0, quality=0.0), predict(), strict=True):
        np.testing.assert_allclose(out, default, atol=1e-6)


def test_three_nets_take_fewer_rows_of_each_higher_resolution():
    outer = dataclasses.replace(NEST, image_size=16, channels=(8, 8), inner=NEST)
    assert len(nested(outer)) == 3
    net = build_denoiser(outer, 16)
    images = [jax.ShapeDtypeStruct((rows, size, size, 3), jnp.float32) for rows, size in ((1, 16), (2, 8), (3, 4))]
    out, _ = jax.eval_shape(lambda images: net.init_with_output(jax.random.key(0), images, {}, method=run), images)
    assert [prediction.shape for prediction in out] == [(1, 16, 16, 3), (2, 8, 8, 3), (3, 4, 4, 3)]
