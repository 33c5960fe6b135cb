"""What each verb does, in the order in which a person would do it by hand."""

import json
import logging as std_logging
import sys
from pathlib import Path

from absl import logging

from kaleido_jax.config.checks import check_devices
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.schema import Config, records_size
from kaleido_jax.config.stored import check_workdir, open_workdir
from kaleido_jax.data.loader import make_loader
from kaleido_jax.data.records import MANIFEST, find_records, open_records, read_manifest
from kaleido_jax.errors import user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.tokenizer import Tokenizer, load_tokenizer
from kaleido_jax.runtime.workdir import locked


def start_logging() -> None:
    """Our progress at INFO on stderr; libraries only from WARNING on."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold(logging.INFO)
    for name in ("jax", "orbax", "grain", "kaleido_jax"):
        std_logging.getLogger(name).setLevel(std_logging.WARNING)
    std_logging.getLogger("kaleido_jax").setLevel(std_logging.INFO)
    logging.get_absl_logger().addFilter(_not_from_libraries)


def _not_from_libraries(record) -> bool:
    # Orbax and clu log through absl's one logger; their INFO lines would drown ours.
    # That a checkpoint is opened only for reading is meant so, yet Orbax warns of it.
    meant = "checkpoint_manager" in record.pathname and "read" in str(record.msg)
    return (record.levelno >= std_logging.WARNING and not meant) or "kaleido_jax" in record.pathname


def say(line: str) -> None:
    """A result line on stdout."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# --------------------------------------------------------------------------------------------- the verbs
def train(config: Config, workdir: Path) -> None:
    """Records, training, the grid, the measures; each is skipped where it is done already."""
    if config.recipe == "figure3":
        from kaleido_jax.evaluate import figure3

        say(figure3.run(config, workdir))
        return
    import jax

    from kaleido_jax.train import loop

    check_weights(config, fresh=not (workdir / "checkpoints").is_dir())
    check_devices(config, jax.device_count())
    codec = open_codec(config)
    with locked(workdir):
        open_workdir(config, workdir)
        records = prepare_records(config, workdir, codec)
        if loop.finished(workdir, config):
            say(f"training is finished: {workdir / 'checkpoints'} holds step {config.train.num_steps}")
        else:
            loop.train(config, workdir, codec.tokenizer, make_batches(config, records, codec))
        if config.train.sample_at_end:
            sample(config, workdir)
        if config.eval.protocol != "none":
            evaluate(config, workdir)


def annotate(config: Config, workdir: Path) -> None:
    """Records with latents in workdir/records, manifest.json and report.html; goes on where it was stopped.

    The shipped source has two splits, each with its manifest and report in workdir/records/<split>.

    Raises:
      UserError: no data, annotators that cannot work, or no image of which all that is required was made.
    """
    from kaleido_jax.annotate.job.report import summary, write_report
    from kaleido_jax.annotate.job.run import annotate_data

    if config.data.source == "records":
        raise user_error("config.data.source = 'records'", "data to annotate, e.g. 'coco'", "set it and data.root")
    tokenizer = load_tokenizer(config.model.t5.vocabulary, config.latents.codebook_size)
    if config.data.source == "fashion":
        make_fashion(config, records_folder(config, workdir), tokenizer)
        folders = [records_folder(config, workdir) / split for split in ("train", "test")]
    else:
        annotate_data(config, workdir, tokenizer)
        folders = [workdir]
    for folder in folders:
        say("\n".join(summary(read_manifest(folder))))
        say(f"report: {write_report(folder, num_samples=config.annotate.report_samples, seed=config.seed)}")


def sample(config: Config, workdir: Path) -> None:
    """Writes samples/step_<N>/: the grid, each image, and the JSON of each latents with its recipe."""
    from kaleido_jax.sampling import output as gallery
    from kaleido_jax.sampling.pipeline import KaleidoPipeline

    check_workdir(config, workdir)
    pipeline = KaleidoPipeline.from_workdir(config, workdir)
    say(f"grid: {gallery.write_samples(pipeline, config, workdir)}")


def evaluate(config: Config, workdir: Path) -> None:
    """Prints eval/<protocol>.json, measuring first where it does not belong to the latest checkpoint."""
    if config.eval.protocol == "none":
        raise user_error("config.eval.protocol = 'none'", "a protocol such as 'quickstart'", "set it")
    from kaleido_jax.evaluate import quickstart

    check_workdir(config, workdir)
    path, report = quickstart.measure(config, workdir)
    say(f"{path}: {json.dumps(report, indent=2)}")


def plan(config: Config, workdir: Path | None = None) -> None:
    """Parameters of the config, from shapes alone."""
    del workdir
    from kaleido_jax.models.kaleido import abstract_params, build_model, count_params, split_frozen

    tokenizer = load_tokenizer(config.model.t5.vocabulary, config.latents.codebook_size)
    params = abstract_params(build_model(config, tokenizer.base_vocab_size))
    trainable, frozen = split_frozen(params, config)
    for name, part in params.items():
        state = "trainable" if name in trainable else "frozen"
        say(f"{name:<10} {count_params(part):>15,} parameters, {state}")
    say(f"{'total':<10} {count_params(trainable):>15,} trainable, {count_params(frozen):,} frozen")


def convert(source: Path, output: Path, form: str) -> None:
    """Writes a T5 checkpoint or a denoiser as a new folder in another format; sizes are read from the tensors.

    Of a workdir "t5x" and "huggingface" take encoder and prior, the other formats the denoiser.
    """
    from kaleido_jax.interop.mdm import files as mdm_files
    from kaleido_jax.interop.t5 import load as checkpoint

    trained = (source / "checkpoints").is_dir()
    if form == "mdm" or (form == "kaleido" and (trained or mdm_files.holds_denoiser(source))):
        if trained:
            from kaleido_jax.train.warm_start import trained_denoiser as open_denoiser
        else:
            open_denoiser = mdm_files.open_denoiser
        weights = open_denoiser(source)
        say(f"{output}: {mdm_files.convert(weights, output, form)}, from {weights.path} as {form}")
        return
    if trained:
        from kaleido_jax.train.warm_start import trained_t5

        source = trained_t5(source)
    read = checkpoint.convert(source, output, form)
    say(f"{output}: {len(read.names)} tensors of {read.path} as {form}")


# ------------------------------------------------------------------------------------------------- parts
def check_weights(config: Config, fresh: bool = True) -> None:
    """The weights that a config starts from are there; a frozen encoder needs some of T5.

    Raises:
      UserError: there are none at config.model.t5.checkpoint, or for a fresh run at config.init.inner; says what to
        fetch and where to put it.
    """
    inner = config.init.inner
    if fresh and inner is not None and not Path(inner).exists():
        raise user_error(
            f"config.init.inner = {inner!r} is not on this machine",
            "a trained net of the low resolution: a run's workdir, or MDM's weights",
            "train that net first, or fetch https://docs-assets.developer.apple.com/ml-research/models/mdm/"
            "flickr64/vis_model.pth (or flickr256), and set config.init.inner to where it is",
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
            "google/flan-t5-xl, put them there, or set config.model.t5.checkpoint to where they are",
        )


def prepare_records(config: Config, workdir: Path, codec: Codec):
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
    from kaleido_jax.annotate.job.run import make_records

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


def make_batches(config: Config, records, codec: Codec):
    """This process's share of the training batches, as an iterator that can be checkpointed."""
    import jax

    return make_loader(
        records,
        codec=codec,
        batch_size=config.train.batch_size,
        max_caption_tokens=config.data.max_caption_tokens,
        max_latents_tokens=config.latents.max_latents_tokens,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
