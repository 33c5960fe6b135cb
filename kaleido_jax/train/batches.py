"""Batches of an experiment's records, as config.data and config.latents say."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.config.schema import Config, micro_names
from kaleido_jax.data.loader import Batches, make_loader
from kaleido_jax.data.records import Records
from kaleido_jax.errors import user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.runtime.mesh import make_mesh, rows_of_process
from kaleido_jax.train.caption_cache import bucket_length, class_captions


def make_batches(
    config: Config, records: Records, codec: Codec, *, shuffle: bool = True, num_epochs: int | None = None
) -> Batches:
    """This process's share of the training batches, in buckets no longer than the data need.

    Raises:
      UserError: as make_loader, or records with captions that config.data.class_captions does not have.
    """
    mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()), config.mesh.across_slices)
    longest, table = records.manifest.max_tokens, class_captions(config, codec.tokenizer)
    caption = bucket_length(config, longest["caption"], config.data.max_caption_tokens)
    if table:  # whose states have this length
        if longest["caption"] > table.tokens.shape[1]:
            raise user_error(
                f"records with captions of {longest['caption']} tokens",
                f"those of config.data.class_captions, at most {table.tokens.shape[1]}",
                "add the missing captions, or make config.data.class_captions empty",
            )
        caption = table.tokens.shape[1]
    latents = config.latents.max_latents_tokens
    if codec.segments:
        latents = bucket_length(config, longest[" | ".join(codec.segments)], latents)
    return make_loader(
        records,
        codec=codec,
        batch_size=config.train.batch_size,
        max_caption_tokens=caption,
        max_latents_tokens=latents,
        length_buckets=tuple(length for length in config.data.length_buckets if length < latents),
        seed=config.seed,
        shuffle=shuffle,
        num_epochs=num_epochs,
        rows=rows_of_process(mesh, config.train.batch_size),
        micros=micro_names(config.model),
        num_workers=config.data.num_workers,
        in_memory=config.data.in_memory,
    )


def batches_of_all(config: Config, records: Records, codec: Codec) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of batches in which each record is once, in their order; the last one may be smaller.

    Only what does not fill a row on each device is left out, so nothing on a single device.

    Raises:
      UserError: as make_batches, or fewer records than devices.
    """
    mesh = make_mesh(mesh_sizes(config.mesh, jax.device_count()), config.mesh.across_slices)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]  # that share a batch
    total = len(records) // devices * devices
    if not total:
        raise user_error(f"{len(records)} records on {devices} devices", "one for each", "use fewer devices")
    size = max(config.train.batch_size // devices * devices, devices)
    data = dataclasses.replace(config.data, length_buckets=(), num_workers=0, in_memory=False)
    for start in range(0, total, size):
        rows = range(start, min(start + size, total))
        train = dataclasses.replace(config.train, batch_size=len(rows))
        part = dataclasses.replace(config, train=train, data=data)
        loader = make_batches(part, records.select(rows), codec, shuffle=False, num_epochs=1)
        yield next(loader)
        loader.close()
