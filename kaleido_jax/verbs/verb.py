"""What a verb of the command line is made of: its flags, and the protocol that a module meets."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One --name=VALUE; the verb's run() gets the value as the argument of that name."""

    name: str
    value: str  # what the help writes behind "=", e.g. "DIR"
    help: str  # one line
    missing: str = ""  # what to do where the flag is missing, "name ..."; "" = it may be left out
    kind: type[str] | type[Path] = str
    words: tuple[str, ...] = ()  # the allowed values; () = any
    sets: str = ""  # the config field that the flag is short for; run() then gets it in its config
    bare: str = ""  # the value of the flag without "="


CONFIG = Flag(
    name="config",
    value="FILE",
    help="a file of configs/, e.g. configs/fashion_combined.py",
    missing="name a file of configs/, e.g. configs/fashion_combined.py",
)
WORKDIR = Flag(
    name="workdir",
    value="DIR",
    help="folder of the run: config.json, metrics.jsonl, checkpoints/, samples/, eval/",
    missing="name the folder of the run",
    kind=Path,
)


class Verb(Protocol):
    """A module, or any object, that the command line can call.

    It is imported for --help, so it imports JAX only in run(). run's arguments have the names of its flags; that of
    CONFIG is a validated Config, and flags that were left out are None.
    """

    HELP: str  # one line
    FLAGS: Sequence[Flag]

    def run(self, **arguments: object) -> None:
        """Does the work, or raises a UserError."""


def say(line: str) -> None:
    """Writes a result line to stdout."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
