"""Evaluation protocols by name: the measures of a workdir's latest checkpoint."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kaleido_jax.config.load import MODELS
from kaleido_jax.config.schema import Config, Mesh
from kaleido_jax.errors import user_error
from kaleido_jax.evaluate import edits, emoji

PROTOCOLS: dict[str, Callable[[Config, Path], dict[str, Any]]] = {
    "emoji": emoji.measure,
    "edits": edits.measure,
}


def measure(workdir: str | Path, config: Config | None = None) -> dict[str, Any]:
    """The report of config.eval.protocol, which is also in eval/<protocol>.json; measured if it is not there yet.

    Args:
      workdir: has a checkpoint.
      config: replaces the workdir's own, e.g. with another protocol.

    Raises:
      UserError: no workdir, no protocol, or no checkpoint.
    """
    workdir = Path(workdir).expanduser()
    if config is None:
        config = dataclasses.replace(Config.from_json(workdir), mesh=Mesh())
    if config.eval.protocol not in PROTOCOLS:
        raise user_error(
            f"config.eval.protocol = {config.eval.protocol!r}", f"one of {', '.join(PROTOCOLS)}", "set it in the config"
        )
    return PROTOCOLS[config.eval.protocol](config, workdir)


def bundled_reports(protocol: str) -> dict[str, dict[str, Any]]:
    """The reports by this protocol that the package's models brought with them, by the models' names."""
    paths = sorted(MODELS.glob(f"*/eval/{protocol}.json"))
    return {path.parent.parent.name: json.loads(path.read_text()) for path in paths}
