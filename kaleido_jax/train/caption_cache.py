"""Caption cache: with a frozen encoder and few captions, each is encoded once, and a table replaces the encoder."""

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from kaleido_jax.config.schema import Config, nested
from kaleido_jax.data.loader import pad_tokens
from kaleido_jax.errors import user_error
from kaleido_jax.latents.tokenizer import Tokenizer, round_up
from kaleido_jax.models.kaleido import Kaleido, null_tokens
from kaleido_jax.runtime.mesh import replicated
from kaleido_jax.runtime.text import uniform

TABLE = "caption_table"  # beside the model's parts: {"states": (n + 1, t, d)}, the empty caption last
ROW = "caption_row"  # in a batch: (B,) int32, each sample's row of the table
CHUNK = 64  # captions encoded at once
MULTIPLE = 8  # tokens


@dataclasses.dataclass(frozen=True)
class ClassCaptions:
    """The captions of config.data.class_captions as tokens, and the row of each."""

    tokens: Int[np.ndarray, "n t"]
    rows: dict[bytes, int]

    def add_rows(self, batch: dict) -> dict:
        """The batch with the table row of each caption.

        Raises:
          UserError: a caption is not in the table.
        """
        captions = np.ascontiguousarray(batch["encoder_input_tokens"], np.int32)
        rows = [self.rows.get(caption.tobytes(), -1) for caption in captions]
        if min(rows) < 0:
            sample = batch["sample_id"][rows.index(-1)]
            raise user_error(
                f"record {sample} with another caption than config.data.class_captions",
                f"one of these {len(self.rows)}",
                "add it, or make config.data.class_captions empty",
            )
        return batch | {ROW: np.asarray(rows, np.int32)}


def class_captions(config: Config, tokenizer: Tokenizer) -> ClassCaptions | None:
    """The captions of config.data.class_captions, padded to the longest; None if it is empty.

    Raises:
      UserError: one is longer than config.data.max_caption_tokens.
    """
    captions = config.data.class_captions
    if not captions:
        return None
    ids = [[*tokenizer.encode(uniform(caption)), tokenizer.eos_id] for caption in captions]
    length = bucket_length(config, max(map(len, ids)), config.data.max_caption_tokens)
    named = zip(ids, captions, strict=True)
    tokens = np.stack([pad_tokens(row, length, "caption", name, "data.max_caption_tokens") for row, name in named])
    return ClassCaptions(tokens, {row.tobytes(): i for i, row in enumerate(tokens)})


def bucket_length(config: Config, longest: int, limit: int) -> int:
    """The length to pad to: the longest in the data, rounded up to what devices compute well, at most the limit.

    It is the limit itself for a net that attends to padding, which then is a part of the model.
    """
    denoiser = config.model.denoiser
    if denoiser is not None and not nested(denoiser)[-1].masked_cross_attention:
        return limit
    return min(round_up(longest, MULTIPLE), limit)


def encode_once(captions: ClassCaptions, model: Kaleido, frozen: dict, mesh: Mesh) -> tuple[dict, dict]:
    """(frozen parameters with the table instead of the encoder, their shardings); the encoder's memory is freed.

    The states differ from those of an encoder in the step only by rounding (another batch size, so another order of
    sums).
    """
    everywhere = replicated(mesh)
    encode = jax.jit(functools.partial(model.apply, method="encode"), out_shardings=everywhere)
    tokens = np.concatenate([captions.tokens, np.asarray(null_tokens(captions.tokens.shape[1]))])
    padded = np.pad(tokens, ((0, -len(tokens) % CHUNK), (0, 0)))
    chunks = [encode({"params": frozen}, chunk)[0] for chunk in padded.reshape(-1, CHUNK, tokens.shape[1])]
    states = jax.device_put(np.concatenate([np.asarray(chunk) for chunk in chunks])[: len(tokens)], everywhere)
    for leaf in jax.tree.leaves(frozen["encoder"]):
        leaf.delete()
    kept = {name: part for name, part in frozen.items() if name != "encoder"} | {TABLE: {"states": states}}
    return kept, jax.tree.map(lambda leaf: leaf.sharding, kept)
