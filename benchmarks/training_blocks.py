"""Where the time of a training step goes on one core of a CPU, block by block, forward and backward together.

python -m benchmarks.training_blocks [--config=emoji_combined] [--steps=30] [--out=FILE.md]

XLA's trace gives each operation's time, its metadata the module that the operation came from. One thread runs them one
after another; the sixth fastest of 30 runs of each is taken, since the clock of a trace also runs while other programs
have the core. FLOPs are those of the products and convolutions in the jaxpr. Weight gradients of convolutions are a
block of their own: XLA gives them no name.
"""

import argparse
import collections
import os
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["NPROC"] = "1"  # XLA's own thread pool: with more threads convolutions end after their event
os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks.machine import describe
from kaleido_jax.runtime.xla_flags import keep_memory, set_cpu_flag

set_cpu_flag()
keep_memory()
os.environ["XLA_FLAGS"] += " --xla_cpu_multi_thread_eigen=false"

import jax  # noqa: E402
import jax.extend  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.training_step import make_step  # noqa: E402

WEIGHT_GRADIENTS, OTHER = "convolutions: weight gradients", "not named by XLA (copies, sums, maxima)"
BLOCKS = (  # the first pattern found in an operation's path decides
    (r"Kaleido\.encode\)", "encoder"),
    (r"read_latents.*logits_dense", "prior: logits"),
    (r"read_latents.*token_embedder", "prior: embedding"),
    (r"read_latents.*self_attention", "prior: self-attention"),
    (r"read_latents.*encoder_decoder_attention", "prior: cross-attention"),
    (r"read_latents.*/mlp", "prior: GEGLU"),
    (r"read_latents", "prior: norms, residuals, scan"),
    (r"read_text|text_path", "denoiser: text path"),
    (r"keys_values", "denoiser: keys and values of the text"),
    (r"denoise\).*resnets.*conv", "denoiser: convolutions of the residual blocks"),
    (r"denoise\).*resnets", "denoiser: rest of the residual blocks"),
    (r"denoise\).*attn", "denoiser: attention"),
    (r"denoise\)", "denoiser: resampling, concatenation, in and out"),
    (r"normal|uniform|random|fold_in|bernoulli", "random numbers"),
    (r"jvp\(", "losses"),
    (r"train_step", "optimizer, EMA, norms of gradients"),
)


def block_of(path: str) -> str:
    """The block of an operation's path; OTHER without one."""
    for pattern, name in BLOCKS:
        if found := re.search(pattern, path):
            return found.expand(name)
    return OTHER


def flops_of(jaxpr: Any, path: str, times: int, into: collections.Counter) -> None:
    """Adds the FLOPs of each block's products and convolutions, those of inner jaxprs included."""
    for equation in jaxpr.eqns:
        where = f"{path}/{equation.source_info.name_stack}"
        out = equation.outvars[0].aval.shape if equation.outvars else ()
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            size = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            into[block_of(where)] += 2 * int(np.prod(out)) * int(size) * times
        elif equation.primitive.name == "conv_general_dilated":
            numbers, kernel = equation.params["dimension_numbers"], equation.invars[1].aval.shape
            spatial = [kernel[axis] for axis in numbers.rhs_spec[2:]]
            of_weights = spatial > [out[axis] for axis in numbers.out_spec[2:]]
            each = np.prod(kernel) // kernel[numbers.rhs_spec[0]]
            into[WEIGHT_GRADIENTS if of_weights else block_of(where)] += 2 * int(np.prod(out) * each) * times
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            flops_of(inner, where, times * equation.params.get("length", 1), into)


def traced(run: Any, steps: int) -> dict[str, float]:
    """Milliseconds of each operation in one step."""
    durations = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                run()
        data = jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb"))))
        for plane in data.planes:
            for line in plane.lines:
                for event in line.events:
                    if name := dict(event.stats).get("hlo_op"):
                        durations[name].append(event.duration_ns / 1e6)
    times = {}
    for name, values in durations.items():
        calls = max(1, round(len(values) / steps))
        times[name] = sorted(values)[len(values) // 6] * calls
    return times


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="emoji_combined")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    step, state, batch = make_step(args.config, args.batch)
    flops = collections.Counter()
    flops_of(jax.make_jaxpr(step)(state, {}, batch).jaxpr, "", 1, flops)
    compiled = step.lower(state, {}, batch).compile()
    lines = (re.match(r"\s*(?:ROOT )?%([\w.\-]+) = (.*)", line) for line in compiled.as_text().splitlines())
    operations = {line[1]: line[2] for line in lines if line}

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, {}, batch))

    run()
    whole = []
    for _ in range(args.steps):
        start = time.process_time()
        run()
        whole.append(1000 * (time.process_time() - start))
    blocks: collections.Counter = collections.Counter()
    for name, ms in traced(run, args.steps).items():
        text = operations.get(name, "")
        if name.startswith("while") and " while(" in text:
            continue  # its operations are in the trace themselves
        path = re.search(r'op_name="([^"]*)"', text)
        unnamed = WEIGHT_GRADIENTS if " convolution(" in text else OTHER
        blocks[block_of(path[1]) if path else unnamed] += ms
    table = ["| block | ms | GFLOP | GFLOP/s |", "|---|---|---|---|"]
    for name in sorted({*blocks, *flops}, key=lambda name: -blocks[name]):
        work, ms = flops[name] / 1e9, blocks[name]
        table.append(f"| {name} | {ms:.1f} | {work:.2f} | {work / ms * 1000 if ms else 0:.0f} |")
    total, work = statistics.median(whole), sum(flops.values()) / 1e9
    rate = work / total * 1000
    table.append(f"| sum of the blocks | {sum(blocks.values()):.0f} | {work:.2f} | |")
    table.append(f"| the step, CPU time (least) | {total:.0f} ({min(whole):.0f}) | {work:.2f} | {rate:.0f} |")
    text = describe("jax", "jaxlib", "flax") + f"\n- load: {os.getloadavg()[0]:.1f}\n\n" + "\n".join(table)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
