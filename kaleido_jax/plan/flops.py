"""FLOPs of a traced program: its matrix products and convolutions, two for each multiplication of a pair."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval

Flops = Counter[str]  # FLOPs by the dtype of the wider factor, in which the product runs


def count_flops(traced: ClosedJaxpr) -> Flops:
    """FLOPs of a jaxpr by the dtype of the wider factor.

    The bodies of scans count once for each iteration, the most expensive branch of a cond once, and a product whose
    result nothing reads does not count, as XLA drops it. Padding counts as data; the zeros between the positions of a
    strided convolution's gradient do not. Elementwise work, sums and copies do not count.
    """
    jaxpr = traced.jaxpr
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return _count(live)


def _count(jaxpr: Jaxpr) -> Flops:
    total: Flops = Counter()
    for eqn in jaxpr.eqns:
        if (rule := _PRIMITIVES.get(eqn.primitive.name)) is not None:
            left, right = (factor.aval.dtype for factor in eqn.invars[:2])
            total[str(jnp.promote_types(left, right))] += rule(eqn)
            continue
        inner = [_count(body) for body in _bodies(eqn.params.values())]
        if eqn.primitive.name == "cond" and inner:
            inner = [max(inner, key=Counter.total)]
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for part in inner:
            for dtype, flops in part.items():
                total[dtype] += times * flops
    return total


def _bodies(values: Sequence[Any] | Mapping[str, Any]) -> Iterator[Jaxpr]:
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _bodies(value)


def _dot(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * eqn.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _conv(eqn: JaxprEqn) -> int:
    kernel, spec = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec
    each = kernel.size // kernel.shape[spec[0]]  # factors of one output: input channels of its group x window
    return 2 * eqn.outvars[0].aval.size * each // math.prod(eqn.params["lhs_dilation"])


_PRIMITIVES = {"dot_general": _dot, "conv_general_dilated": _conv}
