"""The workdir of an experiment: whose it is, and the names inside it."""

import dataclasses
import difflib
import json
from pathlib import Path

from kaleido_jax.config.schema import Config, identity, to_json
from kaleido_jax.errors import user_error
from kaleido_jax.runtime.files import write_atomically

CONFIG = "config.json"


def open_workdir(config: Config, workdir: Path) -> Path:
    """Makes the workdir, or checks that it belongs to this config; then stores the config as config.json.

    Fields that do not change the work (sample, eval, mesh, intervals) may differ from run to run, and so may
    train.num_steps, to go on longer; a cosine rate then follows the new length from there.

    Raises:
      UserError: it belongs to another config (the first difference is named), or config.json is damaged.
    """
    path = workdir / CONFIG
    check_workdir(config, workdir)
    if workdir.exists() and not workdir.is_dir():
        raise user_error(f"--workdir={workdir} is a file", "a folder", "name another")
    write_atomically(path, to_json(config).encode())
    return workdir


def check_workdir(config: Config, workdir: Path) -> None:
    """Checks that a workdir, if there is one, belongs to this config; makes and writes nothing.

    A field that is younger than the workdir has its default there, which is how the work was done before.

    Raises:
      UserError: it belongs to another config (the first difference is named), or config.json is damaged.
    """
    path = workdir / CONFIG
    if not path.exists():
        return
    try:
        stored = identity(json.loads(path.read_text()))
    except ValueError as error:
        raise user_error(f"{path} is damaged", "a config written by this program", "use another --workdir") from error
    mine, defaults = (identity(dataclasses.asdict(c)) for c in (config, Config()))
    stored = {key: defaults[key] for key in mine if key in defaults} | stored
    different = sorted(key for key in stored | mine if stored.get(key) != mine.get(key))
    if different:
        key = different[0]
        more = f" and {len(different) - 1} more fields differ" if len(different) > 1 else ""
        raise user_error(
            f"workdir {path.parent} belongs to another config: {key} = {stored.get(key)!r} there{more}",
            f"{mine.get(key)!r}",
            "use another --workdir or the config it was made with",
        )


def nearest(word: str, known) -> str:
    """The known word most like a misspelled one, or ""."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), "")
