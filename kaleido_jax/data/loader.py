"""Batches of records with Grain: shuffled, split over processes, read by threads, resumable to the sample.

A batch has B = batch_size / process_count samples as numpy arrays (without segments no `decoder_*`):

  encoder_input_tokens   (B, max_caption_tokens) int32    caption and eos, padded with 0
  decoder_target_tokens  (B, max_latents_tokens) int32    z and eos, padded with 0
  decoder_input_tokens   (B, max_latents_tokens) int32    the targets shifted right by a 0
  decoder_loss_weights   (B, max_latents_tokens) float32  1 where the target is valid
  image                  (B, H, W, 3) float32         in the model range
  sample_id              (B,) int64                   index of the record
  micro_scale            (B,) float32                 px of the photo's shorter side, if `micros` has "scale"
"""

from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Float, UInt8

from kaleido_jax.data.records import Record, Records, decode_image
from kaleido_jax.errors import user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.models.decode import shift_right

_BUFFERED_BATCHES = 4  # read ahead while the device computes
_NUM_THREADS = 4  # that read and decode records


def make_loader(
    records: Records,
    *,
    codec: Codec,
    batch_size: int,
    max_caption_tokens: int,
    max_latents_tokens: int,
    seed: int,
    shuffle: bool = True,
    num_epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    micros: Sequence[str] = (),
) -> grain.DatasetIterator:
    """An iterator of batches with get_state() and set_state(); the last incomplete batch is left out.

    Args:
      records: as of open_records.
      codec: writes z; it has the records' vocabulary, and no segments for the baseline.
      batch_size: samples of all processes together.
      max_caption_tokens: bucket length of c, eos included.
      max_latents_tokens: bucket length of z, eos included.
      seed: of the order, 0..2**32-1; each epoch has its own.
      shuffle: False keeps the records' order.
      num_epochs: None never ends.
      process_index: this process's share of every batch.
      process_count: the batches of all processes together are the same samples whatever this number.
      micros: micro conditions of the denoiser; records have "scale" only.

    Raises:
      UserError: a sample is longer than its bucket (it is named, before the first batch), or the sizes do not divide.
    """
    _check_lengths(records, codec, max_caption_tokens, max_latents_tokens)
    if batch_size % process_count:
        raise user_error(f"train.batch_size = {batch_size}", f"a multiple of {process_count} processes", "change it")

    def read(index: int) -> dict[str, np.ndarray]:
        record = records[int(index)]
        image = shrink(to_model_range(decode_image(record.image)), records.image_size)
        sample = _tokens(record, codec, max_caption_tokens, max_latents_tokens)
        if "scale" in micros:  # a photo of unknown size counts as one that was not enlarged
            sample["micro_scale"] = np.float32(record.shorter_side_px or image.shape[0])
        return sample | {"image": image, "sample_id": np.int64(index)}

    order = grain.MapDataset.range(len(records))
    if shuffle:
        order = order.shuffle(seed=seed)
    # Repeat before the split and the batch, so that neither depends on how the records divide.
    mine = order.repeat(num_epochs)[process_index::process_count]
    batches = mine.map(read).batch(batch_size // process_count, drop_remainder=True)
    if not len(batches):
        raise user_error(f"{len(records)} records", f"a full batch of {batch_size}", "lower train.batch_size")
    options = grain.ReadOptions(num_threads=_NUM_THREADS, prefetch_buffer_size=_BUFFERED_BATCHES)
    return iter(batches.to_iter_dataset(options))


def shrink(image: Float[np.ndarray, "s s 3"], image_size: int) -> Float[np.ndarray, "p p 3"]:
    """The mean of each square of pixels, as in the denoiser's own pyramid; unchanged at its own size."""
    factor = image.shape[0] // image_size
    if factor == 1:
        return image
    return image.reshape(image_size, factor, image_size, factor, 3).mean((1, 3), dtype=np.float32)


def to_model_range(image: UInt8[np.ndarray, "*b h w 3"]) -> Float[np.ndarray, "*b h w 3"]:
    """uint8 -> float32 in the denoiser's range: (image - 127) / 128, about -1..1."""
    return (image.astype(np.float32) - 127) / 128


def pad_tokens(ids: Sequence[int], length: int, name: str, sample: str, field: str) -> np.ndarray:
    """Ids padded with 0 to int32 (length,).

    Raises:
      UserError: there are more; the message names the sample, what was too long and the config field to change.
    """
    if len(ids) > length:
        raise user_error(
            f"{name} of sample {sample} has {len(ids)} tokens",
            f"at most {field} = {length}",
            f"raise {field} or drop the sample",
        )
    padded = np.zeros(length, np.int32)
    padded[: len(ids)] = ids
    return padded


def _tokens(record: Record, codec: Codec, max_caption_tokens: int, max_latents_tokens: int) -> dict[str, np.ndarray]:
    caption = [*record.caption_tokens, codec.tokenizer.eos_id]
    padded = pad_tokens(caption, max_caption_tokens, "caption", record.id, "data.max_caption_tokens")
    tokens = {"encoder_input_tokens": padded}
    if codec.segments:
        ids = codec.join(record.tokens)
        target = pad_tokens(ids, max_latents_tokens, "latents", record.id, "latents.max_latents_tokens")
        tokens |= {
            "decoder_target_tokens": target,
            "decoder_input_tokens": shift_right(target),
            "decoder_loss_weights": (np.arange(max_latents_tokens) < len(ids)).astype(np.float32),
        }
    return tokens


def _check_lengths(records: Records, codec: Codec, max_caption_tokens: int, max_latents_tokens: int) -> None:
    longest = records.manifest.max_tokens
    joined = longest[" | ".join(codec.segments)] if codec.segments else 0
    if longest["caption"] <= max_caption_tokens and joined <= max_latents_tokens:
        return
    for index in range(len(records)):  # some sample is too long: find it now, not hours into a run
        _tokens(records[index], codec, max_caption_tokens, max_latents_tokens)
