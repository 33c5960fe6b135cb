"""What a sweep says: means with standard errors, and the models beside each other where the baseline is right."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kaleido_jax.evaluate.stamp import Stamp, frechet_heading


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a number is shown."""

    name: str  # of the values of a cell
    heading: str
    better: str  # "higher", "lower" or "" where it depends
    form: str = "{:.3f}"


METRICS = (
    Metric(name="kind_right", heading="right kind", better="higher", form="{:.1%}"),
    Metric(name="effective_number", heading="effective number of modes", better="higher", form="{:.2f}"),
    Metric(name="modes_found", heading="modes found", better="higher", form="{:.1f}"),
    Metric(name="total_variation", heading="total variation from the true shares", better="lower"),
    Metric(name="frechet", heading="Frechet distance", better="lower", form="{:.2f}"),
    Metric(name="precision", heading="precision", better="higher"),
    Metric(name="recall", heading="recall", better="higher"),
    Metric(name="density", heading="density", better="higher"),
    Metric(name="coverage", heading="coverage", better="higher"),
    Metric(name="kernel_distance", heading="kernel distance", better="lower", form="{:.4f}"),
    Metric(name="vendi", heading="Vendi score of a caption", better="higher", form="{:.2f}"),
    Metric(name="similarity", heading="mean similarity within a caption", better="lower"),
    Metric(name="sprite_as_said", heading="sprite as z says", better="higher", form="{:.1%}"),
    Metric(name="box_iou_median", heading="box IoU", better="higher"),
    Metric(name="background_as_said", heading="background as z says", better="higher", form="{:.1%}"),
    Metric(name="entropy_background", heading="entropy of the background", better="higher"),
    Metric(name="entropy_place", heading="entropy of the place", better="higher"),
    Metric(name="entropy_size", heading="entropy of the size", better="higher"),
    Metric(name="latents_parsed", heading="z that parse", better="higher", form="{:.1%}"),
)
IN_TABLE = (
    "kind_right",
    "effective_number",
    "modes_found",
    "total_variation",
    "frechet",
    "precision",
    "recall",
    "vendi",
)
RIVALRY = ("effective_number", "frechet")  # by which the best of the baseline's other rules is found
RIGHT_WITHIN = 0.01  # of the baseline's best share of right kinds


def summarize(result: Mapping[str, Any]) -> dict[str, Any]:
    """`curves`, one row for each model, rule and gamma; and `claim` where there is a baseline and another model."""
    curves = [_row(*place, cells) for place, cells in _grouped(result["cells"]).items()]
    return {"curves": curves, "claim": claim(curves), "headings": _headings(result["cells"])}


def _grouped(cells: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, float], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["model"], cell["rule"], cell["gamma"]), []).append(cell)
    return groups


def _row(model: str, rule: str, gamma: float, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of a point, with standard errors over trainings, or over seeds of sampling if there is one training.

    Of a metric that some cells lack, such as the modes of a model that draws no right kind, over those that have it.
    """
    by_training: dict[int, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_training.setdefault(cell["training"], []).append(cell)
    several = len(by_training) > 1
    groups = list(by_training.values()) if several else [[cell] for cell in cells]
    means, errors = {}, {}
    for metric in dict.fromkeys(metric for cell in cells for metric in cell["values"]):
        each = [[cell["values"][metric] for cell in group if metric in cell["values"]] for group in groups]
        found = [np.mean(values) for values in each if values]
        means[metric] = float(np.mean(found))
        errors[metric] = float(np.std(found, ddof=1) / np.sqrt(len(found))) if len(found) > 1 else None
    return {
        "model": model,
        "rule": rule,
        "gamma": gamma,
        "of": "trainings" if several else "seeds",
        "number": len(groups),
        "has_z": bool(cells[0]["stamp"]["prior"]),
        "means": means,
        "errors": errors,
        "guidance": cells[0]["stamp"]["guidance"],
    }


def claim(curves: Sequence[Mapping[str, Any]], right: str = "kind_right") -> dict[str, Any] | None:
    """Each model with z beside the baseline, both at the least gamma where the baseline is right enough.

    That is the least gamma at which the baseline's share of right kinds, under the sweep's first rule, is within one
    point of its best. `rivals` are the baseline's rules, each at its own such gamma. `best_rival` names, for each of
    RIVALRY, the rule that is best by it at any gamma where it guides: where it has at least half of the gain in right
    kinds that the first rule has over no guidance.

    Returns:
      None without a baseline or without another model.
    """
    baselines = [row for row in curves if not row["has_z"]]
    others = [row for row in curves if row["has_z"]]
    if not baselines or not others or right not in baselines[0]["means"]:
        return None
    name, first_rule = baselines[0]["model"], baselines[0]["rule"]
    rivals = {
        rule: _right_enough([row for row in baselines if (row["model"], row["rule"]) == (name, rule)], right)
        for rule in dict.fromkeys(row["rule"] for row in baselines if row["model"] == name)
    }
    plain = rivals[first_rule]
    of_first = (row for row in baselines if (row["model"], row["rule"]) == (name, first_rule))
    unguided = min(of_first, key=lambda row: row["gamma"])
    half_way = (unguided["means"][right] + plain["means"][right]) / 2
    guided = [
        row
        for row in baselines
        if row["model"] == name and row["rule"] != first_rule and row["means"][right] >= half_way
    ]
    beside = [
        {"model": row["model"], "rule": row["rule"]} | _compared(row["means"], plain["means"]) | _shown(row)
        for row in others
        if row["gamma"] == plain["gamma"]
    ]
    return {
        "baseline": name,
        "rule": first_rule,
        "gamma": plain["gamma"],
        "rivals": {rule: {"gamma": row["gamma"]} | _shown(row) for rule, row in rivals.items()},
        "best_rival": {metric: best(guided, metric)["rule"] for metric in RIVALRY if best(guided, metric)},
        "beside": beside,
    }


def best(rows: Iterable[Mapping[str, Any]], metric: str) -> Mapping[str, Any] | None:
    """The row that is best by a metric, the first of equal ones; None if none has it."""
    known = [row for row in rows if metric in row["means"]]
    better = {one.name: one.better for one in METRICS}[metric]
    return (max if better == "higher" else min)(known, key=lambda row: row["means"][metric], default=None)


def _shown(row: Mapping[str, Any]) -> dict[str, float | None]:
    return {metric: row["means"].get(metric) for metric in IN_TABLE}


def _compared(means: Mapping[str, float], plain: Mapping[str, float]) -> dict[str, float | None]:
    """The numbers of a model beside the baseline's; None where one of the two lacks the metric."""
    found: dict[str, float | None] = {}
    for name, metric, of in (
        ("recall_ratio", "recall", lambda a, b: a / max(b, 1e-9)),
        ("effective_number_ratio", "effective_number", lambda a, b: a / b),
        ("frechet_difference", "frechet", lambda a, b: a - b),
    ):
        found[name] = of(means[metric], plain[metric]) if metric in means and metric in plain else None
    return found


def _right_enough(rows: Sequence[Mapping[str, Any]], right: str) -> Mapping[str, Any]:
    best = max(row["means"][right] for row in rows)
    return min((row for row in rows if row["means"][right] >= best - RIGHT_WITHIN), key=lambda row: row["gamma"])


def _headings(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The metrics that the cells have, as they are shown."""
    stamp = Stamp(**cells[0]["stamp"] | {"seeds": tuple(cells[0]["stamp"]["seeds"])})
    found = []
    for metric in METRICS:
        if any(metric.name in cell["values"] for cell in cells):
            heading = frechet_heading(stamp) if metric.name == "frechet" else metric.heading
            found.append({"name": metric.name, "heading": heading, "better": metric.better, "form": metric.form})
    return found


# ------------------------------------------------------------------------------------------------- tables
def markdown(result: Mapping[str, Any]) -> str:
    """All points in one table, the claim in another, and what was tried."""
    summary = result["summary"]
    metrics = [h for h in summary["headings"] if h["name"] in IN_TABLE]
    lines = [_line("model", "rule", "gamma", *(h["heading"] for h in metrics)), "|---" * (3 + len(metrics)) + "|"]
    for row in summary["curves"]:
        numbers = [_number(row["means"].get(h["name"]), row["errors"].get(h["name"]), h["form"]) for h in metrics]
        lines.append(_line(row["model"], row["rule"], f"{row['gamma']:g}", *numbers))
    lines += ["", _replicates(summary["curves"])]
    if summary["claim"]:
        lines += ["", *_claim_lines(summary["claim"])]
    if result["tuned"]:
        lines += ["", _line("model", "rule", "tried", "Frechet distance", "taken"), "|---|---|---|---|---|"]
        for one in result["tuned"]:
            taken = "yes" if one["taken"] else ""
            text = " ".join(one["settings"]) or "as it is"
            lines.append(_line(one["model"], one["rule"], text, f"{one['frechet']:.2f}", taken))
    return "\n".join(lines) + "\n"


def _claim_lines(found: Mapping[str, Any]) -> list[str]:
    names = ("kind_right", "recall", "effective_number", "frechet")
    lines = [
        f"At gamma {found['gamma']:g}, the least at which {found['baseline']} under {found['rule']} is within one "
        "point of its most right kinds; its other rules each at their own such gamma:",
        "",
        _line("model", "rule", "gamma", *names, "recall, ratio", "effective number, ratio"),
        "|---" * 9 + "|",
    ]
    for rule, row in found["rivals"].items():
        numbers = (_number(row[n], None, "{:.3f}") for n in names)
        lines.append(_line(found["baseline"], rule, f"{row['gamma']:g}", *numbers, "", ""))
    for row in found["beside"]:
        ratios = (_number(row[n], None, "{:.2f}") for n in ("recall_ratio", "effective_number_ratio"))
        numbers = (_number(row[n], None, "{:.3f}") for n in names)
        lines.append(_line(row["model"], row["rule"], f"{found['gamma']:g}", *numbers, *ratios))
    return lines


def _replicates(curves: Sequence[Mapping[str, Any]]) -> str:
    found = sorted({(row["number"], row["of"]) for row in curves})
    said = " or ".join(f"{number} {of if number > 1 else of[:-1]}" for number, of in found)
    return f"Means of {said}{', with the standard error of the mean' if any(n > 1 for n, _ in found) else ''}."


def _number(mean: float | None, error: float | None, form: str) -> str:
    if mean is None:
        return "-"
    text = form.format(mean) + (f" ± {form.format(error)}" if error is not None else "")
    return text.replace("%", " %")


def _line(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
