"""Attention in half precision: the gradient is that of float32, rounded, and no product has a float32 factor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.models import cpu
from kaleido_jax.models.attention import attend

RNG = np.random.default_rng(0)
Q, K, V = (jnp.asarray(RNG.normal(size=(2, 3, n, 8)), jnp.float32) for n in (5, 7, 7))
MASK = jnp.asarray(RNG.random((2, 1, 1, 7)) > 0.3)
BIAS = jnp.asarray(RNG.normal(size=(1, 3, 5, 7)), jnp.float32)
WEIGHTS = jnp.asarray(RNG.normal(size=Q.shape), jnp.float32)


def loss(q, k, v, bias):
    return (attend(q, k, v, bias, MASK).astype(jnp.float32) * WEIGHTS).sum()


gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_has_the_gradient_of_float32(dtype):
    rounded = [x.astype(dtype) for x in (Q, K, V)]
    exact = gradient(*(x.astype(jnp.float32) for x in rounded), BIAS)
    for found, wanted in zip(gradient(*rounded, BIAS), exact, strict=True):
        wanted = np.asarray(wanted)
        error = np.abs(np.asarray(found, np.float32) - wanted).max()
        assert error < 16 * float(jnp.finfo(dtype).eps) * np.abs(wanted).max()


def test_no_product_of_half_precision_has_a_float32_factor():
    def products(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield {str(variable.aval.dtype) for variable in equation.invars}
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from products(inner)

    half = [x.astype(jnp.bfloat16) for x in (Q, K, V)]
    with cpu.plain():
        found = list(products(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*half, BIAS).jaxpr))
    assert len(found) >= 6 and all(dtypes == {"bfloat16"} for dtypes in found)
