"""The plan of a run as numbers, and as one table."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.config.load import load_config
from kaleido_jax.config.schema import Config
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.models.flops import StepFlops, step_flops, sum_parts
from kaleido_jax.models.kaleido import abstract_params, build_model, count_params, split_frozen
from kaleido_jax.plan.compiled import Compiled
from kaleido_jax.plan.cost import Run, run_cost
from kaleido_jax.plan.flops import count_flops
from kaleido_jax.plan.memory import bytes_by_kind
from kaleido_jax.plan.program import Program, build_program, trace
from kaleido_jax.plan.stage import stage
from kaleido_jax.runtime.accelerators import DEVICES

PAPER = "imagenet_combined"  # the shipped config of the paper's run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """FLOPs of one training step."""

    parts: Mapping[str, StepFlops]  # written out from the config
    traced: Mapping[str, int] | None  # of the step's jaxpr by dtype; None = not traced

    @property
    def total(self) -> StepFlops:
        """Of all parts."""
        return sum_parts(self.parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the verb `plan` shows. The baseline is the same config without latents."""

    name: str
    batch_size: int
    max_caption_tokens: int
    max_latents_tokens: int
    mesh: Mapping[str, int]
    parameters: Mapping[str, tuple[int, bool]]  # part -> (number, whether it is trained)
    arithmetic: Arithmetic
    baseline: Arithmetic
    bytes_per_device: Mapping[str, int]
    compiled: Compiled | None
    device: str
    utilization: float
    usd_per_device_hour: float
    runs: Mapping[str, Run]

    @property
    def ratio(self) -> float:
        """FLOPs of a step over the baseline's."""
        return self.arithmetic.total.total / self.baseline.total.total


def make_plan(
    config: Config,
    num_devices: int,
    *,
    device: str,
    utilization: float,
    usd_per_device_hour: float,
    traced: bool = True,
    compiled: Compiled | None = None,
) -> Plan:
    """The plan of a config.

    Args:
      config: the experiment, on config.mesh.
      num_devices: that the mesh spans.
      device: their kind, a key of DEVICES.
      utilization: as in `run_cost`.
      usd_per_device_hour: as in `run_cost`.
      traced: count the step's jaxpr too, a minute for the paper's model.
      compiled: what a compiler said of the same step.

    Raises:
      UserError: the mesh or the batch does not fit the devices.
    """
    without = dataclasses.replace(config, latents=dataclasses.replace(config.latents, segments=()))
    program, its = (build_program(each, _base_vocab_size(each), num_devices) for each in (config, without))
    arithmetic = _arithmetic(config, program, "the step", traced)
    baseline = _arithmetic(without, its, "the baseline's step", traced)
    paper = load_config(PAPER)
    whole = {"this config": (config, arithmetic.total), "baseline": (without, baseline.total)}
    whole["the paper's run"] = paper, sum_parts(step_flops(paper, _base_vocab_size(paper)))
    return Plan(
        name=config.name,
        batch_size=config.train.batch_size,
        max_caption_tokens=config.data.max_caption_tokens,
        max_latents_tokens=config.latents.max_latents_tokens if config.latents.segments else 0,
        mesh=mesh_sizes(config.mesh, num_devices),
        parameters=parameters_by_part(config),
        arithmetic=arithmetic,
        baseline=baseline,
        bytes_per_device=bytes_by_kind(program),
        compiled=compiled,
        device=device,
        utilization=utilization,
        usd_per_device_hour=usd_per_device_hour,
        runs={
            name: run_cost(each, flops, DEVICES[device], num_devices, utilization, usd_per_device_hour)
            for name, (each, flops) in whole.items()
        },
    )


def parameters_by_part(config: Config) -> dict[str, tuple[int, bool]]:
    """Part -> (number of parameters, whether it is trained), from shapes alone."""
    params = abstract_params(build_model(config, _base_vocab_size(config)))
    trainable, _ = split_frozen(params, config)
    return {name: (count_params(part), name in trainable) for name, part in params.items()}


def _base_vocab_size(config: Config) -> int:
    return load_tokenizer(config.model.t5.vocabulary, config.latents.codebook_size).base_vocab_size


def _arithmetic(config: Config, program: Program, title: str, traced: bool) -> Arithmetic:
    counted = None
    if traced:
        with stage(f"tracing {title}"):
            counted = dict(count_flops(trace(program)))
    return Arithmetic(parts=step_flops(config, _base_vocab_size(config)), traced=counted)


# ------------------------------------------------------------------------------------------ as JSON
def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values, with what is computed from them."""
    values = dataclasses.asdict(plan)
    values["parameters"] = {name: {"count": n, "trained": yes} for name, (n, yes) in plan.parameters.items()}
    for key, each in (("arithmetic", plan.arithmetic), ("baseline", plan.baseline)):
        values[key]["step_flops"] = each.total.total
        values[key]["flops_per_image"] = each.total.total / plan.batch_size
        values[key]["traced_step_flops"] = sum(each.traced.values()) if each.traced else None
    return values | {"ratio": plan.ratio, "peak": dataclasses.asdict(DEVICES[plan.device])}


# ------------------------------------------------------------------------------------------ as a table
@dataclasses.dataclass(frozen=True)
class _Unit:
    name: str  # T, G or M
    size: float

    def of(self, value: float) -> str:
        return f"{value / self.size:,.3f}"


def _unit(value: float) -> _Unit:
    """The largest unit of which `value` has at least one, M at the smallest."""
    return next((_Unit(name, size) for name, size in (("T", 1e12), ("G", 1e9)) if value >= size), _Unit("M", 1e6))


def to_text(plan: Plan) -> str:
    """The plan as one table for people."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    lengths = f"captions of {plan.max_caption_tokens} tokens, latents of {plan.max_latents_tokens}"
    flop = _unit(plan.arithmetic.total.total / plan.batch_size)
    byte = _unit(min(sum(plan.bytes_per_device.values()), 5e11))
    lines = [f"{plan.name}: batch of {plan.batch_size}, {lengths}, mesh {mesh}"]
    for title, rows in (
        (("parameters", ""), _parameter_rows(plan)),
        ((f"{flop.name}FLOP of an image in a training step", "this config", "baseline"), _flops_rows(plan, flop)),
        ((f"{byte.name}B on each device", ""), _memory_rows(plan, byte)),
        (("exchanged by each device in a step", "times", f"{byte.name}B"), _communication_rows(plan, byte)),
        (_run_title(plan), _run_rows(plan)),
    ):
        lines += ["", *_aligned([title, *rows])]
    return "\n".join(lines)


def _parameter_rows(plan: Plan) -> list[tuple[str, ...]]:
    rows = [(name, f"{n:,}", "trained" if yes else "frozen") for name, (n, yes) in plan.parameters.items()]
    trained, frozen = (sum(n for n, yes in plan.parameters.values() if yes is which) for which in (True, False))
    return [*rows, ("total", f"{trained:,}", "trained"), ("", f"{frozen:,}", "frozen")]


def _flops_rows(plan: Plan, unit: _Unit) -> list[tuple[str, ...]]:
    columns = [plan.arithmetic, plan.baseline]

    def row(name: str, values: Sequence[float | None]) -> tuple[str, ...]:
        return (name, *("-" if value is None else f"{value / plan.batch_size / unit.size:.4g}" for value in values))

    rows = [row(name, [_part(each, name) for each in columns]) for name in plan.arithmetic.parts]
    rows += [row(name, [getattr(each.total, name) for each in columns]) for name in ("forward", "backward")]
    rows += [
        row("recomputed (remat)", [each.total.recomputed for each in columns]),
        row("all", [each.total.total for each in columns]),
        ("this config / baseline", f"{plan.ratio:.3f}"),
    ]
    if plan.arithmetic.traced is not None:
        counts = [sum(each.traced.values()) for each in columns]
        rows.append(row("counted in the traced step", counts))
        off = [count / each.total.total - 1 for count, each in zip(counts, columns, strict=True)]
        rows.append(("  against the written-out count", *(f"{value:+.2%}" for value in off)))
        rows.append(row("  of it in float32", [each.traced.get("float32", 0) for each in columns]))
    return rows


def _part(arithmetic: Arithmetic, name: str) -> int | None:
    return arithmetic.parts[name].total if name in arithmetic.parts else None


def _memory_rows(plan: Plan, unit: _Unit) -> list[tuple[str, ...]]:
    rows = [
        (name, unit.of(size)) for name, size in plan.bytes_per_device.items() if size >= 5e5 or name != "other state"
    ]
    rows.append(("sum", unit.of(sum(plan.bytes_per_device.values()))))
    if plan.compiled is None:
        rows.append(("kept for the backward pass", "-"))
    else:
        rows += [
            ("compiled: arguments", unit.of(plan.compiled.argument_bytes)),
            ("compiled: temporary, gradients included", unit.of(plan.compiled.temporary_bytes)),
            ("compiled: peak", unit.of(plan.compiled.peak_bytes)),
        ]
    return [*rows, (f"one {plan.device} has", f"{DEVICES[plan.device].memory_gb * 1e9 / unit.size:,.0f}")]


def _communication_rows(plan: Plan, unit: _Unit) -> list[tuple[str, ...]]:
    if plan.compiled is None:
        return [("compile with --topology or --devices", "-", "-")]
    found = plan.compiled.communication
    rows = [(kind, f"{found.count_by_collective[kind]:,}", unit.of(n)) for kind, n in found.bytes_by_collective.items()]
    rows.append(("sum", f"{sum(found.count_by_collective.values()):,}", unit.of(found.total_bytes)))
    if found.unknown_loops:
        rows.append((f"{found.unknown_loops} loops of unknown length are counted once", ""))
    return rows


def _run_title(plan: Plan) -> tuple[str, ...]:
    devices = 1
    for size in plan.mesh.values():
        devices *= size
    return (
        f"{devices} x {plan.device} at {plan.utilization:.0%} of {DEVICES[plan.device].tflops:g} TFLOP/s",
        *plan.runs,
    )


def _run_rows(plan: Plan) -> list[tuple[str, ...]]:
    runs = plan.runs.values()
    price = f"USD at {plan.usd_per_device_hour:g} a device hour"
    return [
        ("steps", *(f"{run.num_steps:,}" for run in runs)),
        ("images a step", *(f"{run.batch_size:,}" for run in runs)),
        ("images/s", *(f"{run.images_per_sec:,.1f}" for run in runs)),
        ("utilization without recomputation (MFU)", *(f"{run.model_utilization:.1%}" for run in runs)),
        ("days", *(f"{run.days:,.2f}" for run in runs)),
        ("device hours", *(f"{run.device_hours:,.0f}" for run in runs)),
        (price, *(f"{run.usd:,.0f}" for run in runs)),
    ]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The first column to the left, the others to the right; the first row is a title."""
    first = max(len(row[0]) for row in rows)
    widths = [max(len(row[i]) if len(row) > i else 0 for row in rows) for i in range(1, max(map(len, rows)))]
    lines = []
    for number, (name, *cells) in enumerate(rows):
        indent = "  " if number else ""
        numbers = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
        lines.append(f"{indent}{name:<{first + 2 - len(indent)}}{numbers}".rstrip())
    return lines
