"""Stamps: what a measured number depends on, kept with it, and tables that take like numbers only.

A Frechet distance moves with the network, the way of resizing and the number of images at least as much as with the
model that it is to judge. So each result carries all of these, and a table of results whose stamps differ in anything
but what the table compares is refused.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kaleido_jax.errors import nearest, user_error
from kaleido_jax.evaluate.features.inception import FID_NAME

COMPARED = ("checkpoint", "prior", "guidance", "gamma", "seeds")  # what tables compare, unless they say otherwise


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """All that a number depends on."""

    protocol: str  # by name, "" for none
    extractor: str  # the feature network; with `weights` and `resize` its identity
    weights: str  # 16 hex digits
    resize: str  # rule and side in px
    k: int  # of nearest neighbors
    reference: str  # the real images: name and fingerprint of the data
    split: str
    num_reference: int
    num_samples: int
    checkpoint: str  # fingerprint of the weights that made the samples
    prior: str  # how z was sampled; "" = without z
    sampler: str  # with what else moves x: threshold, micro conditions, a precision below float32 ...
    num_steps: int  # reverse steps; heun asks the network twice in each, and sigma_min leaves the last ones out
    guidance: str  # the rule and its own settings
    gamma: float
    seeds: tuple[int, ...]  # of training, then of sampling


@dataclass(frozen=True, kw_only=True)
class Result:
    """Numbers and their stamp."""

    stamp: Stamp
    values: Mapping[str, float]  # by metric

    def to_json(self) -> str:
        """One JSON object, the same bytes for the same result."""
        return json.dumps({"stamp": dataclasses.asdict(self.stamp), "values": dict(self.values)}, sort_keys=True)


def read_result(text: str, name: str) -> Result:
    """A result from `to_json`; `name` is the file, for errors.

    Raises:
      UserError: it is damaged, or its stamp lacks a field.
    """
    try:
        content = json.loads(text)
        stamp = content["stamp"] | {"seeds": tuple(content["stamp"]["seeds"])}
        values = {str(metric): float(value) for metric, value in content["values"].items()}
        return Result(stamp=Stamp(**stamp), values=values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found = f"{name} holds no result ({' '.join(str(error).split())[:100]})"
        raise user_error(found, "values and a whole stamp", "measure again") from error


def check_alike(results: Mapping[str, Result], compared: Collection[str] = COMPARED) -> None:
    """Checks that results may stand in one table.

    Args:
      results: by the name of their row.
      compared: fields of the stamp that may differ.

    Raises:
      UserError: another field differs; it names the field, both rows and both values. Or no field has that name.
    """
    fields = [field.name for field in dataclasses.fields(Stamp)]
    for name in compared:
        if name not in fields:
            raise user_error(
                f"compared field {name!r}", "a field of the stamp", f"did you mean {nearest(name, fields)!r}?"
            )
    (first, one), *others = results.items()
    for row, other in others:
        for field in fields:
            a, b = getattr(one.stamp, field), getattr(other.stamp, field)
            if a != b and field not in compared:
                found = f"{first!r} has {field} = {a!r} and {row!r} has {b!r}"
                do = f"measure one of them again, or compare by {field} alone"
                raise user_error(found, "numbers of one kind in one table", do)


def frechet_heading(stamp: Stamp) -> str:
    """ "FID" for the published Inception network alone, else the distance with the network's name."""
    return "FID" if stamp.extractor == FID_NAME else f"Frechet distance on {stamp.extractor}"


def table(results: Mapping[str, Result], compared: Collection[str] = COMPARED) -> str:
    """A Markdown table with a row for each result, and below it what all of them have in common.

    Raises:
      UserError: as `check_alike`.
    """
    check_alike(results, compared)
    stamps = [result.stamp for result in results.values()]
    shown = [name for name in compared if len({getattr(stamp, name) for stamp in stamps}) > 1]
    metrics = list(dict.fromkeys(metric for result in results.values() for metric in result.values))
    headings = [frechet_heading(stamps[0]) if metric == "frechet" else metric.replace("_", " ") for metric in metrics]
    rows: list[Sequence[Any]] = [("", *shown, *headings)]
    for name, result in results.items():
        numbers = [f"{result.values[metric]:.4g}" if metric in result.values else "-" for metric in metrics]
        rows.append((name, *(_plain(getattr(result.stamp, field)) for field in shown), *numbers))
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    common = {name: value for name, value in dataclasses.asdict(stamps[0]).items() if name not in shown}
    said = ", ".join(f"{name} {_plain(value)}" for name, value in common.items() if value != "")
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:], "", f"All of them: {said}."]) + "\n"


def _plain(value: Any) -> str:
    return (
        ", ".join(map(str, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
