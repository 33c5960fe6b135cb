"""plan: what a run needs (parameters, FLOPs, memory, communication, days, cost), without an accelerator."""

import dataclasses
import json as json_format
import math
import os
from pathlib import Path

from kaleido_jax.config.schema import Config
from kaleido_jax.errors import user_error
from kaleido_jax.runtime.accelerators import DEVICES
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.runtime.xla_flags import add_virtual_devices
from kaleido_jax.verbs.verb import CONFIG, WORKDIR, Flag, say

MAX_VIRTUAL = 512  # CPU devices: each has threads of its own
HELP = "what a run needs: parameters, FLOPs, memory, days, cost, from shapes alone; trains nothing"
FLAGS = (
    CONFIG,
    dataclasses.replace(WORKDIR, missing=""),  # so that any command with this verb becomes a plan
    Flag(name="num_devices", value="N", help="devices of the mesh; without it those of --topology or --devices, or 1"),
    Flag(
        name="device",
        value="KIND",
        help="their kind: h100, a100, v5p, ...; without it that of --topology, or h100",
    ),
    Flag(name="utilization", value="SHARE", help="of the peak that a step's FLOPs reach (default 0.4)"),
    Flag(name="price", value="USD", help="of a device hour (default 2.0)"),
    Flag(
        name="topology",
        value="DEVICES",
        help="compile the step for TPUs such as v5p:2x2x2, with libtpu, or GPUs such as h100:8, with jax's CUDA plugin",
    ),
    Flag(name="devices", value="N", help="compile the step for N virtual CPU devices"),
    Flag(name="quick", value="yes", help="do not count the FLOPs of the traced step too", bare="yes", words=("yes",)),
    Flag(name="json", value="FILE", help="write the numbers there too", kind=Path),
)


def run(
    config: Config,
    workdir: Path | None = None,
    num_devices: str | None = None,
    device: str | None = None,
    utilization: str | None = None,
    price: str | None = None,
    topology: str | None = None,
    devices: str | None = None,
    quick: str | None = None,
    json: Path | None = None,
) -> None:
    """Prints the plan of config on config.mesh."""
    del workdir
    share, usd = _number("utilization", utilization or "0.4", 0, 1), _number("price", price or "2.0", 0)
    count = int(_number("num_devices", num_devices, 0, whole=True)) if num_devices else None
    if topology and devices:
        raise user_error("--topology and --devices", "one of them", "leave one out")
    if devices:
        add_virtual_devices(virtual := int(_number("devices", devices, 0, MAX_VIRTUAL, whole=True)))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # an accelerator's memory may be another process's
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # of a driver, which compiling does not need
    check_backend()
    from kaleido_jax.latents.tokenizer import load_tokenizer
    from kaleido_jax.plan.compiled import compile_step, topology_devices, virtual_devices
    from kaleido_jax.plan.report import make_plan, to_json, to_text

    if json and (json.is_dir() or not json.parent.is_dir()):  # before minutes of work
        raise user_error(f"--json={json}", "a file in a folder that exists", "name the file, or make the folder")
    of_topology = (topology or "").partition(":")[0]
    kind = device or (of_topology if of_topology in DEVICES else "h100")
    if kind not in DEVICES:
        raise user_error(f"--device={kind}", f"one of {', '.join(DEVICES)}", "choose the nearest")
    compiled = None
    if topology or devices:
        targets = topology_devices(topology) if topology else virtual_devices(virtual)
        if count not in (None, targets.size):
            found = f"--num_devices={count} with {targets.size} devices to compile for"
            raise user_error(found, "the same number", "leave --num_devices out")
        count = targets.size
        base = load_tokenizer(config.model.t5.vocabulary, config.latents.codebook_size).base_vocab_size
        compiled = compile_step(config, base, targets)
    _check_told(config, count)
    plan = make_plan(
        config,
        count or 1,
        device=kind,
        utilization=share,
        usd_per_device_hour=usd,
        traced=not quick,
        compiled=compiled,
    )
    say(to_text(plan))
    if json:
        _write(json, to_json(plan))


def _check_told(config: Config, count: int | None) -> None:
    """A mesh of several devices needs their number, which is not that of this machine's."""
    axes = {name: getattr(config.mesh, name) for name in ("data", "fsdp", "tensor")}
    least = math.prod(size for size in axes.values() if size > 0)
    if count is None and least > 1:
        do = f"give --num_devices={least} or a multiple of it"
        raise user_error(f"config.mesh = {axes} without --num_devices", "the number of devices to plan for", do)


def _write(path: Path, values: dict) -> None:
    path.write_text(json_format.dumps(values, indent=2) + "\n", encoding="utf-8")


def _number(name: str, text: str, low: float, high: float = math.inf, whole: bool = False) -> float:
    """A flag's number above `low` and up to `high`."""
    kind = "a whole number" if whole else "a number"
    expected = f"{kind} above {low}" + (f", at most {high:g}" if high < math.inf else "")
    try:
        value = float(text)
    except ValueError as error:
        raise user_error(f"--{name}={text}", expected, "correct it") from error
    if not (low < value <= high) or not math.isfinite(value) or (whole and value != int(value)):
        raise user_error(f"--{name}={text}", expected, "correct it")
    return value
