"""What buckets of length save: padded tokens over the records of a run, and the time of a training step at each length.

python -m benchmarks.length_buckets --records=runs/emoji/records > benchmarks/results/length_buckets.md
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.machine import describe
from benchmarks.training_step import make_batch
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.load import load_config
from kaleido_jax.config.schema import Config
from kaleido_jax.data.order import buckets_of
from kaleido_jax.data.records import find_records, open_records
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.runtime.mesh import make_mesh, put_batch
from kaleido_jax.train.optimizer import make_optimizer
from kaleido_jax.train.state import create_state
from kaleido_jax.train.step import make_train_step

CHOICES = ((), (48,), (56,), (48, 80), (48, 64, 80))
REPEATS = 40


def step_times(config: Config, lengths: list[int]) -> dict[int, float]:
    """Length of z -> ms of a training step, medians of steps in turn."""
    model, optimizer = build_model(config, open_codec(config).tokenizer.base_vocab_size), make_optimizer(config.train)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    state, frozen, _ = create_state(config, model, optimizer, mesh)
    step = jax.jit(make_train_step(model, config, optimizer), donate_argnums=0)
    batches = {}
    for length in lengths:
        at = dataclasses.replace(config, latents=dataclasses.replace(config.latents, max_latents_tokens=length))
        batches[length] = put_batch(make_batch(at, config.train.batch_size), mesh)
        state, _ = step(state, frozen, batches[length])
    times: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in range(REPEATS):
        for length in lengths:
            start = time.perf_counter()
            state, metrics = step(state, frozen, batches[length])
            jax.block_until_ready(metrics)
            times[length].append(1e3 * (time.perf_counter() - start))
    return {length: float(np.median(values)) for length, values in times.items()}


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", required=True)
    parser.add_argument("--config", default="emoji_combined:long")
    options = parser.parse_args()
    config = load_config(options.config)
    codec, longest = open_codec(config), config.latents.max_latents_tokens
    records = open_records(
        find_records(Path(options.records)), codec=codec, image_size=config.model.denoiser.image_size, verify="size"
    )
    z = records.latents_lengths(codec)
    times = step_times(config, sorted({length for choice in CHOICES for length in (*choice, longest)}))
    print("# Buckets of length\n")
    tens = ", ".join(f"{value:.0f}" for value in np.percentile(z, (0, 25, 50, 75, 90, 100)))
    print(f"{len(z):,} records of {options.config}; z has {z.mean():.1f} tokens, quartiles and tenths {tens}.")
    print(f"Step of {config.train.batch_size} samples, medians of {REPEATS} in turn; the mean is over the records.\n")
    print(describe("jax") + "\n")
    print("| buckets | padded length, mean | filled | ms a step, mean | images/s |\n|---|---|---|---|---|")
    for choice in CHOICES:
        bounds = np.asarray((*choice, longest))
        of_record = bounds[buckets_of(z, bounds)]
        mean = float(np.mean([times[int(length)] for length in of_record]))
        cells = f"{of_record.mean():.1f} | {z.mean() / of_record.mean():.0%} | {mean:.0f} | "
        print(f"| {', '.join(map(str, bounds))} | {cells}{1e3 * config.train.batch_size / mean:.1f} |")
    print("\nms a step by length: " + ", ".join(f"{length}: {value:.0f}" for length, value in times.items()))


if __name__ == "__main__":
    main()
