"""Evaluation protocols by name: the measures of a workdir's latest checkpoint."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kaleido_jax.config.load import MODELS
from kaleido_jax.config.schema import Config, Mesh
from kaleido_jax.errors import user_error
from kaleido_jax.evaluate import edits, emoji, records

PROTOCOLS: dict[str, Callable[..., dict[str, Any]]] = {
    "emoji": emoji.measure,
    "edits": edits.measure,
    "records": records.measure,
}
WITH_BASELINE = ("records",)  # protocols that measure a baseline beside the model


def measure(workdir: str | Path, config: Config | None = None, baseline: str | Path | None = None) -> dict[str, Any]:
    """The report of config.eval.protocol, which is also in eval/<protocol>.json; measured if it is not there yet.

    Args:
      workdir: has a checkpoint.
      config: replaces the workdir's own, e.g. with another protocol.
      baseline: the workdir of a model without latents, which the protocol `records` measures beside it.

    Raises:
      UserError: no workdir, no protocol, no checkpoint, or a baseline that the protocol cannot use.
    """
    workdir = Path(workdir).expanduser()
    if config is None:
        config = dataclasses.replace(Config.from_json(workdir), mesh=Mesh())
    if config.eval.protocol not in PROTOCOLS:
        raise user_error(
            f"config.eval.protocol = {config.eval.protocol!r}", f"one of {', '.join(PROTOCOLS)}", "set it in the config"
        )
    if baseline is None:
        return PROTOCOLS[config.eval.protocol](config, workdir)
    if config.eval.protocol not in WITH_BASELINE:
        found = f"a baseline with config.eval.protocol = {config.eval.protocol!r}"
        raise user_error(found, f"the protocol {' or '.join(WITH_BASELINE)}", "leave the baseline out, or set it")
    return records.measure(config, workdir, Path(baseline).expanduser())


def bundled_reports(protocol: str) -> dict[str, dict[str, Any]]:
    """The reports by this protocol that the package's models brought with them, by the models' names."""
    paths = sorted(MODELS.glob(f"*/eval/{protocol}.json"))
    return {path.parent.parent.name: json.loads(path.read_text()) for path in paths}
