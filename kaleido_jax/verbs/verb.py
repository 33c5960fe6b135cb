"""Parts of a verb of the command line: its flags, and the protocol of its module."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from kaleido_jax.runtime.distributed import is_main


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One --name=VALUE; the verb's run() gets the value as the argument of that name."""

    name: str
    value: str  # what the help shows after "=", e.g. "DIR"
    help: str  # one line
    missing: str = ""  # what to do if the flag is missing, "name ..."; "" = it is optional
    kind: type[str] | type[Path] | type[int] | type[float] = str
    words: tuple[str, ...] = ()  # the allowed values; () = any
    sets: str = ""  # the config field that the flag is short for; run() then gets it in its config
    bare: str = ""  # the value of the flag without "="
    keyed: bool = False  # --name.KEY=VALUE, any number of them; run() gets a dict, in the order of the flags
    has_fields: bool = False  # with --name.KEY=VALUE beside it; run() gets (value, {KEY: VALUE})
    replaces: tuple[str, ...] = ()  # names of flags that may then be missing; run() gets None for them
    repeated: bool = False  # may be given several times; run() gets a list
    configures: bool = False  # a folder with a config.json, which is used where --config is not given


CONFIG = Flag(
    name="config",
    value="NAME",
    help="a config file such as configs/emoji_combined.py, the name of a shipped one such as cc12m:text, a "
    "workdir, or its config.json; without it, config.py or else config.json of --workdir",
    missing="name a config, e.g. configs/emoji_combined.py, or a --workdir that has one",
)
WORKDIR = Flag(
    name="workdir",
    value="DIR",
    help="folder of the run: config.json, metrics.jsonl, checkpoints/, samples/, eval/",
    missing="name the folder of the run",
    kind=Path,
)
OUTPUT = Flag(name="output", value="DIR", help="a new folder", missing="name the folder to write", kind=Path)
# Of the verbs that run on the devices of several processes; `main` joins these, and run() does not get the flags.
PROCESSES = (
    Flag(
        name="coordinator",
        value="ADDRESS",
        help="HOST:PORT of process 0 of several that run the same command, where no launcher is recognized "
        "(docs/scale.md); also JAX_COORDINATOR_ADDRESS",
    ),
    Flag(
        name="num_processes",
        value="N",
        help="how many there are; 1 runs alone whatever started it; also JAX_NUM_PROCESSES",
        kind=int,
    ),
    Flag(name="process_id", value="I", help="which one this is, from 0; also JAX_PROCESS_ID", kind=int),
)


@runtime_checkable
class Verb(Protocol):
    """A module, or any object, that the command line can call.

    It is imported for --help, so it imports JAX only in run(). The arguments of run() have the names of its flags: that
    of CONFIG is a validated Config, and flags that were not given are None. With PROCESSES among its flags, run() is
    called in each process of a run, after they have joined.
    """

    HELP: str  # one line
    FLAGS: Sequence[Flag]

    def run(self, **arguments: object) -> None:
        """Does the work, or raises a UserError."""


def say(line: str) -> None:
    """Writes a result line to stdout, in the main process."""
    if not is_main():
        return
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
