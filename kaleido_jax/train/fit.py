"""Training from a config: checks weights and devices, locks the workdir, prepares the records, runs the loop."""

from contextlib import nullcontext
from pathlib import Path

import jax

from kaleido_jax.annotate.prepare import open_prepared, prepare_records
from kaleido_jax.config.checks import check_devices
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.schema import Config
from kaleido_jax.config.stored import check_workdir, open_workdir
from kaleido_jax.errors import user_error
from kaleido_jax.runtime import checkpoints, distributed
from kaleido_jax.runtime.workdir import locked
from kaleido_jax.train import loop
from kaleido_jax.train.batches import make_batches

RECORDS_SEC = 6 * 3600  # for the main process to make records, while the others wait


def fit(config: Config, workdir: str | Path) -> bool:
    """Trains to config.train.num_steps, from the workdir's latest checkpoint if it has one.

    Returns:
      False if training was already finished.

    Raises:
      UserError: weights or records are missing, sizes do not fit the devices, or the workdir belongs to another config.
    """
    workdir = Path(workdir).expanduser()
    check_weights(config, fresh=not (workdir / "checkpoints").is_dir())
    check_devices(config, jax.device_count())
    codec = open_codec(config)
    with locked(workdir) if distributed.is_main() else nullcontext():
        check_workdir(config, workdir)
        if distributed.is_main():
            prepare_records(config, workdir, codec)
            open_workdir(config, workdir)  # after the records: a start that they refuse does not claim the workdir
        distributed.barrier("records", RECORDS_SEC)
        records = open_prepared(config, workdir, codec)
        steps = distributed.tell("checkpoints", lambda: checkpoints.steps_of(workdir), distributed.START_SEC)
        if max(steps, default=0) >= config.train.num_steps:
            return False
        loop.train(config, workdir, codec.tokenizer, make_batches(config, records, codec))
    return True


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
