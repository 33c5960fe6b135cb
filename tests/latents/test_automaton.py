import dataclasses
import functools
import itertools
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kaleido_jax.errors import UserError
from kaleido_jax.latents import automaton, grammar
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.segments import names
from kaleido_jax.latents.tokenizer import SHIPPED, Tokenizer
from kaleido_jax.latents.types import Latents, select
from kaleido_jax.models import decode
from tests.latents.test_grammar import TOKENIZERS, writable_latents

SEGMENTS = names()
VOKENS = 5
PAPER = ("text", "bbox", "voken")
EVERY = [c for n in range(1, 5) for c in itertools.combinations(SEGMENTS, n)]
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@functools.cache
def codec(name, segments=SEGMENTS):
    return Codec(tokenizer=TOKENIZERS[name], segments=segments, vokens_per_image=VOKENS)


def constraint(name, segments=SEGMENTS):
    return codec(name, segments).constraint


def parts(name, *strings):
    """Ids of strings that are joined by a piece boundary; the first has sentencepiece's leading space."""
    return [i for s in strings for i in TOKENIZERS[name].encode(s)]


# ---------------------------------------------------------------------------- what the grammar writes
@pytest.mark.parametrize("name", ["emoji", pytest.param("t5", marks=pytest.mark.slow)])
def test_what_the_grammar_writes_is_accepted(name):
    tokenizer, rng = TOKENIZERS[name], np.random.default_rng(0)
    for i, z in enumerate(writable_latents(tokenizer, rng, 20 * len(EVERY))):
        segments = EVERY[i % len(EVERY)]
        z = z.replace(voken=tuple(rng.integers(0, 64, VOKENS).tolist()))
        machine = constraint(name, segments)
        state, wrong = machine.follow(codec(name, segments).encode(z))
        assert wrong is None and state.node[0] == automaton.DONE and machine.tokens_to_end(state) == 0


@pytest.mark.parametrize(
    ("segments", "strings", "accepted"),
    [
        (("text",), ("a small boot",), True),
        (("text",), ("a | boot",), False),
        (("bbox",), ("boot (1, 33, 995, 995)",), True),
        (("bbox",), ("boot (1, 33, 1, 995)",), False),
        (("bbox",), ("boot (1, 33, 2, 33)",), False),
        (("bbox",), ("boot (1, 33, 2, 1001)",), False),
        (("bbox",), ("boot (1000, 33, 2, 50)",), False),
        (("bbox",), ("boot (01, 33, 2, 50)",), False),
        (("bbox",), ("boot (1, 33, 2)",), False),
        (("bbox",), ("boot (1, 33, 2, 50, 60)",), False),
        (("bbox",), ("boot (1,33, 2, 50)",), False),
        (("bbox",), ("(1, 33, 2, 50)",), False),
        (("bbox",), ("boot (1, 33, 2, 50) lap",), False),
        (("bbox",), ("boot 5, a (1, 33, 2, 50) lap (0, 0, 1000, 1000)",), True),
        (("blob",), ("boot (500, 514, 410, 90, 12)",), True),
        (("blob",), ("boot (500, 514, 410, 411, 12)",), False),
        (("blob",), ("boot (500, 514, 410, 0, 12)",), False),
        (("blob",), ("boot (500, 514, 0, 0, 12)",), False),
        (("blob",), ("boot (500, 514, 10, 9, 180)",), False),
        (("blob",), ("boot (1000, 1000, 1000, 1000, 179)",), True),
    ],
)
@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_only_what_the_grammar_writes_is_accepted(name, segments, strings, accepted):
    ids = [*parts(name, *strings), TOKENIZERS[name].eos_id]
    state, wrong = constraint(name, segments).follow(ids)
    assert (wrong is None and state.node[0] == automaton.DONE) == accepted


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
@pytest.mark.parametrize("count", [VOKENS - 1, VOKENS, VOKENS + 1])
def test_vokens_are_counted(name, count):
    free = Codec(tokenizer=TOKENIZERS[name], segments=("voken",))
    ids = free.encode(Latents(voken=tuple(range(count))))
    assert (constraint(name, ("voken",)).follow(ids)[1] is None) == (count == VOKENS)


def test_a_vocabulary_that_cannot_write_numbers_is_refused():
    class Poor(Tokenizer):
        def piece(self, token):
            return super().piece(token).replace("7", "x")

    poor = Poor(resources.files("kaleido_jax").joinpath(SHIPPED["emoji"][0]), extra_ids=0, codebook_size=64)
    with pytest.raises(UserError, match="without 7"):
        dataclasses.replace(codec("emoji", ("bbox",)), tokenizer=poor).constraint  # noqa: B018


# ------------------------------------------------------------------------------------- random sampling
def numeric_bias(name, strength):
    """Makes separators, parentheses and digits likely, so that random logits visit every corner of the grammar."""
    tokenizer, machine = TOKENIZERS[name], constraint(name)
    bias = np.where(machine.row_of < len(machine.classes) - 1, strength, 0.0)
    bias[[*tokenizer.encode("|"), tokenizer.eos_id]] = strength
    bias[tokenizer.base_vocab_size :] = strength
    return bias.astype(np.float32)


@functools.partial(jax.jit, static_argnames=("max_len", "rows"))
def draw(machine, bias, seed, *, max_len, rows, prefix=None):
    def step(token, index, cache):
        key = jax.random.fold_in(jax.random.key(7 + seed), index)
        return None, bias[None] + 3 * jax.random.normal(key, (rows, bias.shape[0])), cache

    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(rows))
    return decode.sample_tokens(step, (), keys, max_len=max_len, constraint=machine, prefix=prefix)


def check_valid(rows, segments, name):
    tokenizer = TOKENIZERS[name]
    for row in np.asarray(rows):
        ended = np.flatnonzero(row == tokenizer.eos_id)
        assert len(ended) == 1 and not row[ended[0] + 1 :].any()
        z = codec(name, segments).decode(row)
        # More than parsing: it is letter by letter what the grammar would write.
        if "voken" not in segments and "" not in (z.bbox, z.blob) and () not in (z.bbox, z.blob):
            assert tokenizer.decode(row[: ended[0]].tolist()) == grammar.serialize(z, segments)


@pytest.mark.parametrize("segments", [("text",), ("voken",), ("bbox", "blob"), PAPER, SEGMENTS], ids="-".join)
def test_random_logits_always_parse(segments):
    machine = constraint("emoji", segments)
    for seed, strength in enumerate((0.0, 3.0, 6.0)):
        rows = draw(machine, numeric_bias("emoji", strength), seed, max_len=48, rows=32)
        check_valid(rows, segments, "emoji")


def test_random_logits_always_parse_in_the_vocabulary_of_t5():
    for seed, strength in enumerate((0.0, 9.0)):
        rows = draw(constraint("t5"), numeric_bias("t5", strength), seed, max_len=32, rows=4)
        check_valid(rows, SEGMENTS, "t5")


def test_boxes_are_reached_and_the_shortest_budget_suffices():
    segments = ("bbox", "voken")
    machine = constraint("emoji", segments)
    # Of a thousand pieces that are numbers, a stronger bias would leave no room for "(" behind a phrase.
    rows = draw(machine, numeric_bias("emoji", 4.0), 3, max_len=48, rows=32)
    boxes = [codec("emoji", segments).decode(row).bbox for row in np.asarray(rows)]
    assert np.mean([len(found) > 0 for found in boxes]) > 0.5
    shortest = int(machine.tokens_to_end(machine.start(1))[0])
    assert shortest == 2 * VOKENS + 1
    check_valid(draw(machine, numeric_bias("emoji", 6.0), 4, max_len=shortest, rows=8), segments, "emoji")


@QUICK
@given(st.data(), st.sampled_from(sorted(TOKENIZERS)))
def test_a_way_to_the_end_is_left_from_everywhere(data, name):
    """Random walks: the bound sinks by one along some token, so no row can be stuck before eos."""
    machine = constraint(name, ("bbox", "blob", "voken"))
    state, rng = machine.start(1), np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for _ in range(60):
        left = int(machine.tokens_to_end(state)[0])
        if left == 0:
            return
        in_time, reached = machine.allowed(state, left)
        assert in_time.any()
        free, _ = machine.allowed(state, left + int(rng.integers(0, 30)))
        numbers = free[0] & (machine.row_of < len(machine.classes) - 1)
        among = np.flatnonzero(numbers if numbers.any() and rng.random() < 0.8 else free[0])
        state = machine.advance(state, reached, rng.choice(among, 1))


# -------------------------------------------------------------------------------- locked prefixes
def test_locked_segments_are_kept_and_the_rest_is_valid():
    tokenizer = TOKENIZERS["emoji"]
    separator = tokenizer.encode("|")
    locked = [
        tokenizer.encode("a small boot") + separator,
        [],
        tokenizer.encode("a") + separator + tokenizer.encode("boot (1, 33, 995, 996)") + separator,
        tokenizer.encode("a small"),
    ]
    prefix = np.zeros((4, 40), np.int32)
    for row, ids in zip(prefix, locked, strict=True):
        row[: len(ids)] = ids
    rows = np.asarray(draw(constraint("emoji"), numeric_bias("emoji", 3.0), 5, max_len=64, rows=4, prefix=prefix))
    check_valid(rows, SEGMENTS, "emoji")
    for row, ids in zip(rows, locked, strict=True):
        assert row[: len(ids)].tolist() == ids
    z = codec("emoji").decode(rows[2])
    assert select(z, ("text",)).text == "a" and z.bbox[0].box == (1, 33, 995, 996)


def test_a_prefix_that_breaks_the_grammar_is_kept_without_harm():
    prefix = np.full((2, 3), TOKENIZERS["emoji"].encode("|")[0], np.int32)
    rows = np.asarray(draw(constraint("emoji"), numeric_bias("emoji", 0.0), 6, max_len=24, rows=2, prefix=prefix))
    np.testing.assert_array_equal(rows[:, :3], prefix)


def test_numpy_and_jax_read_alike():
    machine = constraint("emoji")
    state, _ = machine.follow(parts("emoji", "a boot", "|", "boot (12, 3"))
    on_device = jax.tree.map(jnp.asarray, (machine, state))
    host, device = (m.allowed(p, 30) for m, p in ((machine, state), on_device))
    for ours, theirs in zip(jax.tree.leaves(host), jax.tree.leaves(device), strict=True):
        np.testing.assert_array_equal(ours, theirs)
