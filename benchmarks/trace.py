"""Where the device's time goes: a trace of jax.profiler summed by kernel, class and part of the model."""

import collections
import dataclasses
import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CLASSES = (  # the first pattern found in a kernel's name decides
    ("collectives", r"nccl|all[-_]?(reduce|gather|to[-_]all)|reduce[-_]scatter|collective"),
    ("copies, transposes", r"nchwTo|nhwcTo|memcpy|memset"),
    ("fused attention", r"sdpa|flash|fmha"),
    ("convolutions", r"conv(?!ert)|fprop|dgrad|wgrad|implicit_gemm|cudnn"),
    ("matrix products", r"gemm|nvjet|cutlass|cublas|matmul|splitK|(?<![a-z])dot(?![a-z])"),
    ("softmax, sums, maxima", r"softmax|reduce|norm|row_sum"),
    ("copies, transposes", r"copy|transpose|slice|concatenate|(?<![a-z])pad(?![a-z])|gather|scatter|bitcast"),
    ("elementwise fusions", r"fusion|loop|wrapped|triton|broadcast|convert|add|multiply|select|tanh|exp"),
)
PARTS = (  # the first pattern found in an operation's path decides; "inner." is a net inside another one
    ("prior: logits", r"latents_logits"),
    ("prior: self-attention", r"latents_states.*self_attention"),
    ("prior: attention to the caption", r"latents_states.*encoder_decoder_attention"),
    ("prior: GEGLU", r"latents_states.*/mlp"),
    ("prior: norms, residuals, scan", r"latents_states"),
    ("encoder", r"Kaleido\.encode\)"),
    ("denoiser: text layers, keys and values", r"Kaleido\.condition\)"),
    ("denoiser: residual blocks of the inner net", r"denoise\).*/inner\.(down|up|run).*resnets"),
    ("denoiser: attention of the inner net", r"denoise\).*/inner\.(down|up|run).*attn"),
    ("denoiser: residual blocks", r"denoise\).*resnets"),
    ("denoiser: attention", r"denoise\).*attn"),
    ("denoiser: resampling, concatenation, in and out", r"denoise\)"),
    ("random numbers", r"threefry|normal|uniform|randint|bernoulli|sample_keys|purpose_key"),
    ("losses", r"jvp\("),
    ("optimizer, EMA, norms of gradients", r"train_step"),
)
OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """All runs of the kernels of one name for one operation of the program."""

    name: str
    operation: str  # of the compiled program's text; "" = the trace does not tell
    ms: float  # of one step
    calls: float  # in one step


def first_match(table: Sequence[tuple[str, str]], text: str) -> str:
    """The title of the first pattern of CLASSES or PARTS that is in the text; OTHER if none is."""
    return next((title for title, pattern in table if re.search(pattern, text, re.IGNORECASE)), OTHER)


def kernels_of(events: Iterable[Mapping[str, Any]], steps: int) -> list[Kernel]:
    """The kernels in a trace's events, the longest first.

    On a GPU these are the events of its streams. On CPU, where the operations of a loop's body are inside those of the
    loop, they are XLA's operations without the loops.
    """
    events = list(events)
    named = [event for event in events if event.get("ph") == "M"]
    devices = {e["pid"] for e in named if e["name"] == "process_name" and e["args"]["name"].startswith("/device:")}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in named if e["name"] == "thread_name"}
    streams = {key for key, name in threads.items() if key[0] in devices and name.startswith("Stream")}
    times, calls = collections.Counter(), collections.Counter()
    for event in events:
        if event.get("ph") != "X":
            continue
        operation = event.get("args", {}).get("hlo_op", "")
        loop = operation.startswith(("while", "call", "conditional"))
        if (event["pid"], event.get("tid")) in streams if streams else operation and not loop:
            times[event["name"], operation] += event.get("dur", 0) / 1e3  # from us
            calls[event["name"], operation] += 1
    return [Kernel(*key, ms / steps, calls[key] / steps) for key, ms in times.most_common()]


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


def paths_of(program: str) -> dict[str, str]:
    """Operation -> its path in the model, from the text of a compiled program."""
    found = {}
    for line in program.splitlines():
        operation, path = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = ", line), re.search(r'op_name="([^"]*)"', line)
        if operation and path:
            found[_plain(operation[1])] = path[1]
    return found


def _plain(name: str) -> str:
    return re.sub(r"[.-]", "_", name)  # a kernel has its operation's name in this form


def summary(kernels: Sequence[Kernel], paths: Mapping[str, str], top: int = 20) -> dict[str, Any]:
    """ms of a step by class and by part of the model, and the `top` kernels by name, each the longest first."""
    classes, parts, names = (collections.Counter() for _ in range(3))
    calls, where = collections.Counter(), {}
    for kernel in kernels:
        path = paths.get(_plain(kernel.operation)) or paths.get(_plain(kernel.name), "")
        classes[first_match(CLASSES, kernel.name)] += kernel.ms
        parts[first_match(PARTS, path)] += kernel.ms
        names[kernel.name] += kernel.ms
        calls[kernel.name] += kernel.calls
        where.setdefault(kernel.name, path)  # of its longest operation
    return {
        "device_ms": sum(names.values()),
        "classes": dict(classes.most_common()),
        "parts": dict(parts.most_common()),
        "kernels": [
            {"name": name, "class": first_match(CLASSES, name), "ms": ms, "calls": calls[name], "path": where[name]}
            for name, ms in names.most_common(top)
        ],
    }


def to_markdown(found: Mapping[str, Any]) -> str:
    """Three tables of a `summary`."""
    whole, lines = found["device_ms"] or 1.0, []
    for heading, key in (("class of kernels", "classes"), ("part of the step", "parts")):
        lines += [f"| {heading} | ms a step | share |", "|---|---|---|"]
        lines += [f"| {name} | {ms:.1f} | {ms / whole:.1%} |" for name, ms in found[key].items()] + [""]
    lines += ["| kernel | class | ms a step | share | calls a step | of |", "|---|---|---|---|---|---|"]
    for kernel in found["kernels"]:
        name, path = (text.replace("|", "/") for text in (kernel["name"][:70], kernel["path"][-70:]))
        cells = f"{kernel['class']} | {kernel['ms']:.2f} | {kernel['ms'] / whole:.1%} | {kernel['calls']:.0f} | {path}"
        lines.append(f"| `{name}` | {cells} |")
    return "\n".join(lines)
