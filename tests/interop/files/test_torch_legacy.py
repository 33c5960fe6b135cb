"""Torch files from before 1.6 are read as data, like the newer ones."""

import os

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from kaleido_jax.errors import UserError
from kaleido_jax.interop.files.torch_legacy import TorchLegacy
from kaleido_jax.interop.files.torch_zip import TorchZip
from kaleido_jax.interop.files.weights import open_weights, read_float32
from tests.interop.files import torch_files
from tests.interop.files.torch_files import call

STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(3, np.float32)}


def read(path):
    file = TorchLegacy(path)
    return {name: file.read(name) for name in file.names}


def refused(path, message):
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(caught.value).count(";") >= 2


@pytest.mark.parametrize("kind", [*torch_files.STORAGES])
def test_every_type_is_read_as_it_is(tmp_path, kind):
    array = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, kind, kind))
    found = read(torch_files.write_legacy(tmp_path / "x.pth", {"x": array, "y": STATE["a.bias"]}))
    assert found["x"].dtype == array.dtype and found["y"].sum() == 3
    np.testing.assert_array_equal(found["x"], array)


def test_the_format_is_recognized_by_its_first_bytes(tmp_path):
    old = torch_files.write_legacy(tmp_path / "old.pth", STATE)
    new = torch_files.write(tmp_path / "new.pth", STATE)
    np.savez(tmp_path / "x.npz", **STATE)
    save_file(STATE, tmp_path / "x.sft")
    opened = {path: open_weights(path, "weights") for path in (old, new, tmp_path / "x.npz", tmp_path / "x.sft")}
    assert isinstance(opened[old], TorchLegacy) and isinstance(opened[new], TorchZip)
    for source in opened.values():
        for name, array in read_float32(source).items():
            np.testing.assert_array_equal(array, STATE[name])


def test_files_of_torch_itself_are_read(tmp_path):
    torch = pytest.importorskip("torch", reason="torch, which writes such files, is not a dependency of the tests")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {"plain": base, "turned": base.t(), "half": base.half(), "parameter": torch.nn.Parameter(base[1:, ::2])}
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    found = read(tmp_path / "x.pth")
    for name, value in state.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), value.detach().float().numpy(), err_msg=name)


def test_a_reduce_never_runs(tmp_path):
    bad = call("os", "system", f"touch {tmp_path / 'marker'}")
    refused(torch_files.write_legacy(tmp_path / "x.pth", STATE | {"b": bad}), "is not a tensor")
    assert not os.path.exists(tmp_path / "marker")


def test_damage_is_named(tmp_path):
    path = tmp_path / "x.pth"
    refused(torch_files.write_legacy(path, STATE, magic=7), "magic number")
    refused(torch_files.write_legacy(path, STATE, little=False), "byte order")
    refused(torch_files.write_legacy(path, STATE, keys=["0"]), "storages without tensors")
    refused(torch_files.write_legacy(path, STATE, extra=b"1234"), "instead of")
    refused(torch_files.write_legacy(path, STATE, view=torch_files.program((1, 2))), "a view")
    whole = torch_files.write_legacy(path, STATE).read_bytes()
    for end in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:end])
        refused(path, "is damaged")
