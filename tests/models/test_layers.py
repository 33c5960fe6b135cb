"""Forms for CPUs against the plain formulas and their automatic gradients, and layers against Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.models import attention, cpu, layers
from kaleido_jax.models.layers import NORM_EPS, conv, linear

RNG = np.random.default_rng(0)


def _same_gradients(ours, plain, *args):
    with jax.enable_x64(True):
        args = [jnp.asarray(RNG.normal(size=shape)) for shape in args]
        (y, back), (y_plain, back_plain) = jax.vjp(ours, *args), jax.vjp(plain, *args)
        np.testing.assert_allclose(y, y_plain, atol=1e-12)
        dy = jnp.asarray(RNG.normal(size=y.shape))
        for grad, grad_plain in zip(back(dy), back_plain(dy), strict=True):
            np.testing.assert_allclose(grad, grad_plain, atol=1e-12)


@pytest.mark.parametrize("features", [3, 8], ids=["x is wider", "dy is wider"])
@pytest.mark.parametrize("rows", [(4,), (2, 3, 4)])
def test_projection_and_bias_have_the_plain_gradients(rows, features):
    _same_gradients(cpu.project, layers.project.__wrapped__, (*rows, 5), (5, features))
    _same_gradients(cpu.add_bias, layers.add_bias.__wrapped__, (*rows, 5), (5,))


@pytest.mark.parametrize("keys", [1, 8, 9, 120])
def test_reductions_over_keys_have_the_plain_gradients(keys):
    _same_gradients(cpu.max_last, attention.max_last.__wrapped__, (3, 2, keys))
    _same_gradients(cpu.sum_last, attention.sum_last.__wrapped__, (3, 2, keys))


def test_the_switch_chooses_the_form(monkeypatch):
    formula = cpu.switch(lambda: "for a CPU")(lambda: "plain")
    assert formula() == "for a CPU"
    monkeypatch.setattr(cpu, "enabled", lambda: False)
    assert formula() == "plain"


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 5), (2, 3, 4, 5)])
def test_sum_positions_keeps_the_first_and_last_axis(shape):
    x = RNG.normal(size=shape).astype(np.float32)
    expected = x.sum(tuple(range(1, x.ndim - 1)))
    np.testing.assert_allclose(cpu.sum_positions(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("add_bias", [cpu.add_bias, layers.add_bias.__wrapped__], ids=["cpu", "plain"])
def test_sums_of_bfloat16_are_float32(add_bias):
    ones = jnp.ones((1, 1000, 2), jnp.bfloat16)  # in bfloat16 this sum would stop at 256
    assert cpu.sum_positions(ones).dtype == jnp.float32
    np.testing.assert_array_equal(cpu.sum_positions(ones), 1000)
    grad = jax.grad(lambda bias: add_bias(ones, bias).astype(jnp.float32).sum())(jnp.zeros(2, jnp.bfloat16))
    np.testing.assert_array_equal(grad, jnp.bfloat16(1000))


def _flax_conv(size, stride, **inits):
    pad = size // 2
    return nn.Conv(7, (size, size), (stride, stride), padding=((pad, pad), (pad, pad)), **inits)


@pytest.mark.parametrize(
    ("ours", "flax"),
    [
        (lambda: linear(5, 7, jnp.float32), lambda **inits: nn.Dense(7, **inits)),
        (lambda: linear(5, 7, jnp.float32, bias=False), lambda **inits: nn.Dense(7, use_bias=False, **inits)),
        (lambda: conv(5, 7, jnp.float32), lambda **inits: _flax_conv(3, 1, **inits)),
        (lambda: conv(5, 7, jnp.float32, stride=2), lambda **inits: _flax_conv(3, 2, **inits)),
        (lambda: conv(5, 7, jnp.float32, size=1), lambda **inits: _flax_conv(1, 1, **inits)),
    ],
    ids=["dense", "dense without bias", "conv", "strided conv", "1x1 conv"],
)
def test_layers_start_and_compute_as_flax_ones(ours, flax):
    x, net = jnp.asarray(RNG.normal(size=(2, 8, 8, 5)), jnp.float32), ours()
    theirs = flax(kernel_init=net.kernel_init, **({"bias_init": net.bias_init} if net.bias_init else {}))
    params, params_flax = (nn.meta.unbox(n.init(jax.random.key(0), x)) for n in (net, theirs))
    jax.tree.map(np.testing.assert_array_equal, params, params_flax)
    np.testing.assert_allclose(net.apply(params, x), theirs.apply(params, x), atol=1e-6)


@pytest.mark.parametrize("form", [cpu.group_norm, layers.group_norm.__wrapped__], ids=["cpu", "plain"])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_norm_and_its_gradient_are_those_of_the_textbook(groups, form):
    def textbook(x, a, b):
        grouped = (x + 3).reshape(3, 5, 4, groups, 8 // groups)
        mean, var = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
        normed = ((grouped - mean) / jnp.sqrt(var + NORM_EPS)).reshape(x.shape)
        return normed * a[:, None, None] + b[:, None, None]

    _same_gradients(lambda x, a, b: form(x + 3, a, b, groups, NORM_EPS), textbook, (3, 5, 4, 8), (3, 8), (3, 8))
