"""What the fuzzers found: each of these inputs once ended in a traceback."""

import io
import json
import tracemalloc
import zipfile

import msgpack
import numpy as np
import pytest
from flax import serialization

from kaleido_jax.errors import UserError
from kaleido_jax.interop.files.weights import open_weights
from kaleido_jax.latents.address import assign
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.validity import LatentsError
from tests.fuzz.targets import TARGETS, probe
from tests.interop.files import torch_files


def changed(target, *path, value):
    """A seed of JSON or msgpack with another value at a place."""
    pack, unpack = (json.dumps, json.loads) if target.form == "json" else (msgpack.packb, msgpack.unpackb)
    whole = inner = unpack(target.seeds[0])
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    made = pack(whole)
    return made.encode() if isinstance(made, str) else made


def of_a_newer_zip(content):
    """A zip whose directory asks for version 23.3, which zipfile answers with NotImplementedError."""
    place = content.index(b"PK\x01\x02") + 6
    return content[:place] + b"\xe9\x00" + content[place + 2 :]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("caption_tokens",), ["a"]),
        (("caption_tokens",), {"a": 1}),
        (("caption_tokens",), [2**63]),
        (("caption_tokens",), [-1]),
        (("caption_tokens",), [0.5]),
        (("tokens", "bbox"), True),
        (("tokens",), []),
        (("shorter_side_px",), "a"),
        (("id",), None),
    ],
)
def test_a_record_of_other_types_is_damaged_where_another_can_stand_in(tmp_path, path, value):
    target = TARGETS["sample"](tmp_path)
    assert "record 0" in probe(target, changed(target, *path, value=value))


def test_an_image_of_another_size_is_damaged_before_it_is_decoded(tmp_path):
    from PIL import Image

    target, out = TARGETS["sample"](tmp_path), io.BytesIO()
    Image.new("RGB", (9_000, 9_000)).save(out, "png")
    assert "9000 x 9000 px" in probe(target, changed(target, "image", value=out.getvalue()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("counts",), {"text": {}}),
        (("max_tokens", "text"), -1),
        (("source",), {}),
        (("source", "image_size"), {}),
        (("source", "image_size"), 0),
        (("shards", 0, "records"), -3),
        (("shards", 0, "file"), "../a.array_record"),
        (("shards", 0, "file"), "a\0b"),
        (("version",), {"a": 1}),
    ],
)
def test_a_manifest_of_other_types_is_damaged(tmp_path, path, value):
    target = TARGETS["manifest"](tmp_path)
    assert "manifest.json" in probe(target, changed(target, *path, value=value))


def test_a_manifest_without_shards_holds_no_records(tmp_path):
    target = TARGETS["manifest"](tmp_path)
    whole = json.loads(target.seeds[0]) | {"shards": [], "counts": dict.fromkeys(("text", "bbox", "blob", "voken"), 0)}
    assert "no records" in probe(target, json.dumps(whole).encode())


def test_a_manifest_without_the_longest_lengths_is_read_record_by_record(tmp_path):
    target = TARGETS["manifest"](tmp_path)
    assert probe(target, changed(target, "max_tokens", value={})) is None


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"\x93NUMPY", b""])
def test_damaged_lengths_are_made_again(tmp_path, content):
    target = TARGETS["lengths"](tmp_path)
    assert probe(target, content) is None
    newer = of_a_newer_zip(target.seeds[0])  # zipfile: NotImplementedError
    assert probe(target, newer) is None


@pytest.mark.parametrize("pair", [[], [1], [1, 1], [1, 0, 0]])
def test_a_recipe_with_a_strange_batch_is_refused(tmp_path, pair):
    target = TARGETS["recipe_json"](tmp_path)
    assert "a batch" in probe(target, changed(target, "rows", 0, "batch", 0, "captions", value=pair))


@pytest.mark.parametrize(
    "leaf", [7, "a", None, {"driver": "zarr", "metadata": {}}, {"driver": 1, "metadata": []}, {1: 2}]
)
def test_a_t5x_leaf_that_is_no_array_is_refused(tmp_path, leaf):
    target = TARGETS["t5x"](tmp_path)
    assert "not a t5x checkpoint" in probe(target, msgpack.packb({"target": {"encoder": {"scale": leaf}}}))


def test_a_t5x_shape_of_lists_is_refused(tmp_path):
    spec = {"driver": "zarr", "dtype": "float32", "metadata": {"shape": [[2, 3]], "chunks": [2, 3]}}
    content = serialization.msgpack_serialize({"target": {"encoder": {"scale": spec}}})
    assert "not a t5x checkpoint" in probe(TARGETS["t5x"](tmp_path), content)


@pytest.mark.parametrize("dtype", [",loat32", "(,)f4", "(" * 300 + "f4"])
def test_a_t5x_type_that_numpy_cannot_parse_is_refused(tmp_path, dtype):
    target = TARGETS["t5x"](tmp_path)
    assert "not a t5x checkpoint" in probe(target, target.seeds[0].replace(b"\xa7float32", msgpack.packb(dtype)))
    spec = {"driver": "zarr", "dtype": dtype, "metadata": {"shape": [3], "chunks": [3]}}
    (tmp_path / "checkpoint_0" / "target.encoder.scale").mkdir(exist_ok=True)  # without a .zarray
    content = msgpack.packb({"target": {"encoder": {"scale": spec}}})
    assert "cannot be read" in probe(target, content)


@pytest.mark.parametrize("name", ["x" * 300, "\ud83d"])
def test_a_t5x_name_that_no_folder_can_have_is_refused(tmp_path, name):
    spec = {"driver": "zarr", "dtype": "float32", "metadata": {"shape": [3], "chunks": [3]}}
    tree = {"target": {"encoder": {name: spec}}}
    content = msgpack.packb(tree, unicode_errors="surrogatepass")
    assert "not a t5x checkpoint" in probe(TARGETS["t5x"](tmp_path), content)


@pytest.mark.parametrize(
    ("path", "value"),
    [(("chunks",), [0]), (("compressor", "id"), 10**30), (("compressor", "id"), "\ud83d"), (("chunks",), [])]
    + [(("chunks",), [2**53])]  # the process ended where room for a chunk was made
    + [
        (("chunks",), [2**31, [0]]),
        (("chunks",), 4),
        (("chunks",), [True]),
    ],  # the product repeats the list 2**31 times
)
def test_a_strange_zarray_is_refused(tmp_path, path, value):
    target = TARGETS["zarray"](tmp_path)
    assert "cannot be read" in probe(target, changed(target, *path, value=value))


def test_an_index_with_a_name_that_no_file_has_is_refused(tmp_path):
    target = TARGETS["safetensors_index"](tmp_path)
    for name in ("x" * 300, "\ud83d" * 100):
        content = json.dumps({"weight_map": {"a.weight": name}}).encode()
        assert "a file beside it" in probe(target, content) or "no file" in probe(target, content)


def test_an_npz_with_something_else_or_a_huge_header_is_refused(tmp_path):
    target, out = TARGETS["npz"](tmp_path), io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.weight", b"no array")
    assert "cannot be read" in probe(target, out.getvalue())
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (2**50,)})
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("a.weight.npy", out.getvalue())
    assert "cannot be read" in probe(target, zipped.getvalue())  # MemoryError
    assert "cannot be read" in probe(target, of_a_newer_zip(target.seeds[0]))


@pytest.mark.parametrize("opcode", [b"\x96", b"\x8e", b"\x8d", b"B", b"X", b"T"])  # lengths of 8 and of 4 bytes
def test_an_old_torch_file_that_claims_huge_bytes_makes_no_room_for_them(tmp_path, opcode):
    target = TARGETS["torch_legacy"](tmp_path)
    length = (2**31 - 1).to_bytes(4, "little") if opcode in b"BXT" else (2**40).to_bytes(8, "little")
    place = target.seeds[0].index(b"protocol_version") + len(b"protocol_version")
    content = target.seeds[0][:place] + opcode + length + target.seeds[0][place:]
    tracemalloc.start()
    try:
        assert "damaged" in probe(target, content)  # MemoryError, or as many bytes as the machine has
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_an_address_with_a_number_of_thousands_of_digits_is_read():
    z = Latents(bbox=(Box("x", (0, 0, 10, 10)),))
    assert assign(z, f"bbox.{'0' * 6000}.phrase", "y").bbox[0].phrase == "y"
    with pytest.raises(LatentsError, match="no '9{10}"):
        assign(z, f"bbox.{'9' * 6000}.phrase", "y")


def test_a_query_that_is_not_ascii_is_refused_by_the_studio(tmp_path):
    read = TARGETS["studio"](tmp_path).read
    for path in ("/api/model", "/static/a/", "/nothing/"):
        read(f"GET {path}?s=\xc3 HTTP/1.1\nhost: 127.0.0.1\n\n".encode("latin-1"))


def test_a_config_whose_vocabulary_has_a_name_too_long_for_a_file_is_read(tmp_path):
    target = TARGETS["config_json"](tmp_path)
    assert probe(target, json.dumps({"model": {"t5": {"vocabulary": "x" * 300}}}).encode()) is None


@pytest.mark.parametrize("value", ["9" * 400, "-" + "9" * 400])
@pytest.mark.parametrize("path", [("train", "batch_size"), ("train", "eta"), ("seed",), ("sample", "cads_tau")])
def test_a_number_too_large_for_a_float_is_refused(tmp_path, path, value):
    number = f"[0.5, {value}]" if path[-1] == "cads_tau" else value
    for name in reversed(path):
        number = f'{{"{name}": {number}}}'
    found = probe(TARGETS["config_json"](tmp_path), number.encode())
    assert found.startswith(f"config.{'.'.join(path)}") and "expected" in found and len(found) < 200


@pytest.mark.parametrize("name", ["", ".", "x" * 300])
def test_a_shard_whose_name_is_no_files_is_missing(tmp_path, name):
    target = TARGETS["manifest"](tmp_path)
    assert "is missing" in probe(target, changed(target, "shards", 0, "file", value=name))


def test_an_empty_tensor_without_its_storage_is_damage(tmp_path):
    path = torch_files.write(tmp_path / "x.pth", {"a.weight": np.ones(2, np.float32), "a.none": np.ones(0, np.float32)})
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    emptied = [name for name, content in entries.items() if "/data/" in name and not content]
    assert len(emptied) == 1 and open_weights(path, "weights").read("a.none").shape == (0,)
    with zipfile.ZipFile(path, "w") as file:
        for name in entries.keys() - {*emptied}:
            file.writestr(name, entries[name])
    with pytest.raises(UserError, match="no storage of a.none"):
        open_weights(path, "weights")
