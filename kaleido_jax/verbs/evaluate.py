"""evaluate: the measures of the workdir's latest checkpoint, in eval/<protocol>.json; or those of a whole sweep."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kaleido_jax.config.schema import Config, Sample
from kaleido_jax.config.stored import check_workdir
from kaleido_jax.config.sweep import load_sweep
from kaleido_jax.errors import user_error
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.runtime.files import make_folder
from kaleido_jax.verbs.verb import CONFIG, PROCESSES, WORKDIR, Flag, say

HELP = "measure the workdir's latest checkpoint by config.eval.protocol; or models against guidance, with --sweep"
SWEEP = Flag(
    name="sweep",
    value="NAME",
    help="instead of --config: a sweep such as configs/sweep_emoji.py, with --sweep.KEY=VALUE to change a field; "
    "--workdir then gets sweep.html, sweep.json and all samples, and the same command goes on after a stop",
    has_fields=True,
    replaces=("config",),
)
BASELINE = Flag(
    name="baseline",
    value="DIR",
    help="with the protocol records: the workdir of a model without latents that was trained on the same records, to "
    "be measured beside it",
    kind=Path,
)
PART = Flag(
    name="part",
    value="MODEL/N",
    help="with --sweep: only the cells of training N (from 0) of a model, so that several processes, each with another "
    "part, share a sweep; --sweep alone then collects them",
)
FLAGS = (CONFIG, SWEEP, PART, BASELINE, WORKDIR, *PROCESSES)
_DEFAULTS = json.loads(json.dumps(dataclasses.asdict(Sample())))
OTHERS = {  # parts of a report with the same measures -> heading of their column
    "baseline": "baseline",
    "real": "real images",
    "kept": "others kept",
    "follow": "others follow",
}


def run(
    config: Config | None,
    workdir: Path,
    sweep: tuple[str, dict[str, str]] | None = None,
    baseline: Path | None = None,
    part: str | None = None,
) -> None:
    """Prints eval/<protocol>.json beside the bundled models', measuring first unless it has the latest checkpoint's.

    With a sweep: measures what is missing of it and prints its tables; of a part of it, only measures.

    Raises:
      UserError: a baseline beside a sweep, a part without one, and what the protocol or the sweep raises.
    """
    if sweep is not None:
        if baseline is not None:
            raise user_error("--baseline beside --sweep", "one of them", "a sweep names its models itself")
        _sweep(sweep, workdir, part)
        return
    if part is not None:
        raise user_error("--part without --sweep", "both", "name the sweep")
    check_backend()
    from kaleido_jax.evaluate.protocols import bundled_reports, measure
    from kaleido_jax.runtime.compile_times import compiling

    check_workdir(config, workdir)
    with compiling("what measures", config.model, config.diffusion, config.sample, config.eval):
        report = measure(workdir, config, baseline)
    columns = {"this run": report} | bundled_reports(config.eval.protocol)
    say(f"{workdir / 'eval' / config.eval.protocol}.json:")
    say(table(columns | {heading: report[key] for key, heading in OTHERS.items() if key in report}))
    for name, reason in report.get("left_out", {}).items():
        say(f"  no {name}: {reason}")
    page = workdir / "eval" / f"{config.eval.protocol}.html"
    if page.exists():
        say(f"{page} shows it")


def _sweep(sweep: tuple[str, dict[str, str]], folder: Path, part: str | None) -> None:
    loaded = load_sweep(*sweep)
    check_backend()
    from kaleido_jax.evaluate.sweep.run import SweepRun
    from kaleido_jax.evaluate.sweep.summary import markdown

    started = SweepRun(loaded, folder, part)  # refuses what cannot run, and leaves nothing behind
    make_folder(folder, "--workdir")
    if part is not None:
        say(f"{part}: {started.run_part()} cells are measured; without --part the same command collects all")
        return
    say(markdown(started.run()))
    say(f"{folder / 'sweep.html'} shows it, {folder / 'sweep.json'} holds it")


def table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Measures of the first report, one a line, beside those of the others; "-" where a report does not have it."""
    first, *_ = columns.values()
    # What a report depends on, and the numbers of each caption, are in the file.
    names = [name for name, value in first.items() if not isinstance(value, dict)]
    settings = _settings([report["of"] for report in columns.values() if "of" in report])
    rows = [("", *columns)]
    rows += [(key, *(_shown(_setting(report.get("of", {}), key)) for report in columns.values())) for key in settings]
    rows += [(name, *(_shown(report.get(name)) for report in columns.values())) for name in names]
    first_width, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        f"  {name:<{first_width}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for name, *cells in rows
    ]
    return "\n".join(lines)


def _settings(of: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What is shown of how the columns were sampled: the usual ones, and all in which they differ."""
    if not of:
        return ()
    names = dict.fromkeys(name for one in of for name in one.get("sample", {}))
    differing = [name for name in names if len({json.dumps(_setting(one, name)) for one in of}) > 1]
    return tuple(dict.fromkeys(("step", "gamma", "num_steps", "num_samples", *differing)))


def _setting(of: Mapping[str, Any], key: str) -> Any:
    sample = of.get("sample")
    if sample is not None:
        sample = _DEFAULTS | sample  # a report lacks settings that are younger than it, or do nothing in it
    return of.get(key, (sample or {}).get(key, of.get("model", {}).get(key)))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_shown, value))})"
    if isinstance(value, str | bool):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
