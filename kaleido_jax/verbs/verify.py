"""verify: whether every checkpoint of a workdir is whole, and a certificate of each."""

from pathlib import Path

from kaleido_jax.errors import user_error
from kaleido_jax.verbs.verb import WORKDIR, say

HELP = "read every checkpoint of a workdir, compare its checksums, and print a certificate: hashes of its parts"
FLAGS = (WORKDIR,)


def run(workdir: Path) -> None:
    """Prints one line for each checkpoint.

    Raises:
      UserError: the workdir has no checkpoint, or one of them is damaged.
    """
    from kaleido_jax.runtime import checkpoints

    damaged = []
    for step, found in checkpoints.certificates(workdir):
        if isinstance(found, Exception):
            damaged.append(step)
            say(f"step {step:>9}  damaged ({checkpoints.reason(found)})")
        else:
            say(f"step {step:>9}  whole  " + "  ".join(f"{name} {value}" for name, value in found.items()))
    if damaged:
        raise user_error(
            f"damaged checkpoints {', '.join(map(str, damaged))} in {workdir}",
            "whole ones",
            "training goes on from the newest whole one; delete the damaged ones",
        )
