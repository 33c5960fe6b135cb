"""Time of a forward pass, a training step and a guided sampling step: ours beside ml-mdm's in PyTorch.

Command:  python -m benchmarks.denoiser --mdm=FOLDER           both programs on CPU, float32
          python -m benchmarks.denoiser --device=accelerator   ours alone, float32 and bfloat16
FOLDER is a checkout of github.com/apple/ml-mdm (the package `ml-mdm` of PyPI holds no networks), with torch beside
our own requirements. --cases=tiny,inner,full and --ops=forward,train,sample choose; --repeats=N and --batch=N too.
--threads=1 keeps both on one core, which on a machine with other load is the fairer comparison: OpenMP's threads
wait for each other, XLA's less so.

Both programs get equal weights and inputs; how far their results differ is in the table. They take turns, one run
each, so that other load on the machine hits both. Where two optimizers do not fit into memory each has a process of
its own in turn. Times are medians, beside the time passed ("wall") that of all cores spent ("CPU"), which other load
disturbs least. FLOPs are XLA's count of our forward for both, training being three of them.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.denoiser_sides import COMPARED_STEPS, Ours, Theirs, make_case
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.xla_flags import set_cpu_flag

CASES = {
    "tiny": "quickstart's net, 32/16 px, batch 16",
    "inner": "the paper's 64 px net, batch 2",
    "full": "the paper's 256/64 px net, batch 1",
}
OPS = {"forward": "forward", "train": "training step", "sample": "guided sampling step"}
REPEATS = {"tiny": 31, "inner": 9, "full": 5}
RESIDENT = ("tiny",)  # both programs' parameters, gradients and Adam moments fit into memory at once
TURNS = 3  # processes a side where they may not


# --------------------------------------------------------------------------------------------- a side's own process
def serve(pipe, cores: list[int], side: str, case: str, batch: int, extra: str, cache: str) -> None:
    """Answers requests until it gets None: ("flops",), ("device",), or (op, first runs, repeats).

    The last gives (times, numbers to compare): pairs of milliseconds, wall and CPU, and the numbers of the first
    runs, which are not timed.
    """
    if cores:
        os.sched_setaffinity(0, cores)  # both libraries take as many threads as they may use cores
    if side == "ours":
        import jax

        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        program = Ours(make_case(case, batch), extra)
    else:
        program = Theirs(make_case(case, batch), extra)
    ready = {}
    for request in iter(pipe.recv, None):
        if request in (("flops",), ("device",)):
            pipe.send(getattr(program, request[0])())
            continue
        op, first_runs, repeats = request
        if op not in ready:
            ready = {op: program.prepare(op)}
        numbers = [ready[op]()() for _ in range(first_runs)]
        times = []
        for _ in range(repeats):
            start = time.perf_counter(), time.process_time()
            ready[op]()
            times.append((1000 * (time.perf_counter() - start[0]), 1000 * (time.process_time() - start[1])))
        pipe.send((times, numbers))


class Worker:
    """A process that runs one side of one case."""

    def __init__(self, *arguments):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *arguments))
        self.process.start()
        theirs.close()

    def ask(self, *request):
        """The answer to a request; EOFError if the process died."""
        self.pipe.send(request)
        return self.pipe.recv()

    def stop(self):
        """Ends the process and waits for its memory to be free."""
        self.pipe.send(None)
        self.process.join()


# ------------------------------------------------------------------------------------------------------- measuring
def measure(case: str, op: str, sides: dict[str, str], repeats: int, resident: bool, batch: int, cores, cache: str):
    """(side -> (wall, CPU) milliseconds of each run, side -> numbers to compare) with the sides taking turns."""
    times, numbers = {side: [] for side in sides}, {}
    start = lambda side: Worker(cores, side.split()[0], case, batch, sides[side], cache)  # noqa: E731
    if resident:
        workers = {side: start(side) for side in sides}
        for side, worker in workers.items():
            numbers[side] = worker.ask(op, COMPARED_STEPS, 0)[1]
        for turn in range(repeats):
            for side in list(sides)[:: 1 if turn % 2 else -1]:
                times[side] += workers[side].ask(op, 0, 1)[0]
        for worker in workers.values():
            worker.stop()
        return times, numbers
    for turn in range(TURNS):
        for side in sides:
            worker = start(side)
            got, first = worker.ask(op, 1 if turn else COMPARED_STEPS, -(-repeats // TURNS))
            times[side] += got
            numbers.setdefault(side, first)
            worker.stop()
    return times, numbers


def difference(numbers: dict) -> str:
    """Largest absolute difference between both sides' numbers of the first runs; "-" for one side."""
    if len(numbers) < 2 or "mdm" not in numbers:
        return "-"
    pairs = [(a, b) for x, y in zip(numbers["ours"], numbers["mdm"], strict=True) for a, b in zip(x, y, strict=True)]
    return f"{max(float(abs(a - b).max()) for a, b in pairs):.1e} of {max(float(abs(b).max()) for _, b in pairs):.3g}"


def digits(milliseconds: float) -> str:
    """Four digits, or all before the point."""
    return f"{milliseconds:.0f}" if milliseconds >= 1000 else f"{milliseconds:.4g}"


def rows(case: str, ops, sides, repeats, batch, cores, cache, device):
    """Lines of the table for one case."""
    first = Worker(cores, "ours", case, batch, "float32", cache)
    flops = first.ask("flops")
    first.stop()
    for op in ops:
        resident = device == "cpu" and (op != "train" or case in RESIDENT)  # one process has the accelerator
        times, numbers = measure(case, op, sides, repeats or REPEATS[case], resident, batch, cores, cache)
        wall, cpu = ({side: statistics.median(t[i] for t in times[side]) for side in sides} for i in (0, 1))
        cells = [CASES[case] if not batch else f"{case}, batch {batch}", OPS[op], f"{flops[op] / 1e9:.4g}"]
        for side in sides:
            fastest = min(t[0] for t in times[side])
            cells.append(f"{digits(wall[side])} (from {digits(fastest)})")
            cells.append(digits(cpu[side]))
            cells.append(f"{flops[op] / wall[side] / 1e6:.0f}")
        if "mdm" in sides:
            cells += [f"{wall['mdm'] / wall['ours']:.2f}", f"{cpu['mdm'] / cpu['ours']:.2f}", difference(numbers)]
        yield "| " + " | ".join(cells) + " |"


def header(sides) -> str:
    """The table's first two lines."""
    cells = ["net", "op", "GFLOP"]
    for side in sides:
        cells += [f"{side}: wall ms (fastest)", "CPU ms", "GFLOP/s"]
    if "mdm" in sides:
        cells += ["mdm / ours, wall", "CPU", "largest difference"]
    return "| " + " | ".join(cells) + " |\n|" + "---|" * len(cells)


def surroundings(sides: dict, device: str, cache: str) -> str:
    """Date, hardware, versions and command, one per line.

    Raises:
      UserError: an accelerator is requested but not available.
    """
    names = ["jax", "jaxlib", "flax"] + (["torch"] if "mdm" in sides else [])
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    if device == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
        hardware = f"{model}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} at the start"
    else:
        worker = Worker([], "ours", "tiny", 0, "float32", cache)
        platform_name, kind, count = worker.ask("device")
        worker.stop()
        if platform_name == "cpu":
            raise user_error("no accelerator that jax sees", "one", "install jax for it, or leave --device out")
        hardware = f"{kind}, one of {count}"
    return (
        f"Date: {datetime.date.today()}\nHardware: {hardware}\n"
        f"Software: Python {platform.python_version()}, {versions}\n"
        f"Command: `python -m benchmarks.denoiser {' '.join(sys.argv[1:])}`\n"
    )


def parse(argv):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.denoiser", description=__doc__.split("\n")[0])
    parser.add_argument("--mdm", default="", help="a checkout of ml-mdm; without it ours is measured alone")
    parser.add_argument("--device", choices=("cpu", "accelerator"), default="cpu")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--ops", default=",".join(OPS))
    parser.add_argument("--repeats", type=int, default=0, help="runs a side; 0 = the case's own number")
    parser.add_argument("--batch", type=int, default=0, help="0 = the case's own")
    parser.add_argument("--threads", type=int, default=0, help="cores to keep to; 0 = all")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Prints the table.

    Raises:
      UserError: an unknown case or op, no ml-mdm in the folder or no torch, or no accelerator.
    """
    args = parse(argv)
    cases, ops = args.cases.split(","), args.ops.split(",")
    for given, known in ((cases, CASES), (ops, OPS)):
        for name in given:
            if name not in known:
                raise user_error(f"unknown name {name!r}", f"of {', '.join(known)}", "correct the command")
    if args.mdm and not (Path(args.mdm) / "ml_mdm" / "models" / "unet.py").is_file():
        raise user_error(f"no ml_mdm/models/unet.py in {args.mdm}", "a checkout of ml-mdm", "correct --mdm")
    if args.mdm and importlib.util.find_spec("torch") is None:
        raise user_error("no torch", "PyTorch for ml-mdm's networks", "pip install torch einops, or leave --mdm out")
    sides = {"ours": "float32"}
    if args.device == "accelerator":
        sides["ours bfloat16"] = "bfloat16"
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["OMP_WAIT_POLICY"] = "passive"  # torch's threads do not count their waiting as CPU time
        set_cpu_flag()  # as the command line does
        sides |= {"mdm": args.mdm} if args.mdm else {}
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    with tempfile.TemporaryDirectory() as cache:
        print(surroundings(sides, args.device, cache) + "\n" + header(sides), flush=True)
        for case in cases:
            for row in rows(case, ops, sides, args.repeats, args.batch, cores, cache, args.device):
                print(row, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"benchmarks.denoiser: error: {error}")
