"""Ours against numbers made by running t5x and Hugging Face transformers (tests/golden/t5/README.md).

KALEIDO_T5_GOLDEN names another folder with the same files.
"""

import json
import os
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from kaleido_jax import config as cfg
from kaleido_jax.errors import UserError
from kaleido_jax.interop import t5x
from kaleido_jax.models import decode
from kaleido_jax.models.t5 import PAD, Decoder, Encoder, relative_buckets

FOLDER = Path(os.environ.get("KALEIDO_T5_GOLDEN") or Path(__file__).parents[1] / "golden" / "t5")
SIZES = cfg.T5(d_model=32, d_ff=64, num_heads=4, head_dim=8, num_encoder_layers=2, num_decoder_layers=2)
TOLERANCE = 1e-4  # float32, from the README
SOURCES = ("t5x", "hf")
TAGS = [("t5x", "short"), ("t5x", "long"), ("t5x", "null"), ("hf", "short"), ("hf", "long"), ("hf", "null")]
ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


# ----------------------------------------------------------------------------------------- the files
@cache
def tensors(name):
    return load_file(FOLDER / f"{name}.safetensors")


def golden(source):
    return tensors(f"golden/{source}_tiny")


def from_hf(name):
    """t5x's name of a Hugging Face parameter."""
    fixed = {
        "shared.weight": t5x.TABLE,
        "lm_head.weight": "decoder/logits_dense/kernel",
        "encoder.final_layer_norm.weight": "encoder/encoder_norm/scale",
        "decoder.final_layer_norm.weight": "decoder/decoder_norm/scale",
    }
    if name in fixed:
        return fixed[name]
    stack, _, layer, _, sub, module, *rest = name.split(".")
    if rest[0] == "relative_attention_bias":
        return f"{stack}/relpos_bias/rel_embedding"
    prefix, kind = f"{stack}/layers_{layer}", hf_part(stack, int(sub))
    if module == "layer_norm":
        norm = {"mlp": "mlp", "attention": "attention", "self_attention": "self_attention"}
        return f"{prefix}/pre_{norm.get(kind, 'cross_attention')}_layer_norm/scale"
    return f"{prefix}/{kind}/{ATTENTION.get(rest[0], rest[0])}/kernel"


def hf_part(stack, sub):
    decoder = ("self_attention", "encoder_decoder_attention", "mlp")
    return ("attention", "mlp")[sub] if stack == "encoder" else decoder[sub]


def flat_weights(source):
    """t5x name -> array."""
    if source == "t5x":
        return {k.replace(".", "/"): v for k, v in tensors("golden/t5x_tiny_params").items()}
    return convert_hf(tensors("hf_checkpoint/model"))


def convert_hf(weights):
    return {from_hf(k): v if k == "shared.weight" else v.T for k, v in weights.items()}


@cache
def models(source):
    """(encoder, its params, decoder, its params)."""
    encoder, decoder = t5x.from_flat(flat_weights(source), SIZES)
    return Encoder(SIZES, 128), encoder, Decoder(SIZES, 128), decoder


def close(ours, reference, rows=None, what="", tolerance=TOLERANCE):
    """Compares where `rows` (B, T) is True; padding rows mean nothing."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    rows = np.ones(reference.shape[:0], bool) if rows is None else rows
    np.testing.assert_allclose(ours[rows], reference[rows], rtol=0, atol=tolerance, err_msg=what)


def states(source, captions):
    """(states after the final norm, state of each layer (layers, B, T, d))."""
    encoder, params, _, _ = models(source)
    out, seen = encoder.apply({"params": params}, captions, mutable="intermediates")
    return out, seen["intermediates"]["layers"]["state"][0]


def batch(source, tag):
    """A recorded batch: its key without the tag -> array."""
    found = {k.removeprefix(f"{tag}."): v for k, v in golden(source).items() if k.startswith(f"{tag}.")}
    return found or pytest.skip(f"{tag} is not in this folder")


def layer_states(stack, source, layers, given):
    """(key, our state) of each recorded layer; Hugging Face's last one is the output again."""
    if source == "hf":
        return [(f"{stack}_hidden_states.{i + 1}", state) for i, state in enumerate(layers[:-1])]
    keys = [f"{stack}.layers_{i}" for i in range(len(layers))]
    return [(key, state) for key, state in zip(keys, layers, strict=True) if key in given]


# ------------------------------------------------------------------------------------------ forward
@pytest.mark.parametrize("source", SOURCES)
def test_weights_survive_the_round_trip(source):
    _, encoder, _, decoder = models(source)
    back, given = t5x.to_flat(encoder, decoder), flat_weights(source)
    assert back.keys() == given.keys()
    for name, value in given.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


@pytest.mark.parametrize(("source", "tag"), TAGS)
def test_encoder_states_equal(source, tag):
    given = batch(source, tag)
    captions = given["encoder_input_tokens"]
    out, layers = states(source, captions)
    close(out, given["encoder_output"], captions != PAD, "output")
    for key, state in layer_states("encoder", source, layers, given):
        close(state, given[key], captions != PAD, key)


@pytest.mark.parametrize(("source", "tag"), TAGS)
def test_decoder_states_and_logits_equal(source, tag):
    given = batch(source, tag)
    captions, inputs = given["encoder_input_tokens"], given["decoder_input_tokens"]
    valid = given["decoder_target_tokens"] != PAD
    np.testing.assert_array_equal(decode.shift_right(given["decoder_target_tokens"])[valid], inputs[valid])
    _, _, decoder, params = models(source)
    h_c, _ = states(source, captions)
    args = inputs, h_c, captions != PAD
    (hidden, logits), seen = decoder.apply({"params": params}, *args, mutable="intermediates")
    close(hidden, given["decoder_hidden"], valid, "hidden")
    close(logits, given["logits"], valid, "logits")
    layers = seen["intermediates"]["layers"]["state"][0]
    for key, state in layer_states("decoder", source, layers, given):
        close(state, given[key], valid, key)


def test_relative_buckets_equal():
    given = json.loads((FOLDER / "golden" / "relative_buckets.json").read_text())
    for key, side in given.items():
        if isinstance(side, dict):
            first, last = side["relative_position_from"], side["relative_position_to"]
            table = relative_buckets(1 - first, 1 - first + last, "bidirectional" in key)
            row = table[-first]  # the query from which both ends can be seen
            np.testing.assert_array_equal(row, side["bucket"], err_msg=key)


# ------------------------------------------------------------------------------- loss and gradients
@pytest.mark.parametrize("source", SOURCES)
def test_loss_and_gradients_equal(source):
    given = golden(source)
    captions, inputs, targets = (
        given[f"short.{key}_tokens"] for key in ("encoder_input", "decoder_input", "decoder_target")
    )
    encoder, encoder_params, decoder, decoder_params = models(source)

    def loss_of(params):
        h_c = encoder.apply({"params": params[0]}, captions)
        _, logits = decoder.apply({"params": params[1]}, inputs, h_c, captions != PAD)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return (nll * (targets != PAD)).sum() / (1 if source == "t5x" else (targets != PAD).sum())

    loss, grads = jax.jit(jax.value_and_grad(loss_of))((encoder_params, decoder_params))
    key = "loss.sum_ce_z0" if source == "t5x" else "loss.mean_ce"
    np.testing.assert_allclose(loss, given[key][0], rtol=1e-5)
    check_gradients(grads, source, given)


def check_gradients(grads, source, given):
    """The reference has one token table; ours has two, whose gradients add up to it."""
    tables = [part.pop("token_embedder")["embedding"] for part in grads]
    shared = {"token_embedder": {"embedding": tables[0] + tables[1]}}
    ours = t5x.to_flat(*(part | shared for part in grads))
    reference = {k.removeprefix("grad."): v for k, v in given.items() if k.startswith("grad.")}
    if source == "hf":
        reference = convert_hf(reference)
    reference = {k.replace(".", "/"): v for k, v in reference.items()}
    assert ours.keys() == reference.keys()
    for name, value in reference.items():
        # Sums of token losses are large; the tolerance is relative to the largest entry.
        close(ours[name], value, what=name, tolerance=TOLERANCE * max(1.0, np.abs(value).max()))


# ----------------------------------------------------------------------------------------- decoding
def greedy(source, max_len, prefix=None):
    """Ids of the greedy continuation of the short captions, through the cache."""
    captions = golden(source)["short.encoder_input_tokens"]
    _, _, decoder, params = models(source)
    h_c, _ = states(source, captions)
    cache = decoder.apply({"params": params}, h_c, max_len, method="init_cache")
    step = lambda *args: decoder.apply({"params": params}, *args, captions != PAD, method="step")  # noqa: E731
    keys = jax.random.split(jax.random.key(0), len(captions))
    return decode.sample_tokens(step, cache, keys, max_len=max_len, temperature=0, prefix=prefix)


@pytest.mark.parametrize("source", SOURCES)
def test_cached_greedy_decoding_equals(source):
    given = golden(source)
    reference = given["greedy.tokens"] if source == "t5x" else given["greedy.sequences"][:, 1:]
    np.testing.assert_array_equal(greedy(source, reference.shape[1]), reference)


def test_greedy_decoding_keeps_a_forced_prefix():
    given = golden("t5x")
    forced, reference = given["greedy_prefix.decoder_input_tokens"][:, 1:4], given["greedy_prefix.tokens"]
    np.testing.assert_array_equal(greedy("t5x", reference.shape[1], forced), reference)


def test_cached_logits_equal_teacher_forced_ones():
    given = golden("t5x")
    captions, inputs = given["long.encoder_input_tokens"], given["long.decoder_input_tokens"]
    _, _, decoder, params = models("t5x")
    h_c, _ = states("t5x", captions)
    cache = decoder.apply({"params": params}, h_c, inputs.shape[1], method="init_cache")

    def body(cache, index):
        args = jnp.asarray(inputs)[:, index], index, cache, captions != PAD
        hidden, logits, cache = decoder.apply({"params": params}, *args, method="step")
        return cache, (hidden, logits)

    _, (hidden, logits) = jax.jit(lambda: jax.lax.scan(body, cache, jnp.arange(inputs.shape[1])))()
    valid = given["long.decoder_target_tokens"] != PAD
    close(hidden.swapaxes(0, 1), given["long.decoder_hidden"], valid, "hidden")
    close(logits.swapaxes(0, 1), given["long.logits"], valid, "logits")


# ------------------------------------------------------------------------------------------ warpers
def warper_cases():
    return json.loads((FOLDER / "golden" / "warpers.json").read_text())["cases"]


@pytest.mark.parametrize("logits", sorted({case["logits"] for case in warper_cases()}))
def test_warpers_keep_the_same_tokens(logits):
    given = tensors("golden/warpers")
    for case in warper_cases():
        if case["logits"] != logits:
            continue
        warped = decode.warp_logits(jnp.asarray(given[logits]), case["temperature"], case["top_k"], case["top_p"])
        ours, reference = np.asarray(jax.nn.softmax(warped, -1)), given[f"{case['key']}.probs"]
        if logits.startswith("ties"):  # which one of a tied group is kept is not defined
            ours, reference = np.sort(ours), np.sort(reference)
        np.testing.assert_array_equal(ours > 0, reference > 0, err_msg=case["key"])
        np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-7, err_msg=case["key"])


# ------------------------------------------------------------------------------------------- errors
def test_wrong_weights_are_refused_by_name():
    weights = flat_weights("t5x")
    short = {k: v for k, v in weights.items() if k != "encoder/encoder_norm/scale"}
    with pytest.raises(UserError, match="1 missing names .encoder/encoder_norm/scale"):
        t5x.from_flat(short, SIZES)
    with pytest.raises(UserError, match="1 unknown names .extra"):
        t5x.from_flat(weights | {"extra": np.zeros(1)}, SIZES)
    with pytest.raises(UserError, match="encoder/encoder_norm/scale has shape .3,.; expected .32,."):
        t5x.from_flat(weights | {"encoder/encoder_norm/scale": np.zeros(3)}, SIZES)


def test_a_model_with_two_tables_has_no_t5x_form():
    _, encoder, _, decoder = models("t5x")
    longer = {"embedding": np.zeros((130, 32), np.float32)}
    with pytest.raises(UserError, match="differ"):
        t5x.to_flat(encoder, decoder | {"token_embedder": longer})
