"""Speed and quality of the samplers on a bundled model, and what two choices inside an evaluation are worth.

    python -m benchmarks.sample --results=benchmarks/results/sample.md

Each sampler draws the same captions from the same z and noise. Speed: the samplers take turns, and the median of the
rounds is reported in pictures a second of processor time, which other work on the machine changes little, and of the
clock; the networks of the prior and the decoding are not part of it. Quality: the measures of the emoji protocol. The
guidance is the model's own. --report=FILE takes the quality of a sampler from an eval/emoji.json that `evaluate` wrote.

Below: guidance by one doubled batch against two single calls, and keys and values of the text computed once a sample
against at every evaluation. One process for each number of cores, each pinned to as many.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

from kaleido_jax.runtime.xla_flags import keep_compiled, keep_memory, set_cpu_flag

set_cpu_flag()
keep_memory()
keep_compiled()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.tables import described, table  # noqa: E402
from kaleido_jax.data.sources.emoji import KINDS  # noqa: E402
from kaleido_jax.diffusion import samplers  # noqa: E402
from kaleido_jax.evaluate import emoji  # noqa: E402
from kaleido_jax.evaluate.sprite_reader import open_reader  # noqa: E402
from kaleido_jax.runtime.randomness import sample_keys  # noqa: E402
from kaleido_jax.sampling import functional  # noqa: E402
from kaleido_jax.sampling.pipeline import KaleidoPipeline  # noqa: E402
from kaleido_jax.sampling.tokens import pad_rows  # noqa: E402

SAMPLERS = (("ddpm", 250), ("ddim", 50), ("dpmpp_2m", 20), ("dpmpp_2m", 10), ("heun", 18))
NAMES = {"ddpm": "DDPM", "ddim": "DDIM", "dpmpp_2m": "DPM-Solver++(2M)", "heun": "Heun"}
SPEED = (
    ("sampler", "name", "{}"),
    ("evaluations", "evaluations", "{}"),
    *((f"img/s, {cores} core{'s' * (cores > 1)}: processor", f"cpu_{cores}", "{:.2f}") for cores in (1, 2)),
    *((f"clock, {cores}", f"clock_{cores}", "{:.2f}") for cores in (1, 2)),
)
QUALITY = (
    ("samples", "samples", "{}"),
    ("kind right", "kind_right", "{:.1%}"),
    ("+-", "error", "{:.1%}"),
    ("sprite as said", "sprite_as_said", "{:.1%}"),
    ("box IoU, median", "box_iou_median", "{:.3f}"),
    ("background as said", "background_as_said", "{:.1%}"),
)
PARTS = (
    ("rows", "rows", "{}"),
    ("what", "name", "{}"),
    ("one", "first", "{:.1f} ms"),
    ("the other", "second", "{:.1f} ms"),
    ("quotient", "quotient", "{:.2f}"),
)


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """(processor time, clock) of one call."""
    started = time.process_time(), time.perf_counter()
    jax.block_until_ready(run())
    return time.process_time() - started[0], time.perf_counter() - started[1]


def turns(runs: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, np.ndarray]:
    """Medians (processor time, clock) of calls that take turns."""
    found = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds)]
    return {name: np.median([each[name] for each in found], axis=0) for name in runs}


# ------------------------------------------------------------------------------------------- speed
def speeds(pipeline: KaleidoPipeline, rows: int, rounds: int) -> list[dict[str, float]]:
    """Pictures a second of each sampler, of processor time and of the clock."""
    captions = [KINDS[i % len(KINDS)] for i in range(rows)]
    z = [one.spelled(pipeline.codec) for one in pipeline.sample_latents(captions, seed=0)]
    runs = {}
    for name, steps in SAMPLERS:
        settings = [pipeline.override({"sampler": name, "num_steps": number}) for number in (2, steps)]
        compiles, runs[name, steps] = (
            functools.partial(pipeline.sample_images, captions, z, seed=0, sample=sample) for sample in settings
        )
        compiles()  # what is compiled serves any number of steps
    return [{"cpu": rows / cpu, "clock": rows / clock} for cpu, clock in turns(runs, rounds).values()]


def parts(pipeline: KaleidoPipeline, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of one guided evaluation of `rows` samples, in both forms of two choices."""
    model, params, config = pipeline._batched.model, pipeline.params, pipeline.config
    captions = [KINDS[i % len(KINDS)] for i in range(rows)]
    z = [one.spelled(pipeline.codec) for one in pipeline.sample_latents(captions, seed=0)]
    z = pad_rows(z, config.latents.max_latents_tokens)
    encoded = pipeline._batched.encode(params, pipeline.caption_tokens(captions))
    condition_of = jax.jit(lambda params: functional.condition_images(model, params, encoded, z, None, sample=sample))
    sample = config.sample
    condition = condition_of(params)
    start = functional.start_images(
        model, sample_keys(0, "image", 0, np.arange(rows)), None, diffusion=config.diffusion, sample=sample
    )
    images, times = start.images, np.full(rows, 600, np.int32)

    def denoiser(params: Any, condition: Any) -> Any:
        return functional._denoiser(model, params, condition, sample)

    both = jax.jit(lambda params, condition: denoiser(params, condition).predict_both(images, times))
    one = jax.jit(lambda params, condition: model.apply({"params": params}, images, times, condition, method="denoise"))

    def again(params: Any, encoded: Any) -> Any:  # as if the text were read at each evaluation
        condition = functional.condition_images(model, params, encoded, z, None, sample=sample)
        return denoiser(params, condition).predict_both(images, times)

    again = jax.jit(again)
    runs = {
        "doubled": lambda: both(params, condition),
        "two": lambda: (one(params, condition.uncond), one(params, condition.cond)),
        "again": lambda: again(params, encoded),
    }
    for run in runs.values():
        jax.block_until_ready(run())
    measured = turns(runs, rounds)
    doubled, two, reread = (1e3 * measured[name][0] for name in ("doubled", "two", "again"))
    return [
        {"rows": rows, "name": "guidance: one doubled batch, two single ones", "first": doubled, "second": two}
        | {"quotient": two / doubled},
        {"rows": rows, "name": "text: read once a sample, at every evaluation", "first": doubled, "second": reread}
        | {"quotient": reread / doubled},
    ]


# ------------------------------------------------------------------------------------------- quality
def quality(pipeline: KaleidoPipeline, number: int, reports: list[Path]) -> list[dict[str, Any]]:
    """The emoji protocol's measures of each sampler."""
    stored = {}
    for path in reports:
        report = json.loads(path.read_text())
        of = report["of"]["sample"]
        stored[of["sampler"], of["num_steps"]] = report | {"samples": report["of"]["num_samples"]}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        reader = open_reader(emoji.image_size_of(pipeline.config), Path(folder), 0)
        for name, steps in SAMPLERS:
            if (name, steps) not in stored:
                sample = pipeline.override({"sampler": name, "num_steps": steps})
                seen = emoji.draw(pipeline, sample, number, 0, Path(folder) / f"{name}_{steps}")
                stored[name, steps] = emoji.report_of(seen, reader) | {"samples": number}
            found = stored[name, steps]
            right, drawn = found["kind_right"], found["samples"]
            found |= {"error": (right * (1 - right) / drawn) ** 0.5}  # one standard deviation
            rows.append({key: found[key] for _, key, _ in QUALITY})
            print(name, steps, rows[-1], flush=True)
    return rows


def main() -> None:
    """Prints the tables, and writes them to --results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji-tiny")
    parser.add_argument("--rows", type=int, default=20, help="of a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=600, help="of each sampler, for its quality")
    parser.add_argument("--report", action="append", type=Path, default=[], help="an eval/emoji.json with a quality")
    parser.add_argument("--cores", type=int, help="measure the speed in this process, as JSON")
    parser.add_argument("--results", type=Path, help="a Markdown file to write")
    given = parser.parse_args()
    if given.cores:
        pipeline = KaleidoPipeline.from_pretrained(given.model)
        found = {"speeds": speeds(pipeline, given.rows, given.rounds)}
        if given.cores == 1:
            found["parts"] = [row for rows in (1, 16, given.rows) for row in parts(pipeline, rows, 5 * given.rounds)]
        print(json.dumps(found))
        return
    measured = {}
    for cores in (1, 2):
        command = ["taskset", "-c", f"0-{cores - 1}", sys.executable, "-m", "benchmarks.sample", f"--cores={cores}"]
        command += [f"--{name}={getattr(given, name)}" for name in ("model", "rows", "rounds")]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        measured[cores] = json.loads(out.splitlines()[-1])
        print(measured[cores], flush=True)
    pipeline = KaleidoPipeline.from_pretrained(given.model)
    rows = quality(pipeline, given.samples, given.report)
    for i, ((name, steps), row) in enumerate(zip(SAMPLERS, rows, strict=True)):
        sample = pipeline.override({"sampler": name, "num_steps": steps})
        row["name"] = f"{NAMES[name]} {steps}"
        row["evaluations"] = len(samplers.evaluations(pipeline.config.diffusion, sample))
        for cores, found in measured.items():
            row |= {f"{key}_{cores}": value for key, value in found["speeds"][i].items()}
    settings = pipeline.config.sample
    text = "\n".join(
        [
            f"# Samplers: speed and quality of {given.model}\n",
            *table(SPEED + QUALITY, rows),
            f"\nBatches of {given.rows}, gamma {settings.gamma:g}, guidance interval {settings.guidance_interval}.\n",
            "Processor milliseconds of one guided evaluation, one core:\n",
            *table(PARTS, measured[1]["parts"]),
            f"\n{described('jax', 'jaxlib')}",
            f"- load average at the end: {os.getloadavg()[1]:.1f} (5 minutes)",
        ]
    )
    print(text)
    if given.results:
        given.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
