"""Torch's files are data here: what they hold is read, what they would run is not."""

import contextlib
import os
import pickle
import pickletools
import random
import zipfile

import ml_dtypes
import numpy as np
import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.interop.files import inert_pickle
from kaleido_jax.interop.files.torch_zip import TorchZip
from tests.interop.files import torch_files
from tests.interop.files.torch_files import Raw, call

STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(3, np.float32)}


def read(path):
    file = TorchZip(path)
    return {name: file.read(name) for name in file.names}


def refused(path, message):
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(caught.value).count(";") >= 2 and len(str(caught.value)) < 600
    return str(caught.value)


# --------------------------------------------------------------------------------------- what is read
@pytest.mark.parametrize("kind", [*torch_files.STORAGES])
def test_every_type_is_read_as_it_is(tmp_path, kind):
    array = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, kind, kind))
    found = read(torch_files.write(tmp_path / "x.pth", {"x": array}))["x"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_strides_and_offset_are_honored(tmp_path):
    storages, base = {}, np.arange(12, dtype=np.float32)
    view = torch_files.tensor(base, storages, shape=(3, 2), strides=(1, 4), offset=2)
    path = torch_files.write(tmp_path / "x.pth", {"x": view}, storages)
    np.testing.assert_array_equal(read(path)["x"], np.lib.stride_tricks.as_strided(base[2:], (3, 2), (4, 16)))


def test_parameters_scalars_and_empty_tensors_are_read(tmp_path):
    storages = {}
    wrapped = torch_files.tensor(STATE["a.bias"], storages)
    state = {
        "p": Raw(b"ctorch._utils\n_rebuild_parameter\n(" + wrapped + b"\x88ccollections\nOrderedDict\n)RtR"),
        "scalar": np.array(3.0, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    found = read(torch_files.write(tmp_path / "x.pth", state, storages))
    np.testing.assert_array_equal(found["p"], STATE["a.bias"])
    assert found["scalar"].shape == () and found["scalar"] == 3 and found["empty"].shape == (0, 4)


def test_files_of_torch_itself_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    import collections

    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = collections.OrderedDict(
        plain=base, turned=base.t(), part=base[1:3, ::2], half=base.half(), brain=base.bfloat16(), long=base.long()
    )
    state["parameter"] = torch.nn.Parameter(base)
    torch.save({"state_dict": state, "batch_num": 7, "args": collections.Counter(a=1)}, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")
    assert found.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), value.detach().float().numpy(), err_msg=name)


def test_the_tensors_of_a_module_with_metadata_are_read(tmp_path):
    storages = {}
    items = b"".join(torch_files.program(x, storages) for item in STATE.items() for x in item)
    ordered = b"ccollections\nOrderedDict\n)R(" + items + b"u}" + torch_files.program("_metadata") + b"Nsb"
    found = read(torch_files.write(tmp_path / "x.pth", {"state_dict": Raw(ordered), "loss": None}, storages))
    np.testing.assert_array_equal(found["a.weight"], STATE["a.weight"])


def test_a_cyclic_pickle_ends(tmp_path):
    code = Raw(b"}q\x00" + torch_files.program("args") + b"h\x00s" + torch_files.program("state_dict") + b"}s")
    refused(torch_files.write(tmp_path / "x.pth", code), "holds no state dict")


# ---------------------------------------------------------------------------------- what is never run
class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def fragment(value, protocol=2):
    """A pickle of Python's own, without its head and end."""
    return Raw(pickle.dumps(value, protocol)[2:-1])


@pytest.mark.parametrize("place", ["root", "state dict", "tensor", "args", "deep in args", "storage"])
def test_a_reduce_never_runs(tmp_path, place):
    marker, storages = tmp_path / "marker", {}
    bad = fragment(Malicious(marker))
    values = {
        "root": bad,
        "state dict": {"state_dict": bad},
        "tensor": {"state_dict": STATE | {"b": bad}},
        "args": {"state_dict": STATE, "args": bad},
        "deep in args": {"state_dict": STATE, "args": {"a": (1, {"b": call("reader", "Config", bad, (bad, bad))})}},
        "storage": {"x": Raw(b"ctorch._utils\n_rebuild_tensor_v2\n((" + bad + b"tQtR")},
    }
    path = torch_files.write(tmp_path / "x.pth", values[place], storages)
    if "args" in place:
        np.testing.assert_array_equal(read(path)["a.weight"], STATE["a.weight"])
    else:
        refused(path, "x.pth")
    assert not marker.exists()


def dangerous(marker):
    code = f"open({str(marker)!r}, 'w')"
    touch = f"touch {marker}"
    getter = call("builtins", "getattr", Raw(b"cbuiltins\n__import__\n"), "__call__")
    return {
        "eval": call("builtins", "eval", code),
        "exec": call("builtins", "exec", code),
        "getattr": Raw(getter + torch_files.program(("os",)) + b"R"),
        "system": call("posix", "system", touch),
        "python 2": call("__builtin__", "eval", code),
        "stack global": Raw(
            torch_files.program("os") + torch_files.program("system") + b"\x93" + torch_files.program((touch,)) + b"R"
        ),
        "newobj": Raw(b"csubprocess\nPopen\n" + torch_files.program((touch,)) + b"\x81"),
        "inst": Raw(b"(" + torch_files.program(touch) + b"ios\nsystem\n"),
        "obj": Raw(b"(cos\nsystem\n" + torch_files.program(touch) + b"o"),
        "build": Raw(b"cargparse\nNamespace\n)\x81}" + torch_files.program("x") + b"Nsb"),
        "build on a function": Raw(b"ctorch._utils\n_rebuild_tensor_v2\n}" + torch_files.program("__code__") + b"Nsb"),
        "call of torch": call("torch", "load", str(marker)),
        "codecs": call("_codecs", "encode", "x", "latin1"),
        "extension": Raw(b"\x82\x01"),
        "set": fragment({1, 2}, 4),
    }


@pytest.mark.parametrize("name", dangerous("m"))
def test_foreign_objects_in_args_are_opaque(tmp_path, name):
    marker = tmp_path / "marker"
    value = {"args": dangerous(marker)[name], "state_dict": STATE}
    assert read(torch_files.write(tmp_path / "x.pth", value)).keys() == STATE.keys()
    assert not marker.exists()


@pytest.mark.parametrize("name", dangerous("m"))
def test_foreign_objects_as_tensors_are_refused(tmp_path, name):
    marker = tmp_path / "marker"
    value = {"state_dict": STATE | {"b": dangerous(marker)[name]}}
    refused(torch_files.write(tmp_path / "x.pth", value), "'b' in the state dict is not a tensor")
    assert not marker.exists()


def test_every_opcode_is_known():
    machine = inert_pickle._Machine()
    for opcode in pickletools.opcodes:
        if opcode.name != "STOP":
            machine.stack, machine.memo = [inert_pickle._MARK, "a", 1, ("storage",), {}, 2, "b"], {}
            try:
                machine.step(opcode.name, "a b" if opcode.arg else None)
            except inert_pickle.DAMAGE as error:
                assert not isinstance(error, AttributeError), opcode.name


def test_deep_nesting_is_data(tmp_path):
    deep = Raw(b"N" + b"\x85" * 20_000)
    keyed = Raw(b"}" + deep + b"Ns")
    assert (
        read(torch_files.write(tmp_path / "x.pth", {"args": (deep, keyed), "state_dict": STATE})).keys() == STATE.keys()
    )


# ------------------------------------------------------------------------------------------ damage
def test_files_that_are_none_are_reported(tmp_path):
    for content, message in (
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html>404</html>", "a web page"),
        (b"\x80\x02}q\x00.", "no zip"),
        (b"PK\x03\x04" + b"x" * 50, "damaged"),
    ):
        (tmp_path / "x.pth").write_bytes(content)
        refused(tmp_path / "x.pth", message)
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("readme.txt", "no weights")
    refused(tmp_path / "x.pth", "no data.pkl")


def test_truncated_files_are_refused_wherever_they_end(tmp_path):
    content = torch_files.write(tmp_path / "x.pth", {"state_dict": STATE}).read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "x.pth").write_bytes(content[:length])
        refused(tmp_path / "x.pth", "x.pth")


def test_flipped_bytes_are_read_right_or_refused(tmp_path):
    path = torch_files.write(tmp_path / "x.pth", {"state_dict": STATE})
    content, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        harmed = bytearray(content)
        harmed[draw.randrange(len(harmed))] ^= 1 << draw.randrange(8)
        path.write_bytes(harmed)
        try:
            found = read(path)
        except UserError:
            continue
        assert all(np.array_equal(found[name], value) for name, value in STATE.items())


def test_random_programs_raise_nothing_but_what_is_reported():
    draw, codes = random.Random(1), [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
    good = torch_files.program({"state_dict": STATE}, {})
    for _ in range(400):
        code = bytearray(good)
        for _ in range(draw.randrange(1, 6)):
            code[draw.randrange(len(code))] = draw.choice(codes)[0]
        with contextlib.suppress(*inert_pickle.DAMAGE):
            inert_pickle.read_program(bytes(code) + b".")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (2, 4), "strides": (4, 1)}, "x of shape"),
        ({"offset": 1}, "x of shape"),
        ({"strides": (100, 1)}, "x of shape"),
        ({"shape": (10**9, 10**9), "strides": (0, 0)}, "x of shape"),
        ({"offset": -1}, "an invalid tensor"),
        ({"strides": (-3, 1)}, "an invalid tensor"),
        ({"strides": (1,)}, "an invalid tensor"),
        ({"shape": ("a", 3)}, "an invalid tensor"),
        ({"kind": "ComplexFloatStorage"}, "a storage of type 'ComplexFloatStorage'"),
        ({"kind": "DoubleStorage"}, "in a storage of 3 numbers"),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, change, message):
    storages = {}
    bad = torch_files.tensor(STATE["a.weight"], storages, **change)
    refused(torch_files.write(tmp_path / "x.pth", {"x": bad}, storages), message)


def test_storages_that_are_not_there_are_refused(tmp_path):
    storages = {}
    value = {"x": torch_files.tensor(STATE["a.weight"], storages)}
    refused(torch_files.write(tmp_path / "x.pth", value, {}), "x of shape")


def test_compressed_entries_and_big_endian_files_are_refused(tmp_path):
    path = torch_files.write(tmp_path / "x.pth", STATE, compression=zipfile.ZIP_DEFLATED)
    refused(path, "compressed")
    refused(torch_files.write(path, STATE, byteorder=b"big"), "byte order")
    read(torch_files.write(path, STATE, byteorder=b"little"))


@pytest.mark.parametrize("name", ["two\nlines", "x" * 300, "\x1b[31mred", "../../etc/passwd"])
def test_strange_names_are_refused_in_one_line(tmp_path, name):
    refused(torch_files.write(tmp_path / "x.pth", {name: STATE["a.bias"]}), "is not a tensor")
