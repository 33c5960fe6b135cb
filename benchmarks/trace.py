"""Where the device's time goes: a trace of jax.profiler summed by kernel and by class of kernels."""

import collections
import dataclasses
import gzip
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CLASSES = (  # the first pattern found in a kernel's name decides
    ("collectives", r"nccl|all[-_]?(reduce|gather|to[-_]all)|reduce[-_]scatter|collective"),
    ("copies, transposes", r"nchwTo|nhwcTo|memcpy|memset"),
    ("convolutions", r"conv(?!ert)|fprop|dgrad|wgrad|implicit_gemm|cudnn"),
    ("matrix products", r"gemm|nvjet|cutlass|cublas|matmul|splitK|(?<![a-z])dot(?![a-z])"),
    ("softmax, sums, maxima", r"softmax|reduce|norm|row_sum"),
    ("copies, transposes", r"copy|transpose|slice|concatenate|(?<![a-z])pad(?![a-z])|gather|scatter|bitcast"),
    ("elementwise fusions", r"fusion|loop|wrapped|triton|broadcast|convert|add|multiply|select|tanh|exp"),
)
OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """All runs of the kernels of one name."""

    name: str
    ms: float  # of one step
    calls: float  # in one step


def class_of(name: str) -> str:
    """The class of a kernel by its name, as CUDA or XLA gives it."""
    return next((title for title, pattern in CLASSES if re.search(pattern, name, re.IGNORECASE)), OTHER)


def kernels_of(events: Iterable[Mapping[str, Any]], steps: int) -> list[Kernel]:
    """The kernels in a trace's events, the longest first.

    On a GPU these are the events of its streams. On CPU, where the operations of a loop's body are inside those of the
    loop, they are XLA's operations without the loops.
    """
    events = list(events)
    metadata = [event for event in events if event.get("ph") == "M"]
    processes = {e["pid"]: e["args"]["name"] for e in metadata if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in metadata if e["name"] == "thread_name"}
    devices = {pid for pid, name in processes.items() if name.startswith("/device:")}
    streams = {key for key, name in threads.items() if key[0] in devices and name.startswith("Stream")}
    times, calls = collections.Counter(), collections.Counter()
    for event in events:
        if event.get("ph") != "X":
            continue
        name, where = event["name"], (event["pid"], event.get("tid"))
        operation = event.get("args", {}).get("hlo_op", "")
        inside = not operation.startswith(("while", "call", "conditional"))
        if where in streams if streams else (operation and inside and (event["pid"] in devices or not devices)):
            times[name] += event.get("dur", 0) / 1e3  # us
            calls[name] += 1
    return [Kernel(name, ms / steps, calls[name] / steps) for name, ms in times.most_common()]


def read_trace(folder: Path) -> list[dict[str, Any]]:
    """The events of the newest trace below a folder.

    Raises:
      FileNotFoundError: there is none.
    """
    files = sorted(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"no *.trace.json.gz below {folder}")
    with gzip.open(files[-1]) as file:
        return json.load(file)["traceEvents"]


def by_class(kernels: Iterable[Kernel]) -> dict[str, float]:
    """Class -> ms of a step, the longest first."""
    total = collections.Counter()
    for kernel in kernels:
        total[class_of(kernel.name)] += kernel.ms
    return dict(total.most_common())


def to_markdown(kernels: list[Kernel], top: int = 20) -> str:
    """Two tables: by class, and the `top` names."""
    whole = sum(kernel.ms for kernel in kernels) or 1.0
    lines = ["| class of kernels | ms a step | share |", "|---|---|---|"]
    lines += [f"| {name} | {ms:.1f} | {ms / whole:.1%} |" for name, ms in by_class(kernels).items()]
    lines += ["", "| kernel | class | ms a step | share | calls a step |", "|---|---|---|---|---|"]
    for kernel in kernels[:top]:
        name = kernel.name.replace("|", "/")[:80]
        cells = f"{class_of(kernel.name)} | {kernel.ms:.2f} | {kernel.ms / whole:.1%} | {kernel.calls:.1f}"
        lines.append(f"| `{name}` | {cells} |")
    return "\n".join(lines)
