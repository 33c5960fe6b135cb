"""Bytes of a training step on each device, by kind, from shapes and shardings."""

import math
from typing import Any

import jax

from kaleido_jax.plan.program import Program

NAMES = {"params": "parameters", "ema": "EMA", "profiles": "EMA", "opt_state": "optimizer"}  # field of State -> kind
OTHER = "other state"


def bytes_by_kind(program: Program) -> dict[str, int]:
    """Kind -> bytes a device of what lives as long as the run, the gradients of one step, and one batch.

    The gradients have the parameters' shapes and shardings. What the step keeps for its backward pass is not here: only
    a compiler knows (plan/compiled.py).
    """
    state, (of_state, of_frozen, of_batch) = program.state, program.shardings
    kinds = dict.fromkeys((*NAMES.values(), OTHER), 0)
    for field in vars(state):
        kinds[NAMES.get(field, OTHER)] += _bytes(getattr(state, field), getattr(of_state, field))
    kinds["gradients"] = kinds["parameters"]
    kinds |= {f"frozen {name}": _bytes(part, of_frozen[name]) for name, part in program.frozen.items()}
    kinds["batch"] = _bytes(program.batch, dict.fromkeys(program.batch, of_batch))
    return kinds


def _bytes(shapes: Any, shardings: Any) -> int:
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, where in leaves)
