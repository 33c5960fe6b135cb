"""Workdir of a run: its file names, its stored config, and the lock that keeps a second run out."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kaleido_jax.errors import user_error
from kaleido_jax.runtime.files import make_folder, read_json

log = logging.getLogger(__name__)

CONFIG, METRICS, SKIPPED, LOCK = "config.json", "metrics.jsonl", "skipped.jsonl", ".lock"
VOCABULARY = "spiece.model"  # a vocabulary of its own, also in an exported folder
WANDB = "wandb_run.txt"  # the id of the run at Weights & Biases, which a resumed run goes on with


def read_config(workdir: Path) -> dict | None:
    """The values in config.json; None if the workdir has no such file.

    Raises:
      UserError: config.json is not a JSON object or cannot be read.
    """
    try:
        return read_json(workdir / CONFIG, "a config that this program wrote", "use another --workdir")
    except (FileNotFoundError, NotADirectoryError):
        return None


def vocabulary_path(vocabulary: str, folder: Path) -> str:
    """Where config.model.t5.vocabulary is now: a path that is gone means the folder's own vocabulary, if it has one.

    So a workdir can move to another place or machine. Names of shipped vocabularies are not changed.
    """
    own = folder / VOCABULARY
    gone = vocabulary == VOCABULARY or not os.path.isfile(vocabulary)  # also of a name too long for a file
    return str(own) if is_vocabulary_path(vocabulary) and gone and own.is_file() else vocabulary


def is_vocabulary_path(vocabulary: str) -> bool:
    """Whether config.model.t5.vocabulary is a path, not the name of a shipped one."""
    return vocabulary.endswith(".model") or Path(vocabulary).name != vocabulary


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the workdir and keeps other training runs out of it; the lock of a killed process is released.

    Raises:
      UserError: another run trains there, or the folder is not writable.
    """
    with (make_folder(workdir, "--workdir") / LOCK).open(
        "a"
    ) as file:  # never deleted: another process may have opened it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise user_error(
                f"another process is training in {workdir}",
                "one run for each workdir",
                "wait until it ends or stop it, or use another --workdir",
            ) from error
        except OSError as error:
            log.warning("%s cannot be locked (%s): do not start a second run in it", workdir, error.strerror)
        yield
