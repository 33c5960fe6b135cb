import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.config.schema import nested
from kaleido_jax.models.nested_unet import build_denoiser
from kaleido_jax.models.unet import from_patches, to_patches
from tests.tiny import tiny_config

RNG = np.random.default_rng(0)
NEST = tiny_config().model.denoiser
TEXT = jnp.asarray(RNG.normal(size=(3, 5, 16)), jnp.float32)
MASK = jnp.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], bool)
IMAGES = [jnp.asarray(RNG.normal(size=(3, s, s, 3)), jnp.float32) for s in (16, 8)]
TIMES = jnp.asarray([3, 500, 999])


def _run(net, images, times, text, mask):
    return net(images, times, net.condition(text, mask))


def _random_params(net, images):
    shapes = jax.eval_shape(
        lambda: nn.meta.unbox(net.init(jax.random.key(0), images, TIMES, TEXT, MASK, method=_run)["params"])
    )
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.2, jnp.float32), shapes)


@pytest.fixture(scope="module")
def nest():
    net = build_denoiser(NEST, 16)
    params = _random_params(net, IMAGES)
    apply = jax.jit(
        lambda p, images, times, text, mask: net.apply({"params": p}, images, times, text, mask, method=_run)
    )
    return params, apply


def test_patches_are_squares_of_pixels_and_come_apart_again():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    patches = to_patches(x, 2)
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(patches[1, 1, 2], x[1, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(from_patches(patches, 2), x)


def test_a_net_of_patches_predicts_every_pixel_of_a_nest():
    """An outer net of one level whose patches bring it to the inner net's size: 16 px around 8 px."""
    outer = dataclasses.replace(NEST, patch=2, channels=(16,), num_res_blocks=(1,), num_attn_layers=(0,))
    net = build_denoiser(outer, 16)
    params = _random_params(net, IMAGES)
    assert params["outer"]["conv_in"]["kernel"].shape == (3, 3, 12, 16)
    apply = jax.jit(lambda images: net.apply({"params": params}, images, TIMES, TEXT, MASK, method=_run))
    large, small = apply(IMAGES)
    assert large.shape == IMAGES[0].shape and small.shape == IMAGES[1].shape
    changed = apply([IMAGES[0].at[0, 5, 5].add(1.0), IMAGES[1]])[0] - large
    assert np.abs(changed[0]).min() > 0 and not changed[1:].any()


@pytest.mark.slow
def test_with_zero_adapters_the_inner_net_behaves_as_it_does_alone(nest):
    params, apply = nest
    adapters = {k: jax.tree.map(jnp.zeros_like, params[k]) for k in ("in_adapter", "out_adapter")}
    inside = apply(params | adapters, IMAGES, TIMES, TEXT, MASK)[1]
    alone = build_denoiser(nested(NEST)[-1], 16)
    outside = alone.apply({"params": params["inner"]}, IMAGES[1:], TIMES, TEXT, MASK, method=_run)[0]
    np.testing.assert_allclose(inside, outside, atol=1e-5)


def test_padding_of_the_text_does_not_matter(nest):
    params, apply = nest
    out = apply(params, IMAGES, TIMES, TEXT, MASK)
    garbage = jnp.where(MASK[..., None], TEXT, 7.0)
    for a, b in zip(out, apply(params, IMAGES, TIMES, garbage, MASK), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_row_without_any_text_is_finite(nest):
    params, apply = nest
    for out in apply(params, IMAGES, TIMES, TEXT, MASK & False):
        assert np.isfinite(out).all()


def test_fewer_high_resolution_rows_belong_to_the_first_of_the_batch(nest):
    params, apply = nest
    full = apply(params, IMAGES, TIMES, TEXT, MASK)
    mixed = apply(params, [IMAGES[0][:2], IMAGES[1]], TIMES, TEXT, MASK)
    assert mixed[0].shape[0] == 2 and mixed[1].shape[0] == 3
    np.testing.assert_allclose(mixed[0], full[0][:2], atol=1e-5)
    np.testing.assert_allclose(mixed[1][:2], full[1][:2], atol=1e-5)


@pytest.mark.slow
def test_a_fresh_network_predicts_exactly_zero():
    smallest = dataclasses.replace(nested(NEST)[-1], channels=(32,), num_res_blocks=(1,), num_attn_layers=(1,))
    net = build_denoiser(smallest, 16)
    out, _ = net.init_with_output(jax.random.key(0), IMAGES[1:], TIMES, TEXT, MASK, method=_run)
    np.testing.assert_array_equal(out[0], 0 * out[0])
