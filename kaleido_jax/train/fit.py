"""Training from a config: checks weights and devices, locks the workdir, prepares the records, runs the loop."""

import json
import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from kaleido_jax.annotate.prepare import check_records, open_prepared, prepare_records
from kaleido_jax.config.checks import check_devices, check_worse_model, mesh_sizes
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.schema import Config, Train
from kaleido_jax.config.stored import check_workdir, open_workdir
from kaleido_jax.errors import user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.runtime import checkpoints, distributed
from kaleido_jax.runtime.files import refuse_address
from kaleido_jax.runtime.mesh import make_mesh
from kaleido_jax.runtime.workdir import locked
from kaleido_jax.sampling.gallery import captions_to_sample
from kaleido_jax.sampling.tokens import caption_tokens
from kaleido_jax.train import loop
from kaleido_jax.train.batches import make_batches
from kaleido_jax.train.metrics import check_wandb
from kaleido_jax.train.optimizer import make_optimizer
from kaleido_jax.train.state import abstract_state, share_of_start

log = logging.getLogger(__name__)

_MOST_OF_START = 0.1  # share of the initial weights in the last EMA above which training warns
_FOLDERS_OF_HOSTS = ("data.root", "data.records", "data.tar.index")
RECORDS_SEC = 6 * 3600  # for the main process to make records, then for the others to open them


def fit(config: Config, workdir: str | Path) -> bool:
    """Trains to config.train.num_steps, from the workdir's latest checkpoint if it has one.

    Returns:
      False if training was already finished.

    The workdir belongs to the config, by its config.json, from the first step on: a start that fails does not claim it.
    SIGTERM and Ctrl-C end it after a checkpoint; in another thread than the main one it does not hear them.

    Raises:
      UserError: weights, records, captions to sample or a package are missing, a caption is too long, autoguidance's
        checkpoint would be deleted before the end, sizes do not fit the devices or checkpoints the disk, the workdir
        belongs to another config or cannot hold checkpoints, or processes of the run have other configs or do not
        share it.
    """
    refuse_address(workdir, "workdir")
    workdir = Path(workdir).expanduser()
    checkpoints.check_path(workdir)
    check_weights(config, fresh=not (workdir / "checkpoints").is_dir())
    check_wandb(config)
    check_devices(config, jax.device_count())
    distributed.check_same("config", _flat(config))
    codec = open_codec(config)
    if distributed.is_main():
        check_records(config, workdir)  # before there is a workdir
    with locked(workdir) if distributed.is_main() else nullcontext():
        distributed.check_shared(workdir)
        check_workdir(config, workdir)
        if distributed.is_main():
            prepare_records(config, workdir, codec)
        distributed.barrier("records", RECORDS_SEC)
        records = open_prepared(config, workdir, codec)
        # The main process read them while it prepared them; the others may hash them for hours, from a cold cache.
        distributed.barrier("records are open", RECORDS_SEC)
        if config.train.sample_at_end:  # that there are none, or one is too long, must not be found only after training
            caption_tokens(captions_to_sample(config, workdir), codec.tokenizer, config.data.max_caption_tokens)
        steps = distributed.tell("checkpoints", lambda: checkpoints.steps_of(workdir), distributed.START_SEC)
        if max(steps, default=0) >= config.train.num_steps:
            if distributed.is_main():
                open_workdir(config, workdir)
            return False
        check_worse_model(config)
        if distributed.is_main():
            check_disk(config, workdir, codec)
            _warn_of_start(config.train)
        loop.train(config, workdir, codec.tokenizer, make_batches(config, records, codec))
    return True


def _flat(config: Config) -> dict[str, Any]:
    """All fields by their dotted keys, but those of folders that may have another name on another host."""
    flat = flatten_dict(json.loads(config.to_json()), sep=".")
    return {key: value for key, value in flat.items() if key not in _FOLDERS_OF_HOSTS}


def _warn_of_start(train: Train) -> None:
    held, steps = share_of_start(train), train.num_steps
    if held > _MOST_OF_START:
        log.warning(
            "the EMA, which draws the images, will still hold %.0f %% of the initial weights after %d steps; "
            "with config.train.ema_decay = %.6g it would hold 1 %%",
            *(100 * held, steps, 0.01 ** (1 / steps)),
        )


def check_disk(config: Config, workdir: Path, codec: Codec) -> None:
    """Checks that the checkpoints of a run will fit on the disk, from shapes alone.

    Raises:
      UserError: the workdir's disk has too little room, and config.train.full_disk is "stop".
    """
    if config.train.full_disk != "stop":
        return
    mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()), config.mesh.across_slices)
    model, optimizer = build_model(config, codec.tokenizer.base_vocab_size), make_optimizer(config.train)
    (state, _), _ = abstract_state(config, model, optimizer, mesh)
    each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    # An old one is removed when the new one is written.
    more = max(1, config.train.keep_checkpoints + 1 - len(checkpoints.steps_of(workdir)))
    free = shutil.disk_usage(workdir).free
    if free < more * each:
        raise user_error(
            f"{free / 1e9:.2f} GB free on the disk of {workdir}",
            f"{more * each / 1e9:.2f} GB for {more} more checkpoints",
            "free some, use a --workdir on another disk, or lower config.train.keep_checkpoints",
        )


def check_weights(config: Config, fresh: bool = True) -> None:
    """Checks that the weights that a config starts from exist; a frozen encoder needs those of a T5.

    Raises:
      UserError: nothing at config.model.t5.checkpoint, or for a fresh run at config.init.inner; says what to fetch
        and where to put it.
    """
    inner = config.init.inner
    if fresh and inner is not None and not Path(inner).exists():
        raise user_error(
            f"config.init.inner = {inner!r} is not on this machine",
            "a trained net of the low resolution: a run's workdir, or MDM's weights",
            "train that net first, or fetch https://docs-assets.developer.apple.com/ml-research/models/mdm/"
            "flickr64/vis_model.pth (or flickr256), and set config.init.inner to its path",
        )
    t5 = config.model.t5
    where = t5.checkpoint
    if t5.encoder.trainable and where is None:
        return
    if not where or not Path(where).exists():
        raise user_error(
            f"config.model.t5.checkpoint = {where!r} is not on this machine",
            "the weights of T5 (for the paper's models flan-t5-xl, T5 v1.1 XL shapes)",
            "fetch gs://t5-data/pretrained_models/t5x/flan_t5_xl/checkpoint_1138000 or the Hugging Face files of "
            "google/flan-t5-xl, put them there, or set config.model.t5.checkpoint to their path",
        )
