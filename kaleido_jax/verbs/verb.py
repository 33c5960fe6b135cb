"""Parts of a verb of the command line: its flags, and the protocol of its module."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One --name=VALUE; the verb's run() gets the value as the argument of that name."""

    name: str
    value: str  # what the help shows after "=", e.g. "DIR"
    help: str  # one line
    missing: str = ""  # what to do if the flag is missing, "name ..."; "" = it is optional
    kind: type[str] | type[Path] = str
    words: tuple[str, ...] = ()  # the allowed values; () = any
    sets: str = ""  # the config field that the flag is short for; run() then gets it in its config
    bare: str = ""  # the value of the flag without "="
    configures: bool = False  # a folder with a config.json, which is used where --config is not given


CONFIG = Flag(
    name="config",
    value="NAME",
    help="a config file such as configs/emoji_combined.py, the name of a shipped one such as cc12m:text, a "
    "workdir, or its config.json",
    missing="name a config, e.g. configs/emoji_combined.py",
)
WORKDIR = Flag(
    name="workdir",
    value="DIR",
    help="folder of the run: config.json, metrics.jsonl, checkpoints/, samples/, eval/",
    missing="name the folder of the run",
    kind=Path,
)
OUTPUT = Flag(name="output", value="DIR", help="a new folder", missing="name the folder to write", kind=Path)


@runtime_checkable
class Verb(Protocol):
    """A module, or any object, that the command line can call.

    It is imported for --help, so it imports JAX only in run(). The arguments of run() have the names of its flags: that
    of CONFIG is a validated Config, and flags that were not given are None.
    """

    HELP: str  # one line
    FLAGS: Sequence[Flag]

    def run(self, **arguments: object) -> None:
        """Does the work, or raises a UserError."""


def say(line: str) -> None:
    """Writes a result line to stdout."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
