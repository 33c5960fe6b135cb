"""Training steps of Kaleido and of its baseline (the same config without latents), on all devices of this process.

python -m benchmarks.train_step [--config=emoji_combined:long] [--batch=16] [--lengths=48,80,96] [--repeats=20]
    [--override=KEY=VALUE ...] [--profile=DIR] [--out=FILE.md]
python -m benchmarks.train_step --config=imagenet_combined --batch=16,12,8 --lengths=192,256 --compile_only
python -m benchmarks.train_step --config=imagenet_combined --lengths=192,256 --topology=h100:1 --save=DIR
python -m benchmarks.train_step --config=imagenet_combined --lengths=192,256 --load=DIR

Pretrained weights are not needed: arrays of the same shapes are made on the devices. --out=FILE.md also writes
FILE.json, both after every figure, so that a run that ends early keeps what it had. --batch is of one device; of
several the first that fits is timed. --compile_only fills the folder in JAX_COMPILATION_CACHE_DIR, so that a later run
need not compile. --save=DIR keeps the programs of one batch size, compiled for a device that need not be there, and
--load=DIR times them where it is, with the same version of jax: minutes of compiling that no device has to wait for.
Without the device, XLA chooses its kernels untried.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import gc
import json
import math
import os
import pickle
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kaleido_jax.runtime.xla_flags import keep_memory, runs_on_cpu, set_cpu_flag

set_cpu_flag()
keep_memory()

import jax  # noqa: E402
import jax.monitoring  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import serialize_executable  # noqa: E402

from benchmarks import trace  # noqa: E402
from benchmarks.tables import described, first_line, table  # noqa: E402
from benchmarks.training_step import jitted, made_up_batch, made_up_state  # noqa: E402
from kaleido_jax.config.codec import open_codec  # noqa: E402
from kaleido_jax.config.load import config_from_flags  # noqa: E402
from kaleido_jax.config.schema import Config  # noqa: E402
from kaleido_jax.models.flops import flops_at  # noqa: E402
from kaleido_jax.plan.compiled import topology_devices  # noqa: E402
from kaleido_jax.plan.gpus import options_for  # noqa: E402
from kaleido_jax.plan.program import Program, build_program, lower  # noqa: E402
from kaleido_jax.runtime.accelerators import accelerator  # noqa: E402

MODELS = ("Kaleido", "baseline")
TURN = 5  # steps of one model before it is the other's turn
SHARE = 0.8  # of the memory that two states and the larger step may take beside each other
GB = 1e9


@dataclasses.dataclass(frozen=True)
class Case:
    """One program: a model on z of one length; 0 for the baseline, which has no z."""

    model: str
    length: int
    batch: int  # images a device
    config: Config

    @property
    def name(self) -> str:
        """For messages and folders."""
        return f"{self.model}-{self.length}-{self.batch}" if self.length else f"{self.model}-{self.batch}"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled case, and what the compiler says of it."""

    case: Case
    program: Program
    step: jax.stages.Compiled
    facts: dict[str, Any]  # as the JSON file has them


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


# ------------------------------------------------------------------------------------------ cases
def cases_of(args: argparse.Namespace, batch: int) -> list[Case]:
    """Kaleido at each length, then the baseline."""
    flags = [f"--config.{each}" for each in args.override]
    count = devices_of(args).size
    config = config_from_flags(args.config, [*flags, f"--config.train.batch_size={batch * count}"])
    lengths = args.lengths or (*config.data.length_buckets, config.latents.max_latents_tokens)

    def at(**latents: Any) -> Config:
        return dataclasses.replace(config, latents=dataclasses.replace(config.latents, **latents))

    cases = [Case("Kaleido", length, batch, at(max_latents_tokens=length)) for length in lengths]
    return [case for case in (*cases, Case("baseline", 0, batch, at(segments=()))) if case.model in args.models]


@functools.cache
def _described(topology: str) -> np.ndarray:
    return topology_devices(topology)


def devices_of(args: argparse.Namespace) -> np.ndarray:
    """Those of --topology, or those of this process."""
    return _described(args.topology) if args.topology else np.asarray(jax.devices())


# ------------------------------------------------------------------------------------------ compilation
def compile_all(
    cases: Sequence[Case], args: argparse.Namespace, failed: dict[str, str] | None = None
) -> list[Compiled]:
    """All cases side by side: XLA compiles without the interpreter's lock. Errors go to `failed` if it is there."""
    done = []
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        make = load_case if args.load else compile_case
        futures = [pool.submit(make, case, args) for case in cases]
        for case, future in zip(cases, futures, strict=True):
            try:
                done.append(future.result())
            except jax.errors.JaxRuntimeError as error:
                if failed is None:
                    raise
                failed[case.name] = first_line(error)
    return done


def compile_case(case: Case, args: argparse.Namespace) -> Compiled:
    base_vocab_size, devices = open_codec(case.config).tokenizer.base_vocab_size, devices_of(args)
    start = time.perf_counter()
    program = build_program(case.config, base_vocab_size, devices.size, devices)
    lowered = lower(program) if args.topology else jitted(program).lower(*program.arguments)
    lowered_sec = time.perf_counter() - start
    say(f"{case.name}: lowered in {lowered_sec:.0f} s")
    start = time.perf_counter()
    step = lowered.compile(compiler_options=options_for(devices.flat[0]) if args.topology else None)
    flops = flops_at(case.config, base_vocab_size, case.config.data.max_caption_tokens, case.length)
    facts = {
        "model": case.model,
        "z_bucket": case.length,
        "images_per_device": case.batch,
        "lower_sec": lowered_sec,
        "compile_sec": time.perf_counter() - start,
        "model_tflop": flops.model / 1e12,
        "tflop_with_recomputation": flops.total / 1e12,
    } | _compiler_facts(step)
    say(f"{case.name}: compiled in {facts['compile_sec']:.0f} s; {memory_line(facts)}")
    compiled = Compiled(case, program, step, facts)
    if args.save:
        save_case(compiled, args)
    return compiled


def _of(args: argparse.Namespace) -> dict[str, Any]:
    """What a kept program must be of."""
    return {"jax": jax.__version__, "config": args.config, "override": args.override}


def save_case(compiled: Compiled, args: argparse.Namespace) -> None:
    """Keeps the executable and what is known of it."""
    executable, _, _ = serialize_executable.serialize(compiled.step)
    metrics = jax.tree.map(lambda _: 0, compiled.step.out_info[1])  # the form of the other arguments and results
    kept = {"of": _of(args), "facts": compiled.facts, "metrics": metrics, "executable": executable}  # is known
    args.save.mkdir(parents=True, exist_ok=True)
    path = args.save / f"{compiled.case.name}.pickle"
    path.write_bytes(pickle.dumps(kept))
    say(f"{compiled.case.name}: {path.stat().st_size / 1e6:.1f} MB in {path}")


def load_case(case: Case, args: argparse.Namespace) -> Compiled:
    """What `save_case` kept, for the devices of this process. A pickle may run anything: load only your own."""
    start, path = time.perf_counter(), args.load / f"{case.name}.pickle"
    if not path.exists():
        raise SystemExit(f"train_step: error: no {path}; make it by --save with the same flags")
    kept = pickle.loads(path.read_bytes())
    if kept["of"] != _of(args):
        raise SystemExit(f"train_step: error: {path} is of {kept['of']}, here is {_of(args)}; make it again by --save")
    devices = np.asarray(jax.devices())
    program = build_program(case.config, open_codec(case.config).tokenizer.base_vocab_size, devices.size, devices)
    forms = (program.arguments, {}), (program.state, kept["metrics"])
    step = serialize_executable.deserialize_and_load(
        kept["executable"], *map(jax.tree.structure, forms), execution_devices=list(devices.flat)
    )
    say(f"{case.name}: loaded in {time.perf_counter() - start:.0f} s")
    return Compiled(case, program, step, kept["facts"])


def _compiler_facts(step: jax.stages.Compiled) -> dict[str, Any]:
    """Memory and FLOPs as the backend tells them; what it does not tell is left out."""
    facts: dict[str, Any] = {}
    if (memory := step.memory_analysis()) is not None:
        sizes = {kind: getattr(memory, f"{kind}_size_in_bytes") for kind in ("argument", "output", "alias", "temp")}
        sizes["peak"] = sizes["argument"] + sizes["temp"] + sizes["output"] - sizes["alias"]
        facts |= {f"{kind}_gb": size / GB for kind, size in sizes.items()}
    try:
        costs = step.cost_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return facts
    costs = costs[0] if isinstance(costs, list) else costs
    return facts | ({"xla_tflop": costs["flops"] / 1e12} if costs and "flops" in costs else {})


def memory_line(facts: dict[str, Any]) -> str:
    return ", ".join(
        f"{kind} {facts[f'{kind}_gb']:.2f} GB" for kind in ("argument", "temp", "peak") if "peak_gb" in facts
    )


# ------------------------------------------------------------------------------------------ timing
class Side:
    """A model's state on the devices, which its programs of all lengths share."""

    def __init__(self, programs: Sequence[Compiled]) -> None:
        self.programs = programs
        self.batches = {each.case.name: made_up_batch(each.case.config, each.program) for each in programs}
        self.state, self.frozen = jax.block_until_ready(made_up_state(programs[0].program))

    def run(self, compiled: Compiled, steps: int) -> list[float]:
        """ms of each of `steps` steps. As in training, a step is dispatched before the last one has ended."""
        before, ends = None, []
        for _ in range(steps + 1):
            self.state, metrics = compiled.step(self.state, self.frozen, self.batches[compiled.case.name])
            if before is not None:
                jax.block_until_ready(before)
                ends.append(time.perf_counter())
            before = metrics
        jax.block_until_ready((before, self.state))
        ends.append(time.perf_counter())
        return [1e3 * (end - start) for start, end in zip(ends, ends[1:], strict=False)]

    def free(self) -> None:
        """Gives its memory back now, whoever still has a reference."""
        for leaf in jax.tree.leaves((self.state, self.frozen, self.batches)):
            if not leaf.is_deleted():
                leaf.delete()


def sides_of(compiled: Sequence[Compiled]) -> list[list[Compiled]]:
    grouped = ([each for each in compiled if each.case.model == model] for model in MODELS)
    return [group for group in grouped if group]


def memory_gb() -> float:
    """What JAX may use of a device's memory; infinite where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf) / GB


def side_by_side(compiled: Sequence[Compiled]) -> bool:
    """Whether the states of all models and the largest step fit the device's memory together."""
    states = sum(group[0].facts.get("argument_gb", 0) for group in sides_of(compiled))
    steps = max(each.facts.get("peak_gb", 0) - each.facts.get("argument_gb", 0) for each in compiled)
    return states + steps < SHARE * memory_gb()


def time_all(compiled: Sequence[Compiled], args: argparse.Namespace, together: bool) -> Iterator[Compiled]:
    """Times every program into its facts, in turns if `together`; yields those that have new times."""
    groups = sides_of(compiled)
    for groups_now in [groups] if together else [[group] for group in groups]:
        sides: list[Side] = []
        try:
            for group in groups_now:
                say(f"making the state of {group[0].case.model}")
                sides.append(Side(group))
                for each in group:
                    start = time.perf_counter()
                    sides[-1].run(each, args.warmup)
                    say(f"{each.case.name}: its first {args.warmup + 1} steps took {time.perf_counter() - start:.1f} s")
                    each.facts.update(step_ms_of_each=[], timed="in turns" if together else "one after the other")
            for turn in range(math.ceil(args.repeats / TURN)):
                for side in sides[:: 1 if turn % 2 else -1]:
                    for each in side.programs:
                        each.facts["step_ms_of_each"] += side.run(each, TURN)
                        each.facts.update(_figures(each))
                        yield each
        finally:
            for side in sides:
                side.free()


def _figures(compiled: Compiled) -> dict[str, Any]:
    times, facts = compiled.facts["step_ms_of_each"], compiled.facts
    peak, count = accelerator(jax.devices()[0].device_kind), jax.device_count()
    middle = statistics.median(times)
    figures = {
        "step_ms": middle,
        "step_ms_least": min(times),
        "step_ms_most": max(times),
        "images_per_sec_per_device": 1e3 * compiled.case.batch / middle,
    }
    if peak is not None:
        available = peak.tflops * count * middle / 1e3
        figures["model_utilization"] = facts["model_tflop"] / available
        figures["utilization_with_recomputation"] = facts["tflop_with_recomputation"] / available
    if stats := jax.local_devices()[0].memory_stats():
        figures["peak_bytes_in_use_gb"] = stats["peak_bytes_in_use"] / GB
    return figures


# ------------------------------------------------------------------------------------------ ratios
def mean_padded_length(mean: float, std: float, buckets: Sequence[int]) -> float:
    """The mean of lengths ~ N(mean, std), each padded to its bucket; longer ones than the last are cut to it."""
    below = [0.5 * (1 + math.erf((bucket - mean) / (std * math.sqrt(2)))) for bucket in buckets[:-1]]
    edges = [0.0, *below, 1.0]
    return sum(bucket * (b - a) for bucket, a, b in zip(buckets, edges[:-1], edges[1:], strict=True))


def at_length(length: float, measured: dict[int, float]) -> float | None:
    """Linear interpolation between the measured lengths; None outside them."""
    if not measured or not min(measured) <= length <= max(measured):
        return None
    return float(np.interp(length, sorted(measured), [measured[key] for key in sorted(measured)]))


def ratios(results: Sequence[dict[str, Any]], padded: float | None) -> dict[str, float]:
    """z bucket -> step of Kaleido / step of the baseline, and "mean" at the mean padded length."""
    steps = {each["z_bucket"]: each["step_ms"] for each in results if "step_ms" in each}
    baseline = steps.pop(0, None)
    if baseline is None:
        return {}
    found = {str(length): ms / baseline for length, ms in sorted(steps.items())}
    middle = None if padded is None else at_length(padded, steps)
    return found if middle is None else found | {"mean": middle / baseline}


# ------------------------------------------------------------------------------------------ report
class Report:
    """Everything found so far, as JSON and as Markdown."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.results, self.profiles = args, [], {}
        self.failed: dict[str, str] = {}  # what was tried -> why it failed
        self.cache = {"hits": 0, "misses": 0}
        jax.monitoring.register_event_listener(self._count)
        mean, std = map(float, args.z_length.split(","))
        config = cases_of(args, 1)[0].config
        longest = config_from_flags(args.config, []).latents.max_latents_tokens
        buckets = sorted({*config.data.length_buckets, longest})
        self.padded = mean_padded_length(mean, std, buckets) if longest > mean else None
        self.distribution = f"N({mean:g}, {std:g}) tokens padded to {', '.join(map(str, buckets))}"

    def _count(self, event: str, **_: Any) -> None:
        for kind in self.cache:
            self.cache[kind] += event == f"/jax/compilation_cache/cache_{kind}"

    def write(self) -> None:
        """Writes both files, each whole."""
        if not self.args.out:
            return
        values = {
            "results": self.results,
            "ratios": ratios(self.results, self.padded),
            "mean_padded_length": self.padded,
            "length_distribution": self.distribution,
            "failed": self.failed,
            "profiles": self.profiles,
            "devices": [device.device_kind for device in devices_of(self.args)],
            "config": self.args.config,
            "overrides": self.args.override,
            "jax": jax.__version__,
            "date": time.strftime("%Y-%m-%d"),
        }
        for path, text in ((".json", json.dumps(values, indent=1)), (".md", self.markdown())):
            part = self.args.out.with_suffix(".part")
            part.write_text(text + "\n")
            part.replace(self.args.out.with_suffix(path))

    def markdown(self) -> str:
        """Heading, table, ratios, profiles."""
        devices = devices_of(self.args)
        kind, count = devices[0].device_kind, devices.size
        peak = accelerator(kind)
        lines = [
            described("jax", "jaxlib", "flax", "optax"),
            f"- devices: {count} x {kind}" + (f", peak {peak.tflops:g} TFLOP/s in bfloat16" if peak else ""),
            f"- XLA_FLAGS: `{os.environ.get('XLA_FLAGS', '')}`, load {os.getloadavg()[0]:.1f}",
            "",
            *table(COLUMNS, self.results),
            "",
            *self._ratios(),
            *[f"- {name}: {reason}" for name, reason in self.failed.items()],
        ]
        for name, each in self.profiles.items():
            found = trace.to_markdown(each) if "classes" in each else f"no profile: {each['error']}"
            lines += ["", f"## {name}", "", found]
        return "\n".join(lines)

    def _ratios(self) -> list[str]:
        found = ratios(self.results, self.padded)
        lines = [f"- Kaleido / baseline, z of {name}: {value:.3f}" for name, value in found.items() if name != "mean"]
        if "mean" in found:
            lines.append(
                f"- Kaleido / baseline: {found['mean']:.3f} at {self.padded:.0f} tokens, linear between the measured "
                f"buckets: the mean of {self.distribution}"
            )
        return lines


COLUMNS = (  # heading, key, format
    ("model", "model", "{}"),
    ("z", "z_bucket", "{}"),
    ("images", "images_per_device", "{}"),
    ("step ms", "step_ms", "{:.1f}"),
    ("least", "step_ms_least", "{:.1f}"),
    ("most", "step_ms_most", "{:.1f}"),
    ("img/s a device", "images_per_sec_per_device", "{:.2f}"),
    ("model TFLOP", "model_tflop", "{:.3f}"),
    ("MFU", "model_utilization", "{:.1%}"),
    ("with recomputation", "utilization_with_recomputation", "{:.1%}"),
    ("XLA's TFLOP", "xla_tflop", "{:.3f}"),
    ("arguments GB", "argument_gb", "{:.2f}"),
    ("temporary GB", "temp_gb", "{:.2f}"),
    ("peak GB", "peak_gb", "{:.2f}"),
    ("process's peak GB", "peak_bytes_in_use_gb", "{:.2f}"),
    ("compile s", "compile_sec", "{:.0f}"),
)


# ------------------------------------------------------------------------------------------ one batch size
class DoesNotFit(RuntimeError):
    """A step needs more memory than there is."""


def out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def run(batch: int, args: argparse.Namespace, report: Report) -> list[Compiled]:
    """Compiles and times one batch size.

    Raises:
      DoesNotFit: by what the compiler says.
      jax.errors.JaxRuntimeError: it ran out of memory.
    """
    compiled = compile_all(cases_of(args, batch), args)
    report.results = [each.facts for each in compiled]
    report.write()
    if args.wait_for:
        say(f"waiting for {args.wait_for}")
        while not args.wait_for.exists():
            time.sleep(0.5)
    if (needed := max(each.facts.get("peak_gb", 0) for each in compiled)) > memory_gb():
        raise DoesNotFit(f"the compiled step needs {needed:.1f} GB of {memory_gb():.1f} GB")
    choices = (True, False) if side_by_side(compiled) and len(sides_of(compiled)) > 1 else (False,)
    for together in choices:
        try:
            for each in time_all(compiled, args, together):
                facts = each.facts
                report.write()
                say(f"{each.case.name}: {facts['step_ms']:.1f} ms (median of {len(facts['step_ms_of_each'])})")
            return compiled
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error) or together is choices[-1]:
                raise
            say(f"both states do not fit together: {first_line(error)}")
        gc.collect()
    return compiled


# ------------------------------------------------------------------------------------------ profile
def profile(compiled: Sequence[Compiled], args: argparse.Namespace, report: Report) -> None:
    """Traces three steps of each program, after everything is timed: a trace slows what comes after it."""
    for group in sides_of(compiled):
        side = Side(group)
        for each in group:
            try:
                side.run(each, 1)
                with jax.profiler.trace(str(args.profile / each.case.name)):
                    side.run(each, 2)  # three, one of them to fill the queue
            except jax.errors.JaxRuntimeError as error:  # the timings are worth more than a profile
                say(f"no profile of {each.case.name}: {first_line(error)}")
        side.free()
    say("reading the traces; the devices are free")
    for each in compiled:
        name = each.case.name
        try:
            kernels = trace.kernels_of(trace.read_trace(args.profile / name), steps=3)
            report.profiles[name] = trace.summary(kernels, trace.paths_of(each.step.as_text()))
        except Exception as error:  # noqa: BLE001  the timings are worth more than a profile
            report.profiles[name] = {"error": f"{type(error).__name__}: {first_line(error)}"}
            say(f"no profile of {name}: {first_line(error)}")
        report.write()


# ------------------------------------------------------------------------------------------ command
def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(",")))

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="emoji_combined:long")
    parser.add_argument("--override", action="append", default=[], help="KEY=VALUE of the config; may be repeated")
    parser.add_argument("--models", type=lambda text: tuple(text.split(",")), default=MODELS)
    parser.add_argument("--batch", type=numbers, default=(16,), help="images a device; the first that fits is timed")
    parser.add_argument("--lengths", type=numbers, default=(), help="buckets of z; all of the config if left out")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the first timed one")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of each program")
    parser.add_argument("--z_length", default="200,50", help="mean and standard deviation of z's length in tokens")
    parser.add_argument(
        "--compile_only", action="store_true", help="compile every batch size and say what memory it needs"
    )
    parser.add_argument("--topology", help="devices that need not be here, such as h100:1; for --save")
    parser.add_argument("--save", type=Path, help="a folder for the compiled programs; nothing is timed")
    parser.add_argument("--load", type=Path, help="the folder of --save; nothing is compiled")
    parser.add_argument("--wait_for", type=Path, help="a file that must exist before the devices' memory is used")
    parser.add_argument("--profile", type=Path, help="a folder for traces of three steps, which are summed")
    parser.add_argument("--out", type=Path, help="FILE.md; the numbers go to FILE.json")
    args = parser.parse_args(arguments)
    if args.topology and not args.save:
        parser.error("--topology without --save; name the folder for the programs, which another machine runs")
    args.compile_only |= args.save is not None
    return args


def main() -> None:
    args = parsed()
    if jax.default_backend() == "cpu" and not runs_on_cpu():
        sys.exit("train_step: error: JAX fell back to the CPU; correct what it warns of, or set JAX_PLATFORMS=cpu")
    # Everything is kept, however fast it compiled: the run that is timed may come later.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    report = Report(args)
    if args.compile_only:
        compiled = compile_all([case for batch in args.batch for case in cases_of(args, batch)], args, report.failed)
        report.results = [each.facts for each in compiled]
    else:
        compiled = first_that_fits(args, report)
    if args.profile and compiled and not args.compile_only:
        profile(compiled, args, report)
    report.write()
    say(f"compilation cache: {report.cache['hits']} hits, {report.cache['misses']} misses")
    print(report.markdown())
    sys.exit(not compiled)


def first_that_fits(args: argparse.Namespace, report: Report) -> list[Compiled]:
    """What was timed at the first batch size that fits; empty if none does."""
    for batch in args.batch:
        try:
            return run(batch, args, report)
        except (DoesNotFit, jax.errors.JaxRuntimeError) as error:
            if not (isinstance(error, DoesNotFit) or out_of_memory(error)):
                raise
            report.failed[f"{batch} images a device"] = first_line(error)
            say(f"{batch} images a device do not fit: {first_line(error)}")
        report.write()
        gc.collect()
    return []


if __name__ == "__main__":
    main()
