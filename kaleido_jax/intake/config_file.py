"""The config file that `init` writes: short, with comments, and Python that its user edits."""

from collections.abc import Mapping, Sequence
from typing import Any

from kaleido_jax.intake.choose import Choice
from kaleido_jax.runtime.workdir import VOCABULARY

_COMMENTS = {
    "name": "of the run, in logs and grids",
    "data.source": "what kind of data it is; docs/annotate.md lists the others",
    "data.root": "where it is; another place on another machine",
    "data.split": "the part of it",
    "data.labels": "the table or label file",
    "data.images": "the folder of the images below root",
    "data.table.columns": "image, caption and description",
    "data.table.separator": "between the cells of the table",
    "data.max_caption_tokens": "a longer caption leaves its image out; each padded token costs time",
    "latents.segments": "the latents: what the model writes down before it draws",
    "latents.max_latents_tokens": "likewise for the latents",
    "annotate.bbox.model": "the detector of boxes, with its class names in the .names file beside it",
    "annotate.blob.model": "the model of masks inside the boxes",
    "annotate.view_size": "px at which the detector sees a picture; the model trains on less",
    "annotate.held_out_share": "of the images, kept out of training to measure on",
    "train.num_steps": "may be raised later: the run then goes on",
    "sample.captions": "rows of the grid of samples",
    "eval.protocol": "what `evaluate` measures: beside the held-out pictures, and beside a baseline (docs/metrics.md)",
}


def config_text(choice: Choice, *, title: str, command: str, workdir: str) -> str:
    """The file's text; get_config() returns the base with the choice's fields and its vocabulary beside the file."""
    size = choice.base.partition(":")[2].partition("-")[0]
    fields = dict(choice.fields)
    same = fields.pop("annotate.segments", None) == fields.get("latents.segments")
    body = _assignments(fields, same)
    return f'''"""{_plain(title)}.

Written by: {_plain(command)}
Yours to edit. `{choice.base}` has the model for {size} px and how it is trained (configs/own_pictures.py); below are
the fields that depend on the data. All fields with their reasons: kaleido_jax/config/schema.py. Once training has
begun, only what decides neither the model nor its data may change, such as the number of steps and all of `sample`.

  python -m kaleido_jax.main annotate --workdir={_plain(workdir)}
  python -m kaleido_jax.main --workdir={_plain(workdir)}
  python -m kaleido_jax.main evaluate --workdir={_plain(workdir)}
"""

from pathlib import Path

from ml_collections import ConfigDict

from kaleido_jax.config import base_config


def get_config() -> ConfigDict:
    config = base_config("{choice.base}")
    # Trained on the captions of these data.
    config.model.t5.vocabulary = str(Path(__file__).with_name("{VOCABULARY}"))
{body}
    return config
'''


def _plain(text: str) -> str:
    """Text for a docstring: names of folders may hold anything."""
    shown = "".join(ch if ch.isprintable() else " " for ch in text)
    return shown.replace("\\", "\\\\").replace('"', "'")


def _assignments(fields: Mapping[str, Any], same_segments: bool) -> str:
    lines = []
    for key, value in fields.items():
        comment = f"  # {_COMMENTS[key]}" if key in _COMMENTS else ""
        line = f"    config.{key} = {_literal(value)}"
        lines += [f"    #{comment[3:]}", line] if comment and len(line + comment) > 120 else [line + comment]
        if key == "latents.segments" and same_segments:
            lines.append("    config.annotate.segments = config.latents.segments")
    return "\n".join(lines)


def _literal(value: Any) -> str:
    """Python for a value, with double quotes where possible; over several lines if it is long."""
    if isinstance(value, str):
        return f'"{value}"' if value.isprintable() and not {'"', "\\"} & {*value} else repr(value)
    if isinstance(value, Sequence):
        items = [_literal(item) for item in value]
        if sum(map(len, items)) > 80:
            return "(\n" + "".join(f"        {item},\n" for item in items) + "    )"
        return f"({', '.join(items)}{',' * (len(items) == 1)})"
    return repr(value)
