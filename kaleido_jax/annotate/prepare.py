"""Records for training: made once from the shipped source, or found where the config says."""

from pathlib import Path

from kaleido_jax.annotate.job.run import make_records
from kaleido_jax.config.schema import Config, records_size
from kaleido_jax.data.records import MANIFEST, Records, find_records, open_records
from kaleido_jax.errors import user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.tokenizer import Tokenizer


def prepare_records(config: Config, workdir: Path, codec: Codec) -> Records:
    """The training records: made once from a shipped source, or found at config.data.records.

    Raises:
      UserError: records are missing, damaged, or made for other latents or another vocabulary.
    """
    folder = records_folder(config, workdir)
    if config.data.source == "fashion":
        make_fashion(config, folder, codec.tokenizer)
    elif not (find_records(folder) / MANIFEST).exists():
        raise user_error(
            f"no records in {folder}",
            f"ArrayRecord shards of {config.name} with the latents {', '.join(config.latents.segments) or 'none'}",
            config.data.fetch or "make them with `annotate`, or set config.data.records to where they are",
        )
    return open_records(
        find_records(folder),
        codec=codec,
        image_size=config.model.denoiser.image_size,
        verify=config.data.verify,
    )


def make_fashion(config: Config, folder: Path, tokenizer: Tokenizer) -> None:
    """Makes or completes both splits of the shipped source, with all latents."""
    limit = config.annotate.limit
    for split, number in (("train", config.data.fashion.num_train), ("test", config.data.fashion.num_test)):
        make_records(
            folder,
            source=config.data.source,
            split=split,
            num_examples=min(number, limit) if limit else number,
            seed=config.seed,
            image_size=records_size(config),
            tokenizer=tokenizer,
            vokens_per_image=config.latents.vokens_per_image,
            codebook_size=config.latents.codebook_size,
            segments=config.annotate.segments,
            max_caption_tokens=config.data.max_caption_tokens,
            max_latents_tokens=config.latents.max_latents_tokens,
            annotate=config.annotate,
        )


def records_folder(config: Config, workdir: Path) -> Path:
    """Where the records of an experiment are: of the shipped source by split, else where `annotate` left them."""
    if config.data.records:
        return Path(config.data.records)
    return workdir if (workdir / MANIFEST).exists() else workdir / "records"
