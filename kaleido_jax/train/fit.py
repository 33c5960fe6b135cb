"""Training from a config: checks weights and devices, locks the workdir, prepares the records, runs the loop."""

from pathlib import Path

import grain
import jax

from kaleido_jax.annotate.prepare import prepare_records
from kaleido_jax.config.checks import check_devices
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.schema import Config, micro_names
from kaleido_jax.config.stored import check_workdir, open_workdir
from kaleido_jax.data.loader import make_loader
from kaleido_jax.data.records import Records
from kaleido_jax.errors import user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.runtime import checkpoints
from kaleido_jax.runtime.workdir import locked
from kaleido_jax.train import loop


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
    with locked(workdir):
        check_workdir(config, workdir)
        records = prepare_records(config, workdir, codec)
        open_workdir(config, workdir)  # after the records, so that a start that they refuse does not claim the workdir
        if max(checkpoints.steps_of(workdir), default=0) >= config.train.num_steps:
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


def make_batches(config: Config, records: Records, codec: Codec) -> grain.DatasetIterator:
    """This process's share of the training batches, as a checkpointable iterator."""
    return make_loader(
        records,
        codec=codec,
        batch_size=config.train.batch_size,
        max_caption_tokens=config.data.max_caption_tokens,
        max_latents_tokens=config.latents.max_latents_tokens,
        seed=config.seed,
        micros=micro_names(config.model),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
