"""Orbax behind one module: the state and the data iterator of a run, and nothing else."""

from pathlib import Path

import grain
import jax
import orbax.checkpoint as ocp

from kaleido_jax.errors import user_error


def open_manager(workdir: Path, keep: int | None = None) -> ocp.CheckpointManager:
    """The checkpoints of a workdir, read only; with `keep` they may also be written, and as many are kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=keep is not None, read_only=keep is None)
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def save(manager: ocp.CheckpointManager, step: int, state, iterator) -> None:
    """Writes checkpoints/<step> in the background."""
    manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(iterator)),
    )


def restore(manager: ocp.CheckpointManager, abstract_state, iterator):
    """(state, iterator) of the latest checkpoint, sharded as the abstract state says; None where there is none."""
    step = manager.latest_step()
    if step is None:
        return None
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract_state),
            data=grain.checkpoint.CheckpointRestore(iterator),
        ),
    )
    return restored["state"], restored["data"]


def restore_ema(workdir: Path, abstract_ema, step: int | None = None):
    """(EMA parameters, step) of a checkpoint, by default the latest; parts that the tree lacks are not read.

    Raises:
      UserError: the workdir holds no checkpoint, or not that of `step`.
    """
    folder, step = _state_folder(workdir, step)
    restored = ocp.PyTreeCheckpointer().restore(
        folder,
        args=ocp.args.PyTreeRestore(
            item={"ema": abstract_ema},
            restore_args=ocp.checkpoint_utils.construct_restore_args({"ema": abstract_ema}),
            partial_restore=True,
        ),
    )
    return restored["ema"], step


def ema_shapes(workdir: Path) -> dict:
    """The EMA parameters of the latest checkpoint as jax.ShapeDtypeStruct; reads no array.

    Raises:
      UserError: the workdir holds no checkpoint.
    """
    tree = ocp.PyTreeCheckpointer().metadata(_state_folder(workdir)[0]).item_metadata.tree
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree["ema"])


def _state_folder(workdir, step=None):
    folder = workdir / "checkpoints"
    steps = sorted(open_manager(workdir).all_steps()) if folder.is_dir() else []
    if not steps:
        raise user_error(f"no checkpoint in {workdir}", f"{folder}/<step>", "train first, or correct --workdir")
    if step is not None and step not in steps:
        kept = ", ".join(str(s) for s in steps)
        raise user_error(f"no checkpoint {step} in {workdir}", f"one of the steps {kept}", "name one that was kept")
    step = steps[-1] if step is None else step
    return (folder / str(step) / "state").absolute(), step


def abstract(tree, shardings):
    """Shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
    )
