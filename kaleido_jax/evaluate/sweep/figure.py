"""A sweep as one picture: effective number of modes and Frechet distance against gamma."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kaleido_jax.runtime.files import write_atomically

Curve = Sequence[Mapping[str, Any]]  # rows of the summary at several gamma
SHOWN = {"effective_number": "most modes", "frechet": "least distance"}  # what is best, in words
_COLORS = ("#7a7f8c", "#3a7bd5", "#2a9d8f", "#e07b00", "#b0489b")


def curves_shown(summary: Mapping[str, Any]) -> dict[str, Curve]:
    """The baseline under the first rule and under the best of the others; each model with z under two rules.

    Best by each metric of the picture, at any gamma where the rule guides (see `claim`).
    """
    found, curves = summary["claim"], summary["curves"]
    if found is None:
        return {f"{m}, {r}": _rows(curves, m, r) for m, r in dict.fromkeys((c["model"], c["rule"]) for c in curves)}
    name, first = found["baseline"], found["rule"]
    shown, best = {f"{name}, {first}": _rows(curves, name, first)}, {}
    for metric, rule in found["best_rival"].items():
        best.setdefault(rule, []).append(SHOWN[metric])
    for rule, words in best.items():
        shown[f"{name}, {rule} (rival: {', '.join(words)})"] = _rows(curves, name, rule)
    for model in dict.fromkeys(row["model"] for row in curves if row["has_z"]):
        shown |= {f"{model}, {rule}": _rows(curves, model, rule) for rule in (first, "interval")}
    return {label: rows for label, rows in shown.items() if rows}


def _rows(curves: Curve, model: str, rule: str) -> Curve:
    rows = [row for row in curves if (row["model"], row["rule"]) == (model, rule)]
    return sorted(rows, key=lambda row: row["gamma"])


def write_figure(summary: Mapping[str, Any], path: Path) -> None:
    """Writes the picture, 1,600 px wide."""
    # No window, and no state that other figures share.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    shown, headings = curves_shown(summary), {h["name"]: h["heading"] for h in summary["headings"]}
    figure = Figure(figsize=(10, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric in zip(figure.subplots(1, 2), SHOWN, strict=True):
        gammas = sorted({row["gamma"] for rows in shown.values() for row in rows})
        for (label, rows), color in zip(shown.items(), _COLORS * len(shown), strict=False):
            with_it = [row for row in rows if metric in row["means"]]
            means = [row["means"][metric] for row in with_it]
            errors = [row["errors"][metric] or 0 for row in with_it]
            dash = "-" if label.endswith("CFG") else "--"
            x = [row["gamma"] for row in with_it]
            known = errors if any(errors) else None  # of one training each there are none
            axes.errorbar(x, means, known, label=label, color=color, linestyle=dash, marker="o", capsize=3)
        if min(gammas) > 0:
            axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(gammas))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlabel("gamma")
        axes.set_title(headings.get(metric, metric), fontsize=12)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # "$" in the name of a model is a dollar
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", metadata={"Software": None})
        write_atomically(path, buffer.getvalue())
