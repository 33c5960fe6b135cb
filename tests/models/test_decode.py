"""Sampling without a network: settings a row, locked prefixes, early stop, independence of the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.models import decode
from kaleido_jax.models.t5 import EOS
from tests.models.test_t5_golden import WARPED, warper_cases
from tests.t5_files import tensors

VOCABULARY, LENGTH = 24, 12
TABLE = jax.random.normal(jax.random.key(0), (VOCABULARY, VOCABULARY)) * 2


class AllowAll:
    def start(self, rows):
        return jnp.zeros(rows, jnp.int32)

    def restrict(self, place, logits, positions_left):
        return jnp.where(positions_left > 0, logits, -jnp.inf), place

    def advance(self, place, reached, token):
        return place + 1


def keys_of(*indices):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.asarray(indices))


@functools.partial(jax.jit, static_argnames=("static", "constrained"))
def draw(keys, prefix=None, rows=None, *, static=(), constrained=False):
    step = lambda token, index, cache: (None, TABLE[token], cache)  # noqa: E731
    settings = dict(static) | (rows or {})
    constraint = AllowAll() if constrained else None
    return decode.sample_tokens(step, (), keys, max_len=LENGTH, prefix=prefix, constraint=constraint, **settings)


@pytest.mark.parametrize("logits", WARPED)
def test_settings_of_each_row_keep_the_golden_tokens(logits):
    given = tensors("golden/warpers")
    cases = [case for case in warper_cases() if case["logits"] == logits]
    each = len(given[logits])
    repeated = jnp.tile(jnp.asarray(given[logits]), (len(cases), 1))
    settings = (jnp.repeat(jnp.asarray([c[k] for c in cases]), each) for k in ("temperature", "top_k", "top_p"))
    ours = np.asarray(jax.nn.softmax(decode.warp_logits(repeated, *settings), -1))
    reference = np.concatenate([given[f"{case['key']}.probs"] for case in cases])
    if logits.startswith("ties"):  # which one of a tied group is kept is not defined
        ours, reference = np.sort(ours), np.sort(reference)
    np.testing.assert_array_equal(ours > 0, reference > 0)
    np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-7)


def test_settings_of_a_row_draw_what_they_draw_for_all():
    singles = [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8), (1.0, 7, 0.9)]
    names = ("temperature", "top_k", "top_p")
    keys = keys_of(*range(len(singles)))
    rows = {name: jnp.asarray(column) for name, column in zip(names, zip(*singles, strict=True), strict=True)}
    mixed = np.asarray(draw(keys, None, rows))
    for i, single in enumerate(singles):
        static = tuple(zip(names, single, strict=True))
        np.testing.assert_array_equal(mixed[i], draw(keys, static=static)[i])


def test_a_constraint_that_allows_everything_changes_nothing():
    keys = keys_of(*range(16))
    np.testing.assert_array_equal(draw(keys), draw(keys, constrained=True))


def test_prefixes_of_different_length_are_kept_and_the_rest_depends_on_the_row_alone():
    prefix = np.zeros((3, LENGTH), np.int32)
    prefix[0, :2], prefix[2, :5] = (7, 8), (9, 3, 9, 3, 5)
    rows = np.asarray(draw(keys_of(4, 5, 6), prefix))
    for row, ids in zip(rows, prefix, strict=True):
        np.testing.assert_array_equal(row[ids != 0], ids[ids != 0])
    np.testing.assert_array_equal(rows[1], draw(keys_of(5))[0])
    np.testing.assert_array_equal(rows[::-1], draw(keys_of(6, 5, 4), prefix[::-1]))
    np.testing.assert_array_equal(rows[2:], draw(keys_of(6), prefix[2:]))


def test_the_loop_stops_when_every_row_has_ended():
    seen = []

    def step(token, index, cache):
        jax.debug.callback(lambda i: seen.append(int(i)), index)
        return None, TABLE[token], cache

    prefix = jnp.asarray([[5, EOS, 0], [5, 6, EOS]], jnp.int32)
    tokens = decode.sample_tokens(step, (), keys_of(0, 1), max_len=LENGTH, prefix=prefix)
    np.testing.assert_array_equal(tokens, np.pad(prefix, ((0, 0), (0, LENGTH - 3))))
    jax.effects_barrier()
    assert len(seen) == 3
