"""annotate: a data source -> records with latents, a manifest and a report."""

from pathlib import Path

from kaleido_jax.config.schema import Config
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.verbs.verb import CONFIG, WORKDIR, Flag, say

HELP = "a data source -> records with latents, a manifest and a report; resumes a stopped job, adds new images"
FLAGS = (
    CONFIG,
    WORKDIR,
    Flag(
        name="limit",
        value="N",
        help="only the first N images, as --config.annotate.limit=N",
        sets="annotate.limit",
    ),
    Flag(
        name="sample_report",
        value="N",
        help="N images in report.html (100 without =N), as --config.annotate.report_samples=N",
        sets="annotate.report_samples",
        bare="100",
    ),
)


def run(config: Config, workdir: Path) -> None:
    """Writes workdir/records, manifest.json and report.html; resumes a stopped job, and extends records by new images.

    A generated source, or one of which a share is held out, has splits, each with its manifest and report in
    workdir/records/<split>.

    Raises:
      UserError: no data, an annotator that cannot run, images that changed, or no image with all required latents.
      KeyboardInterrupt: the user stopped the job; what is finished is kept.
    """
    if config.annotate.engine == "local" and not config.annotate.num_workers:  # otherwise the workers use the devices
        check_backend()
    from kaleido_jax.annotate.job.report import summary, write_report
    from kaleido_jax.annotate.job.run import annotate
    from kaleido_jax.latents.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.model.t5.vocabulary, config.latents.codebook_size)
    for folder, manifest in annotate(config, workdir, tokenizer).items():
        say("\n".join(summary(manifest)))
        say(f"report: {write_report(folder, num_samples=config.annotate.report_samples, seed=config.seed)}")
