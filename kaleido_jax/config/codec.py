"""Codec of a config: how its latents are written as tokens."""

from kaleido_jax.config.schema import Config
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.tokenizer import load_tokenizer


def open_codec(config: Config) -> Codec:
    """The vocabulary, the segments and the number of vokens of a config as one value.

    Raises:
      UserError: config.model.t5.vocabulary cannot be read or is not a sentencepiece model.
    """
    latents = config.latents
    return Codec(
        tokenizer=load_tokenizer(config.model.t5.vocabulary, latents.codebook_size),
        segments=latents.segments,
        vokens_per_image=latents.vokens_per_image,
        coordinate_step=latents.coordinate_step,
    )
