"""evaluate: the measures of the workdir's latest checkpoint, in eval/<protocol>.json."""

from pathlib import Path

from kaleido_jax.config.schema import Config
from kaleido_jax.config.stored import check_workdir
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.verbs.verb import CONFIG, WORKDIR, say

HELP = "measure the workdir's latest checkpoint by config.eval.protocol"
FLAGS = (CONFIG, WORKDIR)


def run(config: Config, workdir: Path) -> None:
    """Prints the numbers of eval/<protocol>.json, measuring first where it does not belong to the latest checkpoint."""
    check_backend()
    from kaleido_jax.evaluate.protocols import measure

    check_workdir(config, workdir)
    report = measure(workdir, config)
    say(f"{workdir / 'eval' / config.eval.protocol}.json:")
    for name, value in report.items():
        if not isinstance(value, dict):  # what it depends on, and the numbers of each caption, are in the file
            real = report.get("real", {}).get(name)
            say(f"  {name:<32}{_shown(value):>8}" + (f"   real scenes{_shown(real):>8}" if real is not None else ""))


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
