"""Device mesh and shardings: one table maps the models' logical axis names to mesh axes."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

RULES = {
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    "conv_in": None,
    "conv_out": "fsdp",
    "height": None,
    "width": None,
    "layers": None,
    "norm": None,
    "buckets": None,
}
BATCH = P(("data", "fsdp"))


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
    """All devices as a mesh; the product of `sizes` (of the axes data, fsdp, tensor) is the number of devices."""
    return Mesh(np.asarray(jax.devices()).reshape(tuple(sizes.values())), tuple(sizes))


def shardings_of(boxed: Any, mesh: Mesh | AbstractMesh) -> Any:
    """NamedSharding of every leaf of an abstract tree whose leaves may carry logical axis names.

    A mesh axis that does not divide an array's axis is left out for that array, which is then replicated over it.
    """
    specs = nn.get_partition_spec(boxed)
    return jax.tree.map(
        lambda spec, leaf: NamedSharding(mesh, _fit(spec, leaf.shape, mesh)),
        specs,
        nn.meta.unbox(boxed),
        is_leaf=lambda x: isinstance(x, P),
    )


def _fit(spec: P, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    axes, used = [], set()
    for size, name in zip(shape, tuple(spec) + (None,) * (len(shape) - len(spec)), strict=True):
        axis = RULES[name] if name is not None else None
        fits = axis is not None and axis not in used and size % mesh.shape[axis] == 0
        axes.append(axis if fits else None)
        used.add(axes[-1])
    return P(*axes)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Samples split over data and fsdp."""
    return NamedSharding(mesh, BATCH)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows as global arrays."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
