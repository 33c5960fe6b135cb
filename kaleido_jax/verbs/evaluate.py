"""evaluate: the measures of the workdir's latest checkpoint, in eval/<protocol>.json."""

import json
from pathlib import Path

from kaleido_jax.config.schema import Config
from kaleido_jax.config.stored import check_workdir
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.verbs.verb import CONFIG, WORKDIR, say

HELP = "measure the workdir's latest checkpoint by config.eval.protocol"
FLAGS = (CONFIG, WORKDIR)


def run(config: Config, workdir: Path) -> None:
    """Prints eval/<protocol>.json, measuring first where it does not belong to the latest checkpoint."""
    check_backend()
    from kaleido_jax.evaluate.protocols import measure

    check_workdir(config, workdir)
    report = measure(workdir, config)
    say(f"{workdir / 'eval' / config.eval.protocol}.json: {json.dumps(report, indent=2)}")
