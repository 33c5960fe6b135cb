"""Stored config of a workdir, config.json, and whether a config belongs to the same experiment."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from kaleido_jax.config.fields import field_type, read_type
from kaleido_jax.config.schema import Config, identity
from kaleido_jax.errors import user_error
from kaleido_jax.runtime.files import make_folder, write_atomically
from kaleido_jax.runtime.workdir import CONFIG, VOCABULARY, is_vocabulary_path, read_config


def open_workdir(config: Config, workdir: Path) -> Path:
    """Makes the workdir, or checks that it belongs to this config; then stores the config as config.json.

    A vocabulary of one's own is copied to spiece.model beside it.

    Fields marked MayChange (sample, eval, mesh, intervals) may differ from run to run, and so may train.num_steps, to
    train longer; a cosine schedule then follows the new length.

    Raises:
      UserError: it belongs to another config (the message names the first difference), config.json is damaged, or the
        folder is not writable.
    """
    check_workdir(config, workdir)
    _keep_vocabulary(config, make_folder(workdir, "--workdir"))
    write_atomically(workdir / CONFIG, config.to_json().encode())
    return workdir


def check_workdir(config: Config, workdir: Path) -> None:
    """Checks that a workdir, if it exists, belongs to this config; writes nothing.

    A field that was added after the workdir was made counts as its default, which is how the run behaved before.

    Raises:
      UserError: it belongs to another config (the message names the first difference), or config.json is damaged.
    """
    values = read_config(workdir)
    if values is None:
        return
    stored = identity(values)
    mine, defaults = (identity(dataclasses.asdict(c)) for c in (config, Config()))
    groups = {key.rpartition(".")[0] for key in stored}  # also those that are None by default, such as an inner net
    young = [key for key in mine.keys() - stored.keys() if key in defaults or key.rpartition(".")[0] in groups]
    stored |= {key: _default(key) for key in young}
    different = sorted(key for key in stored | mine if stored.get(key) != mine.get(key))
    different = [key for key in different if not _only_moved(key, stored.get(key), mine.get(key), workdir)]
    if different:
        key = different[0]
        samples = "draw other samples by `sample --seed=N`, " if different == ["seed"] else ""
        more = f" and {len(different) - 1} more fields differ" if len(different) > 1 else ""
        raise user_error(
            f"workdir {workdir} belongs to another config: {key} = {stored.get(key)!r} there{more}",
            f"{mine.get(key)!r}",
            f"{samples}use another --workdir, or the config it was made with (--config={workdir / CONFIG})",
        )


def _default(key: str) -> Any:
    """The default of a field in its own group, as JSON has it; None for a whole group, such as a net."""
    group, _, name = key.rpartition(".")
    kind = read_type(field_type(Config, group)).group if group else Config
    return json.loads(json.dumps(getattr(kind(), name), default=lambda group: None))


def _only_moved(key: str, was: Any, now: Any, workdir: Path) -> bool:
    """Whether a field names the workdir's own vocabulary, which was elsewhere before."""
    if key == "model.t5.vocabulary":
        own = workdir / VOCABULARY
        moved = isinstance(was, str) and is_vocabulary_path(was) and own.is_file() and Path(now).is_file()
        return moved and own.read_bytes() == Path(now).read_bytes()
    return False


def _keep_vocabulary(config: Config, workdir: Path) -> None:
    """Copies a vocabulary that does not come with the package into the workdir, which can then move alone."""
    path, own = Path(config.model.t5.vocabulary), workdir / VOCABULARY
    if is_vocabulary_path(str(path)) and path.is_file() and not own.exists():
        write_atomically(own, path.read_bytes())
