"""train: records, training, a grid and measures; each is skipped if it is already done."""

import shlex
from pathlib import Path

from kaleido_jax.config.schema import Config
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.verbs.evaluate import run as evaluate
from kaleido_jax.verbs.sample import run as sample
from kaleido_jax.verbs.verb import CONFIG, PROCESSES, WORKDIR, say

HELP = "train, and sample a grid at the end; resumes from the workdir's latest checkpoint"
FLAGS = (CONFIG, WORKDIR, *PROCESSES)
NOT_AT_END = ("records",)  # protocols that want a baseline beside the run, and a feature network that may be missing


def run(config: Config, workdir: Path) -> None:
    """Trains, then samples and measures as the config says."""
    check_backend()
    from kaleido_jax.runtime.checkpoints import steps_of
    from kaleido_jax.train.fit import fit

    if not fit(config, workdir):
        say(f"training is finished: {workdir / 'checkpoints'} holds step {steps_of(workdir)[-1]}")
    if config.train.sample_at_end:
        sample(config, workdir)
    if config.eval.protocol in NOT_AT_END:
        say(f"measure it: python -m kaleido_jax.main evaluate --workdir={shlex.quote(str(workdir))}")
    elif config.eval.protocol != "none":
        evaluate(config, workdir)
