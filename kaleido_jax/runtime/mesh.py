"""Device mesh and shardings: one table maps the models' logical axis names to mesh axes.

Parameters are placed by the names of their axes (`shardings_of`), activations where the models say their names
(`constrain`). Without the second, XLA guesses where activations belong and moves them more than twice as often.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from kaleido_jax.errors import user_error

BATCH = P(("data", "fsdp"))

Rules = Sequence[tuple[str, str]]  # (logical axis, mesh axes joined by "+"; "" = not split)


# ------------------------------------------------------------------------------------------ the mesh
def make_mesh(sizes: Mapping[str, int], across_slices: str = "data") -> Mesh:
    """All devices as a mesh; the product of `sizes` (of the axes data, fsdp, tensor) is the number of devices.

    On TPU, neighbors on an axis are neighbors in the machine. Several TPU slices, which only a data center's network
    connects, follow each other on the axis `across_slices`, whose size is a multiple of their number.

    Raises:
      UserError: it is not.
    """
    devices, shape = jax.devices(), tuple(sizes.values())
    on_tpu = devices[0].platform == "tpu"
    # JAX says a slice for each machine with GPUs or CPUs too, whose devices any axis may cross.
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if on_tpu else 1
    if slices > 1:
        if sizes[across_slices] % slices:
            raise user_error(
                f"config.mesh.{across_slices} = {sizes[across_slices]} on {slices} slices",
                f"a multiple of {slices}, since slices follow each other on config.mesh.across_slices",
                f"set config.mesh.{across_slices}={slices}, or another across_slices",
            )
        outer = tuple(slices if name == across_slices else 1 for name in sizes)
        inner = tuple(size // of for size, of in zip(shape, outer, strict=True))
        placed = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    elif on_tpu:
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:  # in the order of the processes, so that each reads rows beside each other
        placed = np.asarray(devices).reshape(shape)
    return Mesh(placed, tuple(sizes))


# ------------------------------------------------------------------------------------------ shardings
def shardings_of(boxed: Any, mesh: Mesh | AbstractMesh, rules: Rules) -> Any:
    """NamedSharding of every leaf of an abstract tree whose leaves may carry logical axis names.

    A mesh axis that does not divide an array's axis is left out for that array, which is then replicated over it.
    """
    specs = nn.get_partition_spec(boxed)
    table = dict(rules)
    return jax.tree.map(
        lambda spec, leaf: NamedSharding(mesh, _fit(tuple(spec), leaf.shape, mesh, table)),
        specs,
        nn.meta.unbox(boxed),
        is_leaf=lambda x: isinstance(x, P),
    )


def _fit(names: Sequence[str | None], shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Mapping[str, str]) -> P:
    spec, used = [], set()
    for size, name in zip(shape, (*names, *(None,) * (len(shape) - len(names))), strict=True):
        axes = [axis for axis in rules[name].split("+") if axis] if name is not None else []
        total = int(np.prod([mesh.shape[axis] for axis in axes]))
        fits = axes and not used.intersection(axes) and size % total == 0
        spec.append((axes[0] if len(axes) == 1 else tuple(axes)) if fits else None)
        used.update(axes if fits else ())
    return P(*spec)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Samples split over data and fsdp."""
    return NamedSharding(mesh, BATCH)


# ------------------------------------------------------------------------------------------ activations
@dataclass(frozen=True)
class _Placement:
    mesh: Mesh | AbstractMesh
    rules: Mapping[str, str]


_placement: ContextVar[_Placement | None] = ContextVar("placement", default=None)


@contextmanager
def placing(mesh: Mesh | AbstractMesh | None, rules: Rules) -> Iterator[None]:
    """While a function is traced inside, `constrain` places activations on `mesh`; None or one device = anywhere."""
    token = _placement.set(_Placement(mesh, dict(rules)) if mesh is not None and mesh.size > 1 else None)
    try:
        yield
    finally:
        _placement.reset(token)


def constrain(x: Array, *names: str | None) -> Array:
    """x, placed by the logical names of its axes; None = not split. Without `placing`, x as it is.

    Axes that are not named are not split. An axis that its mesh axes do not divide is not split either.
    """
    placement = _placement.get()
    if placement is None:
        return x
    spec = _fit(names, x.shape, placement.mesh, placement.rules)
    return jax.lax.with_sharding_constraint(x, NamedSharding(placement.mesh, spec))


def split_over(function: Callable[..., Array], *names: str | None) -> Callable[..., Array]:
    """The function of arrays of one shape, run by each device on its part of them; the result is split alike.

    Axes are split by their logical names, as in `constrain`. Without `placing`, the function as it is.
    """
    placement = _placement.get()
    if placement is None:
        return function

    def split(*arrays: Array) -> Array:
        spec = _fit(names, arrays[0].shape, placement.mesh, placement.rules)
        # No check of what is replicated: kernels do not say what they do.
        return jax.shard_map(function, mesh=placement.mesh, in_specs=spec, out_specs=spec, check_vma=False)(*arrays)

    return split


# ------------------------------------------------------------------------------------------ batches
def rows_of_process(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " rows"]:
    """The rows of a batch that this process's devices hold, ascending."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in held]))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows, as of `rows_of_process`, as global arrays."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
