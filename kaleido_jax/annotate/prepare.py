"""Records for training: made once for a generated source, otherwise found."""

from pathlib import Path

from kaleido_jax.annotate.job.run import annotate
from kaleido_jax.config.schema import Config
from kaleido_jax.data.records import MANIFEST, Records, find_records, open_records, records_folder
from kaleido_jax.data.sources import source_kind
from kaleido_jax.errors import user_error
from kaleido_jax.latents.codec import Codec


def prepare_records(config: Config, workdir: Path, codec: Codec) -> Records:
    """The training records: made once from a generated source, or found at config.data.records.

    Raises:
      UserError: records are missing, damaged, or made for other latents or another vocabulary.
    """
    if makes_records(config):
        annotate(config, workdir, codec.tokenizer)
    else:
        check_records(config, workdir)
    return open_prepared(config, workdir, codec)


def check_records(config: Config, workdir: Path) -> None:
    """Checks that there are records, unless their source is generated; opens none and makes no folder.

    Raises:
      UserError: there are none; says how to make or where to fetch them.
    """
    folder = records_folder(config, workdir)
    if not (makes_records(config) or (find_records(folder) / MANIFEST).exists()):
        raise user_error(
            f"no records in {folder}",
            f"ArrayRecord shards of {config.name} with the latents {', '.join(config.latents.segments) or 'none'}",
            config.data.fetch or "make them with `annotate`, or set config.data.records to their folder",
        )


def makes_records(config: Config) -> bool:
    """Whether training makes its records itself, from a source that generates its images."""
    return config.data.source != "records" and bool(source_kind(config.data.source).splits)


def open_prepared(config: Config, workdir: Path, codec: Codec) -> Records:
    """The training records that `prepare_records` has made or found, maybe in another process.

    Raises:
      UserError: as `prepare_records`.
    """
    folder = records_folder(config, workdir)
    return open_records(
        find_records(folder),
        codec=codec,
        image_size=config.model.denoiser.image_size,
        verify=config.data.verify,
    )
