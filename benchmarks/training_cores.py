"""One training run on all cores: threads of one device, or one virtual device for each core; timed alternately.

python -m benchmarks.training_cores [--config=emoji_combined] [--batch=16] [--rounds=15] [--out=FILE.md]

Each layout is a process that serves timed steps of the same model, batch and parameters; they take turns, so that other
load on the machine meets all of them. "CPU" is what all threads spent, which other load disturbs least: a layout whose
CPU time per step is the lowest and whose wall time is nearest to CPU / cores is the best one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import describe

STEPS = 2  # of a timed turn
CORES = len(os.sched_getaffinity(0))
LAYOUTS = {  # name -> (devices, further XLA flags)
    "one device, all threads": (1, ""),
    "a device for each core, one thread each": (CORES, "--xla_cpu_multi_thread_eigen=false"),
}


def serve(name: str, config_name: str, batch_size: int) -> None:
    """Prints the loss after two steps, then "wall CPU" seconds of STEPS steps for each line of stdin."""
    from kaleido_jax.runtime import xla_flags

    xla_flags.set_cpu_flag()
    devices, flags = LAYOUTS[name]
    os.environ["XLA_FLAGS"] += f" {flags} --xla_force_host_platform_device_count={devices}"
    if hasattr(xla_flags, "keep_memory"):
        xla_flags.keep_memory()
    import jax

    from benchmarks.training_step import make_step

    step, state, batch = make_step(config_name, batch_size)
    for _ in range(2):
        state, metrics = step(state, {}, batch)
    sys.stdout.write(json.dumps({"loss": float(metrics["loss"]), "devices": jax.device_count()}) + "\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(STEPS):
            state, metrics = step(state, {}, batch)
        jax.block_until_ready(state)
        sys.stdout.write(f"{time.perf_counter() - wall} {time.process_time() - cpu}\n")
        sys.stdout.flush()


def start(name: str, args: argparse.Namespace) -> subprocess.Popen:
    """The process of one layout."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.training_cores", f"--serve={name}", f"--config={args.config}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, f"--batch={args.batch}"], env=environment, **pipes)


def turn(process: subprocess.Popen) -> tuple[float, float]:
    """(wall, CPU) seconds of one step."""
    process.stdin.write("\n")
    process.stdin.flush()
    wall, cpu = map(float, process.stdout.readline().split())
    return wall / STEPS, cpu / STEPS


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("--config", default="emoji_combined")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.config, args.batch)
        return
    processes = {name: start(name, args) for name in LAYOUTS}  # they compile side by side
    sides = {name: (process, json.loads(process.stdout.readline())) for name, process in processes.items()}
    times: dict[str, list] = {name: [] for name in sides}
    for number in range(args.rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            times[name].append(turn(sides[name][0]))
    lines = [
        describe("jax", "jaxlib", "flax"),
        f"- load at the end: {os.getloadavg()[0]:.1f}\n",
        f"| batch {args.batch} | wall ms, median (fastest) | CPU ms | img/s by wall (fastest) | loss |",
        "|---|---|---|---|---|",
    ]
    for name, (process, result) in sides.items():
        wall, cpu = zip(*times[name], strict=True)
        middle, best = statistics.median(wall), min(wall)
        rates = f"{args.batch / middle:.1f} ({args.batch / best:.1f})"
        cells = f"{1000 * middle:.0f} ({1000 * best:.0f}) | {1000 * statistics.median(cpu):.0f} | {rates}"
        lines.append(f"| {name} | {cells} | {result['loss']:.6f} |")
        process.stdin.close()
        process.wait()
    text = "\n".join(lines)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
