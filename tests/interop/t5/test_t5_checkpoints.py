"""T5 checkpoints of all formats: read, loaded, written, and refused in one line when damaged.

Reference files are those of tests/t5_files.py; the tests of them have t5_golden in their names.
"""

import dataclasses
import json
import re
import shutil
import weakref
from functools import cache
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from kaleido_jax import main
from kaleido_jax.config.checks import mesh_sizes, validate
from kaleido_jax.errors import UserError
from kaleido_jax.interop.files import safetensors
from kaleido_jax.interop.mdm.load import holds_denoiser
from kaleido_jax.interop.source import read_weight
from kaleido_jax.interop.t5 import convert as convert_module
from kaleido_jax.interop.t5 import huggingface, t5x
from kaleido_jax.interop.t5 import layout as layout_module
from kaleido_jax.interop.t5 import load as checkpoint
from kaleido_jax.interop.t5.convert import convert_t5
from kaleido_jax.interop.t5.kaleido import write_kaleido
from kaleido_jax.interop.t5.layout import HEAD, STACKS, TABLE, expected_shapes, layout, layouts, sizes
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.models.t5 import EOS, PAD, Decoder, Encoder
from kaleido_jax.runtime import checkpoints
from kaleido_jax.runtime.mesh import make_mesh
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.train import loop
from kaleido_jax.train.fit import check_weights
from kaleido_jax.train.optimizer import make_optimizer
from kaleido_jax.train.state import create_state
from kaleido_jax.verbs import convert
from tests.full_disk import full_disk
from tests.t5_files import reference, sizes_of, step_folder, tensors, to_flat

TOLERANCE = 1e-4  # float32, from the README
VARIANTS = ("gcs", "gfile", "top_level_path", "version0")
FORMATS = ("t5x", "huggingface", "kaleido")
t5_shapes = cache(layout_module.t5_shapes)


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(autouse=True, scope="module")
def traced_once():
    """Most tests read the same two models, whose shapes take half a second to trace."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (layout_module, convert_module):
            patch.setattr(module, "t5_shapes", t5_shapes)
        yield


# ----------------------------------------------------------------------------------------- the files
@cache
def golden_params():
    """Those of t5x_checkpoint."""
    return {name.replace(".", "/"): value for name, value in tensors("golden/t5x_tiny_params").items()}


def read_all(path):
    source = checkpoint.open_t5(path)
    arrays = {name: source.read(name) for name in source.names}
    assert {name: source.shape(name) for name in arrays} == {name: value.shape for name, value in arrays.items()}
    return arrays


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def copied(tmp_path, name="t5x_checkpoint"):
    """A copy of a step's folder to damage."""
    folder = tmp_path / "checkpoint_7"
    shutil.copytree(step_folder(name), folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


class Arrays:
    """A source from memory."""

    def __init__(self, flat):
        self.path, self.flat, self.names = Path("memory"), flat, tuple(sorted(flat))

    def shape(self, name):
        return self.flat[name].shape

    def read(self, name):
        return self.flat[name]


def bf16(flat):
    return {name: value.astype(jnp.bfloat16) for name, value in flat.items()}


# --------------------------------------------------------------------------------------------- t5x
def test_t5_golden_t5x_folder_its_parent_and_its_file_give_the_parameters():
    step = step_folder("t5x_checkpoint")
    for path in (step, step.parent, step / "checkpoint"):
        same(read_all(path), golden_params())


def test_t5_golden_bfloat16_is_read_as_stored():
    same(read_all(step_folder("t5x_checkpoint_bf16")), bf16(golden_params()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_t5_golden_places_of_other_machines_do_not_matter(variant, tmp_path):
    folder = copied(tmp_path)
    shutil.copyfile(reference("t5x_msgpack_variants", f"checkpoint.{variant}"), folder / "checkpoint")
    same(read_all(folder), golden_params())


@pytest.mark.parametrize("name", ["t5x_checkpoint", "t5x_checkpoint_bf16"])
def test_t5_golden_hidden_files_may_be_lost(name, tmp_path):
    folder = copied(tmp_path, name)
    for hidden in folder.glob("*/.zarray"):
        hidden.unlink()
    same(read_all(folder), bf16(golden_params()) if name.endswith("bf16") else golden_params())


def test_t5_golden_bits_of_version_2_are_bfloat16(tmp_path):
    folder = copied(tmp_path, "t5x_checkpoint_bf16")
    for hidden in folder.glob("*/.zarray"):
        hidden.write_text(json.dumps(json.loads(hidden.read_text()) | {"dtype": "<u2"}))
    same(read_all(folder), bf16(golden_params()))


@pytest.mark.parametrize("compressor", [{"id": "zstd", "level": 1}, {"id": "gzip", "level": 1}, None])
def test_t5_golden_a_chunk_for_each_shard_is_read(compressor, tmp_path):
    folder = copied(tmp_path)
    for name, value in golden_params().items():
        place = folder / f"target.{name.replace('/', '.')}"
        shutil.rmtree(place)
        metadata = {"shape": value.shape, "chunks": [-(-n // 3) for n in value.shape], "compressor": compressor}
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{place}/"}, "metadata": metadata}
        tensorstore.open(spec, create=True, dtype="float32").result().write(value).result()
    same(read_all(folder), golden_params())


def test_t5_golden_all_tensors_may_be_in_the_file(tmp_path):
    tree = {
        "version": 2,
        "optimizer": {"target": unflatten_dict(golden_params(), sep="/"), "state": {"step": np.int32(3)}},
    }
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    same(read_all(tmp_path), golden_params())
    bits = {name: value.view(np.uint16) for name, value in bf16(golden_params()).items()}
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize({"target": unflatten_dict(bits, sep="/")}))
    same(read_all(tmp_path), bf16(golden_params()))


def test_t5_golden_scanned_layers_are_refused_by_name():
    with pytest.raises(UserError, match="a relative bias for each layer .*encoder/encoder/relpos_bias.*not scanned"):
        checkpoint.open_t5(step_folder("t5x_checkpoint_scan"))


def test_one_of_several_checkpoints_must_be_named(tmp_path):
    for step in (1, 2):
        (tmp_path / f"checkpoint_{step}").mkdir()
        (tmp_path / f"checkpoint_{step}" / "checkpoint").write_bytes(b"")
    with pytest.raises(UserError, match="2 checkpoints .checkpoint_1, checkpoint_2. in"):
        checkpoint.open_t5(tmp_path)


# ------------------------------------------------------------------------------------- Hugging Face
def hf_folder():
    return reference("hf_checkpoint", "model.safetensors").parent


def hf_copy(tmp_path, change=lambda stored: stored, config=None):
    """A folder with changed tensors, and their t5x names before the change."""
    stored = change(load_file(hf_folder() / "model.safetensors"))
    save_file(stored, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_t5_golden_huggingface_file_and_folder_give_the_parameters():
    stored = load_file(hf_folder() / "model.safetensors")
    for path in (hf_folder(), hf_folder() / "model.safetensors"):
        found = read_all(path)
        config, rows = sizes_of("hf_checkpoint")
        shapes = expected_shapes(layouts(config, rows))
        assert len(found) == len(stored) and {name: value.shape for name, value in found.items()} == shapes
        for name, value in found.items():
            given = stored[huggingface.to_hf(name)]
            np.testing.assert_array_equal(value, given if value.ndim == 1 or name == TABLE else given.T)


def test_t5_golden_huggingface_shards_are_followed(tmp_path):
    stored = load_file(hf_folder() / "model.safetensors")
    each = sum(value.nbytes for value in stored.values()) // 4
    safetensors.write_safetensors(stored.items(), tmp_path, shard_bytes=each)
    index = tmp_path / safetensors.INDEX
    assert len(set(json.loads(index.read_text())["weight_map"].values())) > 2 and len(list(tmp_path.iterdir())) > 3
    for path in (tmp_path, index):
        same(read_all(path), read_all(hf_folder()))
    missing = next(tmp_path.glob("*-00002-of-*"))
    missing.unlink()
    with pytest.raises(UserError, match=f"no file .*{missing.name}"):
        checkpoint.open_t5(tmp_path)


def test_t5_golden_copies_and_legacy_tensors_are_ignored(tmp_path):
    def change(stored):
        copies = {f"{stack}.embed_tokens.weight": stored["shared.weight"] for stack in ("encoder", "decoder")}
        return stored | copies | {huggingface.LEGACY: np.zeros((32, 4), np.float32)}

    same(read_all(hf_copy(tmp_path, change)), read_all(hf_folder()))


@pytest.mark.parametrize("table", ["shared.weight", "encoder.embed_tokens.weight"])
def test_t5_golden_a_bare_encoder_is_read(table, tmp_path):
    def change(stored):
        encoder = {name: value for name, value in stored.items() if name.startswith("encoder.")}
        return encoder | {table: stored["shared.weight"]}

    found = read_all(hf_copy(tmp_path, change))
    same(found, {name: value for name, value in read_all(hf_folder()).items() if not name.startswith("decoder/")})
    config, rows = sizes(checkpoint.open_t5(tmp_path))
    encoder, _ = t5_shapes(dataclasses.replace(config, num_decoder_layers=1), rows)
    load(tmp_path, {"encoder": encoder})
    with pytest.raises(UserError, match="holds only an encoder"):
        load(tmp_path, targets_of(checkpoint.open_t5(hf_folder())))


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize(("config", "scaled"), [(None, True), ({"scale_decoder_outputs": False}, False)])
def test_t5_golden_a_tied_head_is_the_table(config, scaled, equal, tmp_path):
    def change(stored):
        table = stored["shared.weight"]
        return (
            stored | {"lm_head.weight": table} if equal else {k: v for k, v in stored.items() if k != "lm_head.weight"}
        )

    found = read_all(hf_copy(tmp_path, change, config))
    factor = sizes_of("hf_checkpoint")[0].d_model ** -0.5 if scaled else 1
    np.testing.assert_allclose(found[HEAD], found[TABLE].T * factor, rtol=1e-6)


def test_t5_golden_an_untied_file_without_head_has_lost_it(tmp_path):
    def change(stored):
        return {name: value for name, value in stored.items() if name != "lm_head.weight"}

    folder = hf_copy(tmp_path, change, {"tie_word_embeddings": False})
    with pytest.raises(UserError, match=f"model.safetensors with 1 missing names .{HEAD}."):
        load(folder, targets_of(checkpoint.open_t5(hf_folder())))


def test_t5_golden_a_bias_for_each_layer_is_refused(tmp_path):
    name = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    with pytest.raises(UserError, match=f"a relative bias for each layer .{name}.*umT5"):
        checkpoint.open_t5(hf_copy(tmp_path, lambda stored: stored | {name: np.zeros((32, 4), np.float32)}))


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("dense_act_fn", "silu", "'gelu_new'"),  # Flan-UL2, whose tensors are those of a T5 v1.1
        ("feed_forward_proj", "gated-silu", "'gated-gelu'"),
        ("relative_attention_max_distance", 256, "128"),
        ("layer_norm_epsilon", 1e-5, "1e-06"),
    ],
)
def test_t5_golden_another_architecture_of_the_same_tensors_is_refused(name, value, wanted, tmp_path):
    folder = hf_copy(tmp_path, config={name: value})
    with pytest.raises(UserError, match=f"config.json with {name} = {value!r}; expected {wanted}, as in T5 v1.1"):
        checkpoint.open_t5(folder)


@pytest.mark.parametrize("config", [{"feed_forward_proj": "gated-gelu"}, {"dense_act_fn": "gelu_new"}, {}])
def test_t5_golden_configs_of_t5_are_taken(config, tmp_path):
    checkpoint.open_t5(hf_copy(tmp_path, config=config))


# ------------------------------------------------------------------------------------------ loading
def targets_of(source, rows=None):
    """Shapes of {"encoder", "prior"} as float32 for the sizes of a source."""
    config, base = sizes(source)
    encoder, prior = t5_shapes(config, base)
    if rows is not None:
        prior = t5_shapes(config, rows)[1]
    return {"encoder": encoder, "prior": prior}


def load(path, targets, num_pieces=1, base_vocab_size=None, seed=0):
    """By default all rows of the file's table are those before the vokens."""
    rows = sizes(checkpoint.open_t5(path))[1] if base_vocab_size is None else base_vocab_size
    return checkpoint.load_t5(path, targets, num_pieces=num_pieces, base_vocab_size=rows, seed=seed)


def forward(path, batch, tag=""):
    source = checkpoint.open_t5(path)
    config, rows = sizes(source)
    params = load(path, targets_of(source))
    captions, inputs = (jnp.asarray(batch[f"{tag}{stack}_input_tokens"]) for stack in ("encoder", "decoder"))
    states = Encoder(config, rows).apply({"params": params["encoder"]}, captions)
    _, logits = Decoder(config, rows).apply({"params": params["prior"]}, inputs, states, captions != PAD)
    return np.asarray(logits)[batch[f"{tag}decoder_target_tokens"] != PAD]


@pytest.mark.parametrize(("name", "golden"), [("t5x_checkpoint", "t5x_tiny"), ("hf_checkpoint", "hf_tiny")])
def test_t5_golden_imported_logits_equal(name, golden):
    batch = load_file(reference("golden", f"{golden}.safetensors"))
    valid = batch["short.decoder_target_tokens"] != PAD
    np.testing.assert_allclose(
        forward(reference(name), batch, "short."), batch["short.logits"][valid], rtol=0, atol=TOLERANCE
    )


def test_t5_golden_logits_of_the_upstream_file_equal():
    batch = load_file(reference("upstream_fixture", "golden.safetensors"))
    logits = forward(reference("upstream_fixture", "test_t5_tiny.checkpoint_0"), batch)
    valid = batch["decoder_target_tokens"] != PAD
    np.testing.assert_allclose(logits[:, :512], batch["logits_first_512"][valid], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(jax.nn.logsumexp(logits, axis=-1), batch["logsumexp"][valid], rtol=0, atol=TOLERANCE)


def test_t5_golden_loaded_parameters_are_the_file_stacked():
    source = checkpoint.open_t5(reference("t5x_checkpoint"))
    loaded = load(source.path, targets_of(source))
    same(to_flat(loaded["encoder"], loaded["prior"]), golden_params())


def test_t5_golden_stored_bfloat16_where_the_target_says_so():
    source = checkpoint.open_t5(reference("t5x_checkpoint"))
    target = targets_of(source)["encoder"]
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), target)
    loaded = load(source.path, {"encoder": half})["encoder"]
    expected = load(source.path, {"encoder": target})["encoder"]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), loaded, expected)


# --------------------------------------------------------------------------------------- vocabulary
def test_t5_golden_vokens_get_rows_near_the_mean_and_old_rows_stay():
    source = checkpoint.open_t5(reference("t5x_checkpoint"))
    config, rows = sizes(source)
    targets = targets_of(source, rows + 1000)
    first, again, other = (load(source.path, targets, seed=seed)["prior"] for seed in (0, 0, 1))
    for old, new, same_seed, other_seed in (
        (source.read(TABLE), *(np.asarray(p["token_embedder"]["embedding"]) for p in (first, again, other))),
        (source.read(HEAD).T, *(np.asarray(p["logits_dense"]["kernel"]).T for p in (first, again, other))),
    ):
        np.testing.assert_array_equal(new[:rows], old)
        np.testing.assert_array_equal(new, same_seed)
        assert not np.array_equal(new[rows:], other_seed[rows:])
        std = old.std(0)
        noise = (new[rows:] - old.mean(0)) / std
        np.testing.assert_allclose(np.mean(noise), 0, atol=5 * 0.02 / 1000**0.5 / config.d_model**0.5)
        np.testing.assert_allclose(np.std(noise, axis=0), 0.02, rtol=0.15)  # 1000 draws: five sigma is 11 %
    new = np.asarray(first["token_embedder"]["embedding"])[rows:], np.asarray(first["logits_dense"]["kernel"]).T[rows:]
    assert abs(np.corrcoef(*(np.ravel(part - part.mean(0)) for part in new))[0, 1]) < 0.05  # draws of their own


def test_padding_rows_that_a_file_lacks_are_the_same_in_both_tables():
    old = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    encoder, prior = (checkpoint.fit_rows(old, rows, 128, seed=3, purpose="t5_table") for rows in (128, 160))
    np.testing.assert_array_equal(encoder, prior[:128])
    np.testing.assert_array_equal(encoder[:100], old)


def test_padding_rows_of_a_file_do_not_become_vokens_but_our_own_rows_stay():
    old = np.random.default_rng(0).normal(size=(192, 8)).astype(np.float32)
    fitted = checkpoint.fit_rows(old, 256, 128, seed=3, purpose="t5_table")
    np.testing.assert_array_equal(fitted[:128], old[:128])
    assert not np.isin(old[128:], fitted).any()
    np.testing.assert_array_equal(checkpoint.fit_rows(old, 192, 128, seed=3, purpose="t5_table"), old)


def test_t5_golden_a_table_shorter_than_the_vocabulary_is_refused():
    source = checkpoint.open_t5(reference("t5x_checkpoint"))
    _, rows = sizes(source)
    message = f"{TABLE} has {rows} rows; expected one for each of the tokenizer's {rows + 1} pieces"
    with pytest.raises(UserError, match=message):
        load(source.path, targets_of(source), num_pieces=rows + 1)


# --------------------------------------------------------------------------------------- converting
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["t5x_checkpoint", "t5x_checkpoint_bf16", "hf_checkpoint"])
def test_t5_golden_round_trips_are_the_identity(name, form, tmp_path):
    given = read_all(reference(name))
    convert_t5(reference(name), tmp_path / "there", form)
    for back in ("t5x", "huggingface"):
        convert_t5(tmp_path / "there", tmp_path / back, back)
        same(read_all(tmp_path / back), given)
    source = checkpoint.open_t5(tmp_path / "there")
    ours, theirs = (load(path, targets_of(source)) for path in (tmp_path / "there", reference(name)))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_t5_golden_written_huggingface_folder_equals_the_one_of_transformers(tmp_path):
    convert_t5(hf_folder(), tmp_path / "t5x", "t5x")
    convert_t5(tmp_path / "t5x", tmp_path / "out", "huggingface")
    same(load_file(tmp_path / "out" / "model.safetensors"), load_file(hf_folder() / "model.safetensors"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = json.loads(reference("hf_checkpoint", "config.json").read_text())
    assert {key: expected[key] for key in config} == config


def test_t5_golden_written_t5x_folder_has_the_form_of_t5x(tmp_path):
    convert_t5(reference("t5x_checkpoint"), tmp_path / "out", "t5x")
    given, found = step_folder("t5x_checkpoint"), tmp_path / "out" / "checkpoint_0"
    trees = [serialization.msgpack_restore((folder / "checkpoint").read_bytes()) for folder in (given, found)]
    assert trees[0]["version"] == trees[1]["version"]
    assert set(trees[1]["optimizer"]["state"]) == {"step"}  # an empty param_states would break t5x
    assert of_one_chunk(trees[0]["optimizer"]["target"]) == of_one_chunk(trees[1]["optimizer"]["target"])
    for array in given.glob("target.*/.zarray"):
        headers = [json.loads((folder / array.parent.name / ".zarray").read_text()) for folder in (given, found)]
        assert of_one_chunk(headers[0]) == of_one_chunk(headers[1])
    same(read_all(found), read_all(given))


def of_one_chunk(tree):
    """A tree of specs whose arrays lie in one chunk each: in how many they do is no part of the form."""
    if not isinstance(tree, dict):
        return tree
    return {key: tree["shape"] if key == "chunks" else of_one_chunk(value) for key, value in tree.items()}


def test_t5_golden_a_folder_of_several_chunks_is_written_with_the_same_form(tmp_path, monkeypatch):
    monkeypatch.setattr(t5x, "_chunks", lambda array: [-(-n // 3) for n in array.shape])
    convert_t5(reference("t5x_checkpoint"), tmp_path / "out", "t5x")
    found = tmp_path / "out" / "checkpoint_0"
    assert len(list((found / f"target.{TABLE.replace('/', '.')}").glob("[0-9]*"))) == 9
    same(read_all(found), read_all(step_folder("t5x_checkpoint")))


def test_t5_golden_special_ids_are_those_of_transformers():
    message = json.loads(reference("hf_checkpoint", "generation_config.json").read_text())
    assert (message["decoder_start_token_id"], message["pad_token_id"], message["eos_token_id"]) == (PAD, PAD, EOS)


def test_large_arrays_are_written_in_chunks_of_64_mib():
    assert t5x._chunks(np.empty((40320, 2048), np.float32)) == [8192, 2048]
    assert t5x._chunks(np.empty((64,), np.float32)) == [64]


def test_t5_golden_two_tables_have_a_form_only_where_one_begins_with_the_other(tmp_path):
    source = checkpoint.open_t5(reference("t5x_checkpoint"))
    (config, rows), targets = sizes(source), targets_of(source, sizes(source)[1] + 32)
    loaded = load(source.path, targets)
    flat = {f"{stack}/{TABLE}": loaded[part]["token_embedder"]["embedding"] for part, stack in STACKS.items()}
    rest = {name: source.read(name) for name in source.names if name not in (TABLE, HEAD)}
    both = {name: np.asarray(value) for name, value in flat.items()} | rest
    both[HEAD] = np.asarray(loaded["prior"]["logits_dense"]["kernel"])
    plan = {p: layout(s, loaded[p], f"{s}/{TABLE}") for p, s in STACKS.items()}
    write_kaleido(Arrays(both), tmp_path / "ours", plan)
    same(read_all(tmp_path / "ours"), both)
    for form in ("t5x", "huggingface"):
        convert_t5(tmp_path / "ours", tmp_path / form, form)
        assert checkpoint.open_t5(tmp_path / form).shape(TABLE) == (rows + 32, config.d_model)
        jax.tree.map(np.testing.assert_array_equal, load(tmp_path / form, targets, base_vocab_size=rows), loaded)
    both[f"decoder/{TABLE}"] = both[f"decoder/{TABLE}"] + 1
    write_kaleido(Arrays(both), tmp_path / "trained", plan)
    shapes = (re.escape(str((size, config.d_model))) for size in (rows, rows + 32))
    with pytest.raises(UserError, match="tables of encoder {} and decoder {} that differ".format(*shapes)):
        convert_t5(tmp_path / "trained", tmp_path / "refused", "huggingface")
    assert not (tmp_path / "refused").exists()
    convert_t5(tmp_path / "trained", tmp_path / "two", "t5x")  # for interop.t5x_network
    same(read_all(tmp_path / "two"), both)


def test_t5_golden_a_folder_with_files_is_not_written_over(tmp_path):
    (tmp_path / "mine.txt").write_text("dear")
    with pytest.raises(UserError, match="exists"):
        convert_t5(reference("t5x_checkpoint"), tmp_path, "t5x")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_t5_golden_convert_from_the_command_line(tmp_path, capsys):
    flags = [f"--input={reference('t5x_checkpoint')}", f"--output={tmp_path / 'out'}", "--format=huggingface"]
    main.main(["convert", *flags])
    config, _ = sizes_of("t5x_checkpoint")
    count = 6 + 9 * config.num_encoder_layers + 14 * config.num_decoder_layers
    assert f"{count} tensors" in capsys.readouterr().out
    for wrong, message in (
        (flags[:2], "no --format"),
        ([*flags, "--config=x.py"], "unknown flag --config"),
        ([*flags, "--format=pickle"], "--format=pickle; expected one of t5x, huggingface, kaleido, mdm"),
    ):
        with pytest.raises(UserError, match=message):
            main.parse_flags(convert, wrong)


# ------------------------------------------------------------------------------------------ damage
KERNEL = "encoder/layers_0/mlp/wo/kernel"


def test_t5_golden_damaged_t5x_folders_are_refused_in_one_line(tmp_path):
    folder = copied(tmp_path)
    place = folder / f"target.{KERNEL.replace('/', '.')}"
    chunk, hidden = place / "0.0", place / ".zarray"
    if not hidden.is_file():
        pytest.skip("t5x_checkpoint has no .zarray files")
    whole, header, targets = chunk.read_bytes(), json.loads(hidden.read_text()), targets_of(checkpoint.open_t5(folder))
    config, _ = sizes_of("t5x_checkpoint")

    def message(path=folder):
        with pytest.raises(UserError) as caught:
            load(path, targets)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    chunk.write_bytes(whole[: len(whole) // 2])
    assert KERNEL in message() and str(place) in message() and "cannot be read" in message()
    chunk.unlink()
    assert KERNEL in message() and "chunk 0.0 is missing" in message()
    chunk.write_bytes(whole)
    hidden.write_text(json.dumps(header | {"shape": [config.d_ff - 1, config.d_model]}))
    for rows in (config.d_ff - 1, config.d_ff):
        assert KERNEL in message() and str((rows, config.d_model)) in message()
    hidden.write_text("<html>")
    assert KERNEL in message() and str(place) in message()
    shutil.rmtree(place)
    assert KERNEL in message() and str(folder / "checkpoint") in message()
    (folder / "checkpoint").write_bytes((folder / "checkpoint").read_bytes()[:99])
    assert "not a t5x checkpoint" in message() and str(folder / "checkpoint") in message()
    (folder / "checkpoint").write_bytes(b"model_checkpoint_path: 'model.ckpt-1'")
    assert "not a t5x checkpoint" in message()


def test_t5_golden_other_names_and_shapes_are_refused_in_one_line(tmp_path):
    targets = targets_of(checkpoint.open_t5(hf_folder()))
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    config, rows = sizes_of("hf_checkpoint")
    d, f = config.d_model, config.d_ff

    def message(change):
        with pytest.raises(UserError) as caught:
            load(hf_copy(tmp_path, change), targets)
        assert "\n" not in str(caught.value) and "model.safetensors" in str(caught.value)
        return str(caught.value)

    assert f"1 missing names ({KERNEL})" in message(lambda s: {k: v for k, v in s.items() if k != name})
    assert "1 unknown names (lora.weight)" in message(lambda s: s | {"lora.weight": np.zeros(1, np.float32)})
    shape = message(lambda s: s | {name: np.zeros((d, f - 1), np.float32)})
    assert f"{KERNEL} has shape {(f - 1, d)}; expected {(f, d)}" in shape
    head = message(lambda s: s | {"lm_head.weight": np.zeros((rows + 2, d), np.float32)})
    assert f"{HEAD} has shape {(d, rows + 2)}; expected {(d, rows)}" in head


@pytest.mark.parametrize(
    "content", [b"\x80\x02}q\x00.", b"PK\x03\x04zip of torch", b"<html><body>404</body></html>", b""]
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "folder"])
def test_files_that_are_no_safetensors_are_refused_in_one_line(name, content, tmp_path):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "pytorch_model.bin").write_bytes(content)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        checkpoint.open_t5(path)
    pickled = name != "model.safetensors" or content[:1] in (b"\x80", b"P")
    assert ("pickle" in str(caught.value)) == pickled
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_safetensors_header_that_starts_like_a_pickle_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    for length in range(200):
        save_file({"a" * 300: np.zeros(1, np.float32)}, path, metadata={"x": "y" * (200 + length)})
        if path.read_bytes()[:2] == b"\x80\x02":
            assert not safetensors.is_pickle(path)
            return
    raise AssertionError("no such header was made")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_safetensors_are_not_mapped_once_a_tensor_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.arange(64, dtype=np.float32)}, path)
    files = safetensors.Safetensors(path)
    array = files.read("a")
    assert str(path) not in Path("/proc/self/maps").read_text()  # else its pages would stay beside the arrays
    np.testing.assert_array_equal(array, np.arange(64))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        files.read("a")


def test_truncated_safetensors_and_indices_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(64, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        checkpoint.open_t5(path)
    index = tmp_path / safetensors.INDEX
    for text, message in (
        ("<html>", "index.json is damaged"),
        ("[" * 100_000, "index.json is damaged"),
        ("{}", "index.json is damaged"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "points to '../model.safetensors'"),
    ):
        index.write_text(text)
        with pytest.raises(UserError, match=message):
            checkpoint.open_t5(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "<html>"])
def test_a_damaged_config_is_refused(content, tmp_path):
    shutil.copytree(hf_folder(), tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config.json is damaged \(.*\); expected the model's config in JSON; "):
        checkpoint.open_t5(tmp_path / "hf")


# ------------------------------------------------------------------- weights that are none of a model
QUANTIZED = ("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL")


def with_dtype(path, dtype):
    """A safetensors file whose tensors are of zeros in a type of one byte, written by hand as numpy lacks some."""
    shapes = {name: list(value.shape) for name, value in load_file(hf_folder() / "model.safetensors").items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(end))


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_t5_golden_quantized_safetensors_are_refused_by_type(dtype, tmp_path):
    with_dtype(tmp_path / "model.safetensors", dtype)
    with pytest.raises(UserError, match=f"is stored as {dtype}; expected one of float64, .*before quant"):
        convert_t5(tmp_path, tmp_path / "out", "kaleido")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "int16"])
def test_t5_golden_quantized_t5x_is_refused_by_type(dtype, tmp_path):
    flat = {name: value.astype(dtype) for name, value in golden_params().items()}
    tree = {"version": 3, "optimizer": {"target": unflatten_dict(flat, sep="/"), "state": {"step": np.int32(0)}}}
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(UserError, match=f"is stored as {dtype}; expected one of float64"):
        load(tmp_path, targets_of(checkpoint.open_t5(tmp_path)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_t5_golden_weights_that_are_not_finite_are_refused_by_name(value, dtype, tmp_path):
    def change(stored):
        stored = {name: value.astype(jnp.dtype(dtype)) for name, value in stored.items()}
        stored["shared.weight"][3, 1] = value
        return stored

    folder = hf_copy(tmp_path, change)
    for work in (
        lambda: load(folder, targets_of(checkpoint.open_t5(folder))),
        lambda: convert_t5(folder, tmp_path / "out", "t5x"),
    ):
        with pytest.raises(UserError, match=f"{TABLE} holds NaN or infinity; expected finite weights"):
            work()
    assert not (tmp_path / "out").exists()


def test_weights_whose_sum_overflows_are_finite(tmp_path):
    flat = {"a": np.full(8, 3e38, np.float32), "b": np.zeros((0, 4), np.float32)}
    for name, value in flat.items():
        np.testing.assert_array_equal(read_weight(Arrays(flat), name), value)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def test_t5_golden_pointers_of_git_lfs_are_refused(tmp_path):
    places = ("model.safetensors", "config.json", "model.safetensors.index.json")
    for place in places:
        folder = tmp_path / place.replace(".", "_")
        shutil.copytree(hf_folder(), folder)
        (folder / place).write_bytes(POINTER)
        with pytest.raises(UserError, match=f"{place} is a git-LFS pointer; .*git lfs pull"):
            checkpoint.open_t5(folder)
    folder = copied(tmp_path)
    targets = targets_of(checkpoint.open_t5(folder))
    chunk = folder / f"target.{KERNEL.replace('/', '.')}" / "0.0"
    for file in (chunk, folder / "checkpoint"):
        file.write_bytes(POINTER)
        with pytest.raises(UserError, match=f"{file.name} is a git-LFS pointer"):
            load(folder, targets)


def test_t5_golden_where_nothing_can_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for output in ("/proc/x", tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("a" * 300)):
        with pytest.raises(UserError, match="--output=") as caught:
            convert_t5(reference("t5x_checkpoint"), Path(output), "t5x")
        assert "\n" not in str(caught.value)
    for form in FORMATS:
        with pytest.raises(UserError, match="nothing can be written to --output=.*out") as caught, full_disk():
            convert_t5(reference("t5x_checkpoint"), tmp_path / "out", form)
        assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_at_the_path_is_reported(tmp_path):
    with pytest.raises(UserError, match="no T5 checkpoint at .*gone"):
        checkpoint.open_t5(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no T5 checkpoint.* or --input of convert"):
        checkpoint.open_t5(tmp_path)


def test_t5_golden_safetensors_under_another_name_are_recognized(tmp_path):
    shutil.copy(hf_folder() / "model.safetensors", tmp_path / "0a1b2c")  # as a blob of the Hub's cache
    assert checkpoint.open_t5(tmp_path / "0a1b2c").names == checkpoint.open_t5(hf_folder()).names
    assert not holds_denoiser(tmp_path / "0a1b2c") and not holds_denoiser(tmp_path / "gone")


def test_t5_golden_hidden_files_beside_the_weights_are_none(tmp_path):
    shutil.copy(hf_folder() / "model.safetensors", tmp_path / "t5.safetensors")
    (tmp_path / "._t5.safetensors").write_bytes(b"\0\5\x16\7Mac OS X")
    assert checkpoint.open_t5(tmp_path).names == checkpoint.open_t5(hf_folder()).names


def test_a_stack_of_layers_without_an_axis_is_refused(tmp_path):
    save_file({"encoder/layers/x": np.zeros((), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="without a matrix"):
        convert_t5(tmp_path, tmp_path / "out", "t5x")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("flax_model.msgpack", b"\x81\xa6shared\x01", "not a t5x checkpoint .*; take t5x's files or safetensors"),
        ("model.gguf", b"GGUF" + bytes(50), "not a t5x checkpoint .*; take t5x's files or safetensors"),
        ("config.json", b"{}", "no index; expected an index with a weight_map; name the folder or file of the weights"),
    ],
)
def test_files_of_other_formats_are_told_what_is_read(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        checkpoint.open_t5(tmp_path / name)


# ----------------------------------------------------------------------------- the start of a model
def toy(path, trainable, precision="bfloat16"):
    """The toy's config, started from a checkpoint of its sizes with random numbers."""
    from examples.figure3 import get_config

    config = get_config()
    config.model.t5.checkpoint = str(path)
    config.model.t5.encoder.trainable = trainable
    config.model.precision = precision
    return validate(config)


@pytest.fixture
def t5_file(tmp_path):
    """(path, t5x name -> array) of random weights for the toy's T5."""
    t5 = toy(tmp_path, True).model.t5
    rows = load_tokenizer(t5.vocabulary, 4).base_vocab_size
    rng = np.random.default_rng(5)
    shapes = expected_shapes(layouts(t5, rows))
    flat = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    huggingface.write_huggingface(Arrays(flat), tmp_path / "t5")
    return tmp_path / "t5", flat


def start(config, **options):
    model = build_model(config, load_tokenizer(config.model.t5.vocabulary, 4).base_vocab_size)
    return create_state(
        config, model, make_optimizer(config.train), make_mesh(mesh_sizes(config.mesh, jax.device_count())), **options
    )


def test_a_frozen_encoder_and_the_prior_start_from_the_checkpoint(t5_file):
    path, flat = t5_file
    state, frozen, _ = start(toy(path, trainable=False))
    assert set(frozen) == {"encoder"} and set(state.params) == set(state.ema) == {"prior", "denoiser"}
    for part, leaf in flatten_dict(frozen["encoder"]).items():
        full = part[-1] in ("scale", "rel_embedding")
        assert leaf.dtype == (jnp.float32 if full else jnp.bfloat16), part
    expected, _ = t5x.from_flat(flat, toy(path, trainable=True).model.t5)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), frozen["encoder"], expected)
    for tree in (state.params, state.ema):
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tree))
        np.testing.assert_array_equal(
            tree["prior"]["layers"]["mlp"]["wo"]["kernel"][0], flat["decoder/layers_0/mlp/wo/kernel"]
        )
        np.testing.assert_array_equal(tree["prior"]["token_embedder"]["embedding"][: len(flat[TABLE])], flat[TABLE])
    assert any("mu" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state))
    moved = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), moved, state.ema)  # buffers of their own


def test_weights_of_another_vocabulary_are_refused(t5_file):
    path, _ = t5_file
    for other, name in (("emoji", "t5"), ("t5", "emoji")):
        (path / "spiece.model").write_bytes(load_tokenizer(other, 0).model)
        tokenizer = load_tokenizer(name, 4)
        for given in (path, path / "model.safetensors"):
            with pytest.raises(UserError, match=r"a vocabulary of \d+ pieces .spiece.model.*expected .*vocabulary, of"):
                checkpoint.check_vocabulary(given, tokenizer)
        (path / "spiece.model").write_bytes(tokenizer.model)
        checkpoint.check_vocabulary(path, tokenizer)
    (path / "spiece.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    checkpoint.check_vocabulary(path, tokenizer)  # which says nothing
    (path / "spiece.model").write_bytes(load_tokenizer("t5", 0).model)
    with pytest.raises(UserError, match="set config.model.t5.vocabulary to .*spiece.model"):
        start(toy(path, trainable=False))


def test_a_trainable_encoder_starts_from_the_checkpoint_and_is_float32(t5_file):
    path, flat = t5_file
    state, frozen, _ = start(toy(path, trainable=True))
    assert frozen == {}
    found = state.params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found[0], flat["encoder/layers_0/mlp/wo/kernel"])


def test_a_state_that_is_restored_afterwards_loads_the_frozen_part_alone(t5_file):
    path, flat = t5_file
    state, frozen, _ = start(toy(path, trainable=False, precision="float32"), fresh=False)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding for leaf in jax.tree.leaves(state))
    np.testing.assert_array_equal(
        frozen["encoder"]["layers"]["mlp"]["wo"]["kernel"][0], flat["encoder/layers_0/mlp/wo/kernel"]
    )


def test_the_rest_of_the_model_is_drawn_as_without_a_checkpoint(t5_file):
    path, _ = t5_file
    config = toy(path, trainable=True)
    t5 = dataclasses.replace(config.model.t5, checkpoint=None)
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, t5=t5))
    states = [start(c)[0].params["denoiser"] for c in (config, plain)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_the_pipeline_takes_a_frozen_encoder_from_the_checkpoint(t5_file, tmp_path):
    path, _ = t5_file
    config = toy(path, trainable=False)
    state, frozen, _ = start(config)
    saved = ocp.args.Composite(state=ocp.args.StandardSave(state))
    with checkpoints.open_manager(tmp_path, checkpoints.Settings(config.train.keep_checkpoints)) as manager:
        manager.save(1, args=saved)
    pipeline = KaleidoPipeline.from_pretrained(tmp_path, config)
    assert set(pipeline.params) == {"encoder", "prior", "denoiser"}
    jax.tree.map(np.testing.assert_array_equal, pipeline.params["encoder"], frozen["encoder"])
    shutil.rmtree(path)
    with pytest.raises(UserError, match="no T5 checkpoint at"):
        KaleidoPipeline.from_pretrained(tmp_path, config)


def test_weights_that_are_not_there_are_reported_before_anything_starts(tmp_path):
    for trainable in (False, True):
        with pytest.raises(UserError, match="gone' is not on this machine"):
            check_weights(toy(tmp_path / "gone", trainable))
    check_weights(toy(tmp_path, trainable=True))


class Held(Arrays):
    """Counts the bytes of tensors that are alive."""

    alive, most = 0, 0

    def read(self, name):
        array = self.flat[name].copy()
        Held.alive += array.nbytes
        Held.most = max(Held.most, Held.alive)
        weakref.finalize(array, self._gone, array.nbytes)
        return array

    @staticmethod
    def _gone(nbytes):
        Held.alive -= nbytes


def test_loading_holds_one_tensor_of_the_file_at_a_time(t5_file, monkeypatch):
    path, flat = t5_file
    t5 = toy(path, trainable=True).model.t5
    monkeypatch.setattr(checkpoint, "open_t5", lambda _: Held(flat))
    half = jax.tree.map(  # another type, so that nothing of the file can be a parameter's memory
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), t5_shapes(t5, len(flat[TABLE]))
    )
    load(path, dict(zip(STACKS, half, strict=True)), base_vocab_size=len(flat[TABLE]))
    assert 0 < Held.most <= 2 * max(value.nbytes for value in flat.values())


@pytest.mark.slow
def test_training_with_a_frozen_encoder_goes_on_from_its_checkpoint(t5_file, tmp_path):
    path, flat = t5_file
    config = toy(path, trainable=False)
    tokenizer = load_tokenizer("emoji", 4)
    targets = np.full((8, 2), [tokenizer.base_vocab_size, 1], np.int32)
    batch = {
        "image": np.zeros((8, 2), np.float32),
        "encoder_input_tokens": np.full((8, 4), 5, np.int32),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones((8, 2), np.float32),
        "sample_id": np.arange(8),
    }

    def train(num_steps):
        again = dataclasses.replace(config.train, num_steps=num_steps, batch_size=8, log_every_steps=1)
        batches = iter(grain.MapDataset.source([batch] * 8).to_iter_dataset())
        return loop.train(dataclasses.replace(config, train=again), tmp_path, tokenizer, batches)

    first, second = train(1), train(2)
    assert (int(first.step), int(second.step)) == (1, 2)
    assert set(second.params) == set(second.ema) == {"prior", "denoiser"}
    for state in (first, second):  # small steps from the file's numbers, not from drawn ones
        kernel = np.asarray(state.params["prior"]["layers"]["mlp"]["wo"]["kernel"][0])
        np.testing.assert_allclose(kernel, flat["decoder/layers_0/mlp/wo/kernel"], atol=1e-3)
    stored = ocp.PyTreeCheckpointer().restore((tmp_path / "checkpoints" / "2" / "state").absolute())
    assert set(stored["params"]) == set(stored["ema"]) == {"prior", "denoiser"}
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(stored)]
    assert any("['mu']['prior']" in path for path in paths) and not any("['encoder']" in path for path in paths)


SHARDED = """
import jax, numpy as np
from tests.interop.t5.test_t5_checkpoints import start, toy
from kaleido_jax.config import schema as cfg
import dataclasses
config = dataclasses.replace(toy({path!r}, trainable=False), mesh=cfg.Mesh(data=2, fsdp=2, tensor=2))
state, frozen, (shardings, frozen_shardings) = start(config)
kernel = state.params["prior"]["layers"]["mlp"]["wi_0"]["kernel"]
assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor"), kernel.sharding
same = jax.tree.map(lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim), frozen, frozen_shardings)
assert all(jax.tree.leaves(same)), same
sums = [float(np.abs(np.asarray(leaf, np.float64)).sum()) for leaf in jax.tree.leaves((frozen, state.params["prior"]))]
print("sums", sums)
"""


@pytest.mark.slow
def test_eight_devices_hold_the_same_weights_as_one(t5_file, eight_devices):
    path, _ = t5_file
    state, frozen, _ = start(toy(path, trainable=False))
    leaves = jax.tree.leaves((frozen, state.params["prior"]))
    sums = [float(np.abs(np.asarray(leaf, np.float64)).sum()) for leaf in leaves]
    assert f"sums {sums}" in eight_devices(SHARDED.format(path=str(path)))
