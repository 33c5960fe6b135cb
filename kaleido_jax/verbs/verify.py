"""verify: whether every checkpoint and EMA snapshot of a workdir is whole, and a certificate of each."""

from collections.abc import Iterable
from pathlib import Path

from kaleido_jax.errors import user_error
from kaleido_jax.verbs.verb import WORKDIR, say

HELP = "read all checkpoints and EMA snapshots of a workdir, compare checksums, and print a certificate of each"
FLAGS = (WORKDIR,)


def run(workdir: Path) -> None:
    """Prints one line for each checkpoint and each snapshot.

    Raises:
      UserError: the workdir has no checkpoint, or something is damaged.
    """
    from kaleido_jax.runtime import checkpoints

    kinds = (
        (checkpoints.FOLDER, "step", "training goes on from the newest whole one; delete the damaged ones"),
        (checkpoints.SNAPSHOTS, "snapshot", "delete them; the other snapshots serve without"),
    )
    damaged = []
    for folder, word, remedy in kinds:
        steps = [step for step, whole in _print(checkpoints.certificates(workdir, folder), word) if not whole]
        if steps:
            what = "checkpoints" if word == "step" else "EMA snapshots"
            damaged.append((f"damaged {what} {', '.join(map(str, steps))}", remedy))
    if damaged:
        found = " and ".join(what for what, _ in damaged)
        raise user_error(f"{found} in {workdir}", "whole ones", "; ".join(remedy for _, remedy in damaged))


def _print(certificates: Iterable[tuple[int, dict[str, str] | Exception]], word: str) -> list[tuple[int, bool]]:
    """A line for each; (step, whether it is whole)."""
    from kaleido_jax.runtime import checkpoints

    steps = []
    for step, found in certificates:
        whole = not isinstance(found, Exception)
        text = "  ".join(f"{name} {value}" for name, value in found.items()) if whole else checkpoints.reason(found)
        say(f"{word} {step:>9}  " + (f"whole  {text}" if whole else f"damaged ({text})"))
        steps.append((step, whole))
    return steps
