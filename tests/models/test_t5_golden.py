"""Ours against numbers made by running t5x and Hugging Face transformers (see tests/t5_files.py)."""

import dataclasses
import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import unflatten_dict

from kaleido_jax.errors import UserError
from kaleido_jax.interop.t5 import t5x
from kaleido_jax.interop.t5.load import open_t5
from kaleido_jax.models import cpu, decode
from kaleido_jax.models.remat import POLICIES
from kaleido_jax.models.t5 import (
    EOS,
    PAD,
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    RelativeBias,
    RMSNorm,
    relative_buckets,
)
from tests.t5_files import FOLDER, reference, sizes_of, step_folder, tensors, to_flat, wanted

CHECKPOINTS = {"t5x": "t5x_checkpoint", "hf": "hf_checkpoint"}  # whose config.json has the sizes
TOLERANCE = 1e-4  # float32, from the README
SOURCES = ("t5x", "hf")
TAGS = [("t5x", "short"), ("t5x", "long"), ("t5x", "null"), ("hf", "short"), ("hf", "long"), ("hf", "null")]
ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


# ----------------------------------------------------------------------------------------- the files
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
    config, rows = sizes_of(CHECKPOINTS[source])
    encoder, decoder = jax.tree.map(jnp.asarray, t5x.from_flat(flat_weights(source), config))
    return Encoder(config, rows), encoder, Decoder(config, rows), decoder


def close(ours, reference, rows=None, what="", tolerance=TOLERANCE):
    """Compares where `rows` (B, T) is True; padding rows mean nothing."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    rows = np.ones(reference.shape[:0], bool) if rows is None else rows
    np.testing.assert_allclose(ours[rows], reference[rows], rtol=0, atol=tolerance, err_msg=what)


def states(source, captions):
    """(states after the final norm, state of each layer (layers, B, T, d))."""
    encoder, params, _, _ = models(source)
    out, seen = encoder.apply({"params": params}, jnp.asarray(captions), mutable="intermediates")
    return out, seen["intermediates"]["layers"]["state"][0]


def batch(source, tag):
    """A recorded batch: its key without the tag -> array."""
    found = {k.removeprefix(f"{tag}."): v for k, v in golden(source).items() if k.startswith(f"{tag}.")}
    return found or pytest.skip(f"{tag} of {source} is not in {FOLDER}")


def layer_states(stack, source, layers, given):
    """(key, our state) of each recorded layer; Hugging Face's last one is the output again."""
    names = {"hf": lambda i: f"{stack}_hidden_states.{i + 1}", "t5x": lambda i: f"{stack}.layers_{i}"}
    message = [(names[source](i), state) for i, state in enumerate(layers[: -1 if source == "hf" else None])]
    return [(key, state) for key, state in message if key in given]


# ------------------------------------------------------------------------------------------ forward
@pytest.mark.parametrize("source", SOURCES)
def test_weights_survive_the_round_trip(source):
    _, encoder, _, decoder = models(source)
    back, given = to_flat(encoder, decoder), flat_weights(source)
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
    args = jnp.asarray(inputs), h_c, jnp.asarray(captions != PAD)
    (hidden, logits), seen = decoder.apply({"params": params}, *args, mutable="intermediates")
    close(hidden, given["decoder_hidden"], valid, "hidden")
    close(logits, given["logits"], valid, "logits")
    layers = seen["intermediates"]["layers"]["state"][0]
    for key, state in layer_states("decoder", source, layers, given):
        close(state, given[key], valid, key)


def test_relative_buckets_equal():
    given = json.loads(reference("golden", "relative_buckets.json").read_text())
    for key, side in given.items():
        if isinstance(side, dict):
            first, last = side["relative_position_from"], side["relative_position_to"]
            table = relative_buckets(1 - first, 1 - first + last, "bidirectional" in key)
            row = table[-first]  # the query from which both ends can be seen
            np.testing.assert_array_equal(row, side["bucket"], err_msg=key)


# ---------------------------------------------------------------------------------------- precision
def short_batch(given):
    names = (f"short.{key}_tokens" for key in ("encoder_input", "decoder_input", "decoder_target"))
    return [jnp.asarray(tokens) for tokens in wanted(given, *names)]


def short_logits(flat, dtype=jnp.float32):
    """Our logits of the short batch at valid rows, for weights under t5x's names."""
    captions, inputs, targets = short_batch(golden("t5x"))
    config, rows = sizes_of("t5x_checkpoint")
    encoder, decoder = jax.tree.map(jnp.asarray, t5x.from_flat(flat, config))
    h_c = Encoder(config, rows, dtype).apply({"params": encoder}, captions)
    _, logits = Decoder(config, rows, dtype).apply({"params": decoder}, inputs, h_c, captions != PAD)
    return np.asarray(logits)[targets != PAD]


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def test_bfloat16_activations_are_as_near_as_those_of_t5x():
    given = golden("t5x")
    valid = short_batch(given)[2] != PAD
    exact, theirs = (logits[valid] for logits in wanted(given, "short.logits", "short_bf16.logits"))
    ours = short_logits(flat_weights("t5x"), jnp.bfloat16)
    # t5x and transformers were 0.18 to 0.31 off at worst where logits have a standard deviation of 2.
    assert 0 < np.abs(ours - exact).max() <= 0.31 * exact.std() / 2
    assert rms(ours - exact) <= 1.2 * rms(theirs - exact)
    assert rms(ours - theirs) <= 1.5 * rms(theirs - exact)  # two roundings of their own, no bias between them


def test_weights_stored_in_bfloat16_give_nearly_the_same_logits():
    given = golden("t5x")
    exact = wanted(given, "short.logits")[0][short_batch(given)[2] != PAD]
    source = open_t5(step_folder("t5x_checkpoint_bf16"))
    ours = short_logits({name: source.read(name) for name in source.names})
    assert 0 < np.abs(ours - exact).max() <= 0.37 * exact.std() / 2  # the worst seen in t5x and transformers


# ------------------------------------------------------------------------------- loss and gradients
@pytest.mark.parametrize("source", SOURCES)
def test_loss_and_gradients_equal(source):
    given = golden(source)
    captions, inputs, targets = short_batch(given)
    encoder, encoder_params, decoder, decoder_params = models(source)

    def loss_of(params):
        h_c = encoder.apply({"params": params[0]}, captions)
        _, logits = decoder.apply({"params": params[1]}, inputs, h_c, captions != PAD)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return (nll * (targets != PAD)).sum() / (1 if source == "t5x" else (targets != PAD).sum())

    loss, grads = jax.jit(jax.value_and_grad(loss_of))((encoder_params, decoder_params))
    (message,) = wanted(given, "loss.sum_ce_z0" if source == "t5x" else "loss.mean_ce")
    np.testing.assert_allclose(loss, message[0], rtol=1e-5)
    np.testing.assert_array_equal((targets != PAD).sum(), wanted(given, "loss.num_tokens")[0][0])
    check_gradients(grads, source, given)


def test_log_z_of_the_z_loss_equals():
    given = golden("t5x")
    plain, with_z = wanted(given, "loss.sum_ce_z0", "loss.sum_ce_z0.0001")
    log_z = jax.nn.logsumexp(short_logits(flat_weights("t5x")), axis=-1)
    np.testing.assert_allclose(1e-4 * np.square(log_z).sum(), with_z[0] - plain[0], rtol=1e-3)  # a difference of sums


@cache
def gradients(policy):
    """(whether anything is recomputed, gradients) of the short batch."""
    captions, inputs, targets = short_batch(golden("t5x"))
    config, rows = sizes_of("t5x_checkpoint")
    sizes = dataclasses.replace(config, remat=policy)

    def loss_of(params):
        h_c = Encoder(sizes, rows).apply({"params": params[0]}, captions)
        _, logits = Decoder(sizes, rows).apply({"params": params[1]}, inputs, h_c, captions != PAD)
        return (optax.softmax_cross_entropy_with_integer_labels(logits, targets) * (targets != PAD)).sum()

    traced = jax.jit(jax.grad(loss_of)).trace(jax.tree.map(jnp.asarray, models("t5x")[1::2]))
    return "remat" in str(traced.jaxpr), traced.lower().compile()(models("t5x")[1::2])


@pytest.mark.parametrize("remat", sorted(POLICIES))
def test_recomputed_layers_give_the_same_gradients(remat):
    (recomputes, found), (plain_recomputes, plain) = gradients(remat), gradients("none")
    assert recomputes and not plain_recomputes
    # Other fusions round differently; relative to the largest entry, as below.
    jax.tree.map(lambda a, b: close(a, b, tolerance=1e-5 * max(1.0, float(np.abs(b).max()))), found, plain)


def check_gradients(grads, source, given):
    """The reference has one token table; ours has two, whose gradients add up to it."""
    tables = [part.pop("token_embedder")["embedding"] for part in grads]
    shared = {"token_embedder": {"embedding": tables[0] + tables[1]}}
    ours = to_flat(*(part | shared for part in grads))
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
    captions = short_batch(golden(source))[0]
    _, _, decoder, params = models(source)
    h_c, _ = states(source, captions)
    cache = decoder.apply({"params": params}, h_c, max_len, method="init_cache")
    step = lambda *args: decoder.apply({"params": params}, *args, captions != PAD, method="step")  # noqa: E731
    keys = jax.random.split(jax.random.key(0), len(captions))
    return decode.sample_tokens(step, cache, keys, max_len=max_len, temperature=0, prefix=prefix)


@pytest.mark.parametrize("unstacked", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_cached_greedy_decoding_equals(source, unstacked, monkeypatch):
    monkeypatch.setattr(cpu, "enabled", lambda: unstacked)
    (message,) = wanted(golden(source), "greedy.tokens" if source == "t5x" else "greedy.sequences")
    message = message if source == "t5x" else message[:, 1:]  # transformers shows the start too
    np.testing.assert_array_equal(greedy(source, message.shape[1]), message)


def test_greedy_decoding_keeps_a_forced_prefix():
    given = golden("t5x")
    inputs, message = wanted(given, "greedy_prefix.decoder_input_tokens", "greedy_prefix.tokens")
    np.testing.assert_array_equal(greedy("t5x", message.shape[1], jnp.asarray(inputs[:, 1:4])), message)


def cached(source, captions, inputs):
    """(states, logits) of every position, (B, T, ...), through the cache."""
    _, _, decoder, params = models(source)
    h_c, _ = states(source, captions)
    cache, mask = (
        decoder.apply({"params": params}, h_c, inputs.shape[1], method="init_cache"),
        jnp.asarray(captions != PAD),
    )

    def body(cache, index):
        args = jnp.asarray(inputs)[:, index], index, cache, mask
        hidden, logits, cache = decoder.apply({"params": params}, *args, method="step")
        return cache, (hidden, logits)

    _, (hidden, logits) = jax.jit(lambda: jax.lax.scan(body, cache, jnp.arange(inputs.shape[1])))()
    return hidden.swapaxes(0, 1), logits.swapaxes(0, 1)


@pytest.mark.parametrize("unstacked", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_cached_logits_equal_teacher_forced_ones(source, unstacked, monkeypatch):
    monkeypatch.setattr(cpu, "enabled", lambda: unstacked)
    given = batch(source, "long")
    hidden, logits = cached(source, given["encoder_input_tokens"], given["decoder_input_tokens"])
    valid = given["decoder_target_tokens"] != PAD
    close(hidden, given["decoder_hidden"], valid, "hidden")
    close(logits, given["logits"], valid, "logits")


def test_scores_of_greedy_decoding_equal():
    captions, scores, message = wanted(golden("hf"), "short.encoder_input_tokens", "greedy.scores", "greedy.sequences")
    _, logits = cached("hf", captions, message[:, :-1])
    going = np.cumsum(message[:, :-1] == EOS, axis=1) == 0  # behind an end transformers goes on with pads
    close(logits, scores, going)


# ------------------------------------------------------------------------------------ scanned layers
def scanned_stack(layer, bias, part, x, causal, *rest):
    """A stack whose layers have a relative bias each, run by our layers; leaves have the layer axis second."""
    length, layers = x.shape[1], part["relpos_bias"]["rel_embedding"].shape[1]
    mask = jnp.tril(jnp.ones((length, length), bool))[None, None] if causal else rest[-1]
    for i in range(layers):
        mine = jax.tree.map(lambda leaf: leaf[:, i], part)  # noqa: B023
        table = bias.apply({"params": mine.pop("relpos_bias")}, length, length)
        args = (rest[0], table, mask, rest[-1]) if causal else (table, mask)
        x, _ = layer.apply({"params": jax.tree_util.tree_map_with_path(two_axes, mine)}, x, *args)
    return x


def two_axes(path, leaf):
    """Kernels of attention with heads and head_dim as one axis."""
    if leaf.ndim < 3:
        return leaf
    return leaf.reshape(-1, leaf.shape[-1]) if path[-2].key == "out" else leaf.reshape(leaf.shape[0], -1)


@pytest.mark.parametrize("tag", ["short", "long", "null"])
def test_our_layers_equal_the_scanned_ones_with_a_bias_each(tag):
    """Scanned t5x models are others than T5 v1.1 and are not imported; their layers are the same."""
    given = {
        k.removeprefix(f"{tag}."): v for k, v in tensors("golden/t5x_scan_tiny").items() if k.startswith(f"{tag}.")
    }
    given or pytest.skip(f"{tag} of t5x_scan_tiny is not in {FOLDER}")
    config, rows = sizes_of("t5x_checkpoint_scan")
    params = jax.tree.map(jnp.asarray, unflatten_dict(tensors("golden/t5x_scan_tiny_params"), sep="."))
    captions, inputs = (jnp.asarray(given[f"{side}_input_tokens"]) for side in ("encoder", "decoder"))
    table, norm = params["token_embedder"]["embedding"], RMSNorm(jnp.float32)
    assert table.shape == (rows, config.d_model)
    mask = (captions != PAD)[:, None, None, :]
    both = EncoderLayer(config, jnp.float32), RelativeBias(config.num_heads, bidirectional=True)
    h_c = scanned_stack(*both, params["encoder"]["encoder"], table[captions], False, mask)
    h_c = norm.apply({"params": params["encoder"]["encoder_norm"]}, h_c)
    close(h_c, given["encoder_output"], captions != PAD, "output")
    both = DecoderLayer(config, jnp.float32), RelativeBias(config.num_heads, bidirectional=False)
    hidden = scanned_stack(*both, params["decoder"]["decoder"], table[inputs], True, h_c, mask)
    hidden = norm.apply({"params": params["decoder"]["decoder_norm"]}, hidden)
    valid = given["decoder_target_tokens"] != PAD
    close(hidden, given["decoder_hidden"], valid, "hidden")
    close(hidden @ params["decoder"]["logits_dense"]["kernel"], given["logits"], valid, "logits")


# ------------------------------------------------------------------------------------------ warpers
def warper_cases():
    """Their descriptions; none where the folder lacks them."""
    path = FOLDER / "golden" / "warpers.json"
    return json.loads(path.read_text())["cases"] if path.exists() else []


WARPED = sorted({case["logits"] for case in warper_cases()})


@pytest.mark.parametrize("logits", WARPED)
def test_warpers_keep_the_same_tokens(logits):
    given = tensors("golden/warpers")
    for case in warper_cases():
        if case["logits"] != logits:
            continue
        warped = decode.warp_logits(jnp.asarray(given[logits]), case["temperature"], case["top_k"], case["top_p"])
        ours, message = np.asarray(jax.nn.softmax(warped, -1)), given[f"{case['key']}.probs"]
        if logits.startswith("ties"):  # which one of a tied group is kept is not defined
            ours, message = np.sort(ours), np.sort(message)
        np.testing.assert_array_equal(ours > 0, message > 0, err_msg=case["key"])
        np.testing.assert_allclose(ours, message, rtol=1e-5, atol=1e-7, err_msg=case["key"])


# ------------------------------------------------------------------------------------------- errors
def test_wrong_weights_are_refused_by_name():
    weights, (config, _) = flat_weights("t5x"), sizes_of("t5x_checkpoint")
    short = {k: v for k, v in weights.items() if k != "encoder/encoder_norm/scale"}
    with pytest.raises(UserError, match="1 missing names .encoder/encoder_norm/scale"):
        t5x.from_flat(short, config)
    with pytest.raises(UserError, match="1 unknown names .extra"):
        t5x.from_flat(weights | {"extra": np.zeros(1)}, config)
    with pytest.raises(UserError, match=f"encoder/encoder_norm/scale has shape .3,.; expected .{config.d_model},."):
        t5x.from_flat(weights | {"encoder/encoder_norm/scale": np.zeros(3)}, config)


def test_a_model_with_two_tables_has_no_t5x_form():
    _, encoder, _, decoder = models("t5x")
    config, rows = sizes_of("t5x_checkpoint")
    longer = {"embedding": np.zeros((rows + 2, config.d_model), np.float32)}
    with pytest.raises(UserError, match="differ"):
        to_flat(encoder, decoder | {"token_embedder": longer})
