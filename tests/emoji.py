"""Records of the generated scenes of emoji, for tests that want some."""

from pathlib import Path

from kaleido_jax.annotate.job.run import annotate
from kaleido_jax.config.checks import validate
from kaleido_jax.config.schema import Annotate, Data, DataEmoji, default_config, to_config_dict
from kaleido_jax.data.records import Manifest
from kaleido_jax.data.sources import open_source
from kaleido_jax.data.sources.emoji import EmojiSource
from kaleido_jax.latents.tokenizer import Tokenizer


def scenes(
    split: str = "train",
    number: int = 1,
    *,
    seed: int = 0,
    image_size: int = 32,
    two_share: float = 0.2,
    **views: float,
) -> EmojiSource:
    """The first scenes of a split; `views` are other fields of config.data.emoji."""
    sizes = DataEmoji(num_train=number, num_test=number, two_share=two_share, **views)
    data = Data(source="emoji", split=split, emoji=sizes)
    return open_source(data, seed=seed, image_size=image_size)


def make_records(
    folder: Path,
    *,
    tokenizer: Tokenizer,
    num_examples: int,
    num_test: int = 1,
    seed: int = 0,
    image_size: int = 32,
    codebook_size: int = 64,
    fit_examples: int = 4096,
    shard_size: int = 2048,
    segments: tuple[str, ...] = ("text", "bbox", "blob", "voken"),
    max_caption_tokens: int = 128,
    coordinate_step: int = 1,
    annotate_settings: Annotate | None = None,
) -> Manifest:
    """Makes folder/train and folder/test; the manifest of the first."""
    config = default_config()
    config.seed = seed
    config.data.source, config.data.records = "emoji", str(folder)
    config.data.emoji.num_train, config.data.emoji.num_test = num_examples, num_test
    config.data.max_caption_tokens = max_caption_tokens
    config.latents.codebook_size, config.latents.vokens_per_image = codebook_size, 8
    config.latents.coordinate_step = coordinate_step
    config.annotate = to_config_dict(annotate_settings or Annotate())
    config.annotate.image_size, config.annotate.shard_size, config.annotate.segments = image_size, shard_size, segments
    config.annotate.voken.feature, config.annotate.voken.fit_examples = "pixels", fit_examples
    manifests = annotate(validate(config), folder, tokenizer)
    return manifests[(folder / "train").resolve()]
