"""Meshes over several slices, which no test machine has: of devices that only say where they are."""

import dataclasses

import jax
import numpy as np
import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.runtime.mesh import make_mesh


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5p"
    core_on_chip: int = 0
    client: None = None

    @property
    def coords(self):
        return (self.id % 2, self.id % 4 // 2, 0)


@pytest.fixture(autouse=True)
def two_slices_of_four(monkeypatch):
    devices = [Device(id=i, slice_index=i // 4) for i in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: devices)


@pytest.mark.parametrize(
    ("sizes", "across"),
    [
        ({"data": 2, "fsdp": 4, "tensor": 1}, "data"),
        ({"data": 4, "fsdp": 1, "tensor": 2}, "data"),
        ({"data": 2, "fsdp": 2, "tensor": 2}, "data"),
        ({"data": 1, "fsdp": 8, "tensor": 1}, "fsdp"),
        ({"data": 2, "fsdp": 2, "tensor": 2}, "fsdp"),
    ],
)
def test_only_one_axis_leaves_a_slice(sizes, across):
    mesh = make_mesh(sizes, across)
    assert mesh.axis_names == tuple(sizes) and mesh.devices.shape == tuple(sizes.values())
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    along = np.moveaxis(slices, tuple(sizes).index(across), 0).reshape(sizes[across], -1)
    assert (along == along[:, :1]).all()  # the other axes never leave a slice
    assert along[:, 0].tolist() == [0] * (sizes[across] // 2) + [1] * (sizes[across] // 2)


def test_an_axis_that_slices_do_not_divide_is_refused():
    with pytest.raises(UserError, match="config.mesh.data = 1 on 2 slices; expected a multiple of 2.*data=2"):
        make_mesh({"data": 1, "fsdp": 8, "tensor": 1})


@pytest.mark.parametrize("sizes", [{"data": 1, "fsdp": 8, "tensor": 1}, {"data": 1, "fsdp": 4, "tensor": 2}])
@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_machines_with_gpus_are_no_slices(platform, sizes, monkeypatch):
    kind = {"platform": platform, "device_kind": platform}
    devices = [Device(id=i, slice_index=i // 4, process_index=i // 4, **kind) for i in range(8)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    mesh = make_mesh(sizes)
    assert mesh.devices.shape == tuple(sizes.values())
    assert [device.id for device in mesh.devices.flat] == list(range(8))  # in the order of the processes
