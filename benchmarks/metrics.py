"""Time and peak memory of recall and Frechet distance beside torch-fidelity and prdc, all in one run.

    pip install -e ".[parity]" torch torchvision
    python -m benchmarks.metrics --out=benchmarks/results/metrics.md

Every measurement is a process of its own, the programs in turn, all with as many threads as there are cores to run on
(`taskset -c 0` gives one). Ours compile before, in a process that is not measured: the package keeps what it compiled.
"""

import argparse
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.tables import described, table

WIDTH = 2048  # of Inception's features
FACTORS = 64  # that features share; the rest is noise
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
CHUNK = 1000
MIB = 2**20


# ------------------------------------------------------------------------------------- what is measured
def features(number: int, seed: int) -> np.ndarray:
    """Positive float32 features of few common factors and noise."""
    rng, out = np.random.default_rng(seed), np.empty((number, WIDTH), np.float32)
    mix = np.random.default_rng(7).standard_normal((FACTORS, WIDTH), np.float32)
    for start in range(0, number, CHUNK):
        rows = out[start : start + CHUNK]
        common = rng.standard_normal((len(rows), FACTORS), np.float32)
        noise = rng.standard_normal(rows.shape, np.float32)
        rows[:] = np.abs(0.1 * common @ mix + 0.05 * noise)
    return out


def ours_neighbors(real: np.ndarray, samples: np.ndarray) -> dict[str, float]:
    from kaleido_jax.evaluate.metrics.manifold import manifold

    return vars(manifold(real, samples))


def ours_frechet(real: np.ndarray, samples: np.ndarray) -> dict[str, float]:
    from kaleido_jax.evaluate.metrics.frechet import frechet_distance, moments

    return {"frechet": frechet_distance(moments(real), moments(samples))}


def torch_fidelity_neighbors(real: np.ndarray, samples: np.ndarray) -> dict[str, float]:
    import torch
    from torch_fidelity.metric_prc import prc_features_to_metric

    pair = torch.from_numpy(samples), torch.from_numpy(real)
    return prc_features_to_metric(*pair, prc_neighborhood=3, verbose=False)


def torch_fidelity_frechet(real: np.ndarray, samples: np.ndarray) -> dict[str, float]:
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (samples, real)]
    return {"frechet": fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]}


def prdc_neighbors(real: np.ndarray, samples: np.ndarray) -> dict[str, float]:
    from prdc import compute_prdc

    return compute_prdc(real, samples, 3)


TASKS = {
    ("recall", "kaleido_jax"): ours_neighbors,
    ("recall", "torch-fidelity"): torch_fidelity_neighbors,
    ("recall", "prdc"): prdc_neighbors,
    ("Frechet", "kaleido_jax"): ours_frechet,
    ("Frechet", "torch-fidelity"): torch_fidelity_frechet,
}
IMPORTS = {
    "kaleido_jax": ("kaleido_jax.evaluate.metrics.manifold", "kaleido_jax.evaluate.metrics.frechet"),
    "torch-fidelity": ("torch", "torch_fidelity.metric_prc", "torch_fidelity.metric_fid"),
    "prdc": ("prdc",),
}


# ------------------------------------------------------------------------------------------- one process
def one(metric: str, program: str, number: int) -> None:
    """Prints one measurement as JSON; importing and making the features are not in the times."""
    from kaleido_jax.runtime import xla_flags

    xla_flags.set_cpu_flag()
    xla_flags.keep_compiled()
    for module in IMPORTS[program]:
        __import__(module)
    if program == "kaleido_jax":
        import jax

        jax.devices()
    real, samples = features(number, 1), features(number, 2)
    before = peak()
    wall, cpu = time.perf_counter(), time.process_time()
    values = TASKS[metric, program](real, samples)
    found = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "before": before, "peak": peak()}
    print(json.dumps(found | {key: float(value) for key, value in values.items()}))


def peak() -> float:
    """MiB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(metric: str, program: str, number: int) -> dict[str, float]:
    """One measurement in a process of its own."""
    threads = dict.fromkeys(THREADS, str(len(os.sched_getaffinity(0))))
    command = [sys.executable, "-m", "benchmarks.metrics", f"--one={metric},{program}", f"--number={number}"]
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{metric} of {program} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(metric, program, number, found, file=sys.stderr, flush=True)
    return found


# ------------------------------------------------------------------------------------------------ tables
def compared(number: int, rounds: int) -> list[str]:
    """Lines of the table of all programs, medians of rounds in turn."""
    for metric in ("recall", "Frechet"):
        measure(metric, "kaleido_jax", number)  # compiles
    runs = {task: [] for task in TASKS}
    for _ in range(rounds):
        for task in TASKS:
            runs[task].append(measure(*task, number))
    rows = []
    for (metric, program), found in runs.items():
        median = {key: float(np.median([run[key] for run in found])) for key in found[0]}
        rows.append({"metric": metric, "program": program, **median, "value": median[metric.lower()]})
    for row in rows:
        ours = next(r for r in rows if (r["metric"], r["program"]) == (row["metric"], "kaleido_jax"))
        row["share"], row["wall_share"] = ours["cpu"] / row["cpu"], ours["wall"] / row["wall"]
    columns = (
        ("metric", "metric", "{}"),
        ("program", "program", "{}"),
        ("CPU s", "cpu", "{:.1f}"),
        ("wall s", "wall", "{:.1f}"),
        ("ours / its, CPU", "share", "{:.2f}"),
        ("ours / its, wall", "wall_share", "{:.2f}"),
        ("peak MiB", "peak", "{:.0f}"),
        ("of it before", "before", "{:.0f}"),
        ("value", "value", "{:.6g}"),
    )
    return table(columns, rows)


def alone(number: int) -> list[str]:
    """Lines of the table of ours for large sets."""
    found = {metric: measure(metric, "kaleido_jax", number) for metric in ("recall", "Frechet")}
    rows = [{"metric": metric, "value": run[metric.lower()], **run} for metric, run in found.items()]
    columns = (
        ("metric", "metric", "{}"),
        ("CPU s", "cpu", "{:.0f}"),
        ("wall s", "wall", "{:.0f}"),
        ("peak MiB", "peak", "{:.0f}"),
        ("of it before", "before", "{:.0f}"),
        ("value", "value", "{:.6g}"),
    )
    return table(columns, rows)


def main() -> None:
    """Measures and writes the file, or with --one prints one measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=10_000, help="images in each of the two sets")
    parser.add_argument("--large", type=int, default=50_000, help="the same for ours alone; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", default="", help="METRIC,PROGRAM in this process")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.one:
        one(*options.one.split(","), options.number)
        return
    versions = " ".join(f"{name} {importlib.metadata.version(name)}," for name in ("torch-fidelity", "torch", "prdc"))
    lines = [
        "# Recall and Frechet distance beside other programs",
        "",
        f"{options.number:,} x {options.number:,} features of width {WIDTH}, synthetic; k = 3. `recall` is precision "
        "and recall, of ours and prdc's also density and coverage. Medians of "
        f"{options.rounds} rounds of processes in turn, on {len(os.sched_getaffinity(0))} core(s). CPU time is that of "
        "all threads; on a shared machine it says more than wall time. Peak memory is the whole process's, `before` "
        "with the program imported and the features made.",
        "",
        described("jax", "numpy", "scipy") + f"; beside them {versions}".rstrip(","),
        "",
        *compared(options.number, options.rounds),
    ]
    if options.large:
        lines += ["", f"Ours with {options.large:,} x {options.large:,}, once:", "", *alone(options.large)]
    text = "\n".join(lines) + "\n"
    if options.out:
        options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
