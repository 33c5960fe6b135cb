"""How much of the machine's time the annotation job leaves to the annotators: images/s of the job with annotators that
do nothing, beside a plain loop that reads, crops, encodes and writes the same images.

Command:  python benchmarks/annotate.py [--images=2000] [--rounds=3] [--out=benchmarks/results/annotate.md]
Hardware: any; two processes. Takes about a minute a round for 2,000 images.
"""

import argparse
import io
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from kaleido_jax.annotate import registry as annotators
from kaleido_jax.annotate.job.run import annotate
from kaleido_jax.config.checks import validate
from kaleido_jax.config.schema import default_config
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.latents.types import Latents

WORKERS = 2
SIZE_PX = 256
PHOTO_PX = (500, 375)  # width and height of CC12M's usual copies, roughly
SHARD_SIZE = 250


class NoAnnotator:
    """Answers at once, with a text."""

    segments, needs, metadata = ("text",), (), {"model": "none", "version": "1"}
    sees = "record"

    def __call__(self, examples, so_far):
        """One answer an example."""
        return [Latents(text="nothing")] * len(examples)


# Workers import this file again, and so know the annotator too.
annotators.OPENERS["text", "labels"] = lambda settings: NoAnnotator()


def make_photos(folder, count):
    """Smooth noise as JPEG: about the bytes of a photograph, and as hard to pack as one."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(PHOTO_PX, Image.Resampling.BICUBIC)
        noisy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (PHOTO_PX[1], PHOTO_PX[0], 3), np.int16)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{number:06d}.jpg", quality=90)
    rows = "\n".join(f"{number:06d}.jpg,photo {number}" for number in range(count))
    (folder / "photos.csv").write_text(f"image,caption\n{rows}\n")


def job(photos, work):
    config = default_config()
    config.data.source, config.data.root = "table", str(photos)
    config.annotate.segments, config.annotate.image_size = ("text",), SIZE_PX
    config.annotate.num_workers, config.annotate.shard_size = WORKERS, SHARD_SIZE
    tokenizer = load_tokenizer("t5", config.latents.codebook_size)
    [manifest] = annotate(validate(config), work, tokenizer, progress=False).values()
    return sum(shard.bytes for shard in manifest.shards)


def plain(photos, work):
    """The same pixels in, the same PNG out, in shards of the same size; nothing else."""
    work.mkdir(parents=True)
    paths = sorted(photos.glob("*.jpg"))
    parts = [(paths[i : i + SHARD_SIZE], work / f"{i}.array_record") for i in range(0, len(paths), SHARD_SIZE)]
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_plain_part, *zip(*parts, strict=True)))
    return sum(path.stat().st_size for path in work.iterdir())


def _plain_part(paths, out):
    writer = ArrayRecordWriter(str(out), "group_size:1")
    for path in paths:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        left, side = (rgb.width - rgb.height) / 2, rgb.height
        square = rgb.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS, box=(left, 0, left + side, side))
        png = io.BytesIO()
        square.save(png, "png", compress_level=2)  # as encode_image does
        writer.write(png.getvalue())
    writer.close()


def copy(photos, work):
    """The bytes of the finished shards read and written again, with nothing in between."""
    work.mkdir(parents=True)
    total = 0
    for path in sorted(photos.glob("*.array_record")):
        content = path.read_bytes()
        (work / path.name).write_bytes(content)
        total += len(content)
    return total


def measure(task, *arguments):
    """(seconds by the clock, seconds of CPU in this process and its children, bytes)."""
    start, cpu = time.monotonic(), _cpu_sec()
    size = task(*arguments)
    return time.monotonic() - start, _cpu_sec() - cpu, size


def _cpu_sec():
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    load, seconds, cpu, sizes = os.getloadavg()[0], defaultdict(list), defaultdict(list), {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_photos(root / "photos", flags.images)
        for number in range(flags.rounds):  # in turns, so that other work on the machine meets all alike
            for name, task, source in (
                ("plain", plain, root / "photos"),
                ("job", job, root / "photos"),
                ("copy", copy, root / f"job{number}" / "records"),
            ):
                took, worked, sizes[name] = measure(task, source, root / f"{name}{number}")
                seconds[name].append(took)
                cpu[name].append(worked)
    text = table(flags, load, seconds, cpu, sizes)
    print(text)
    if flags.out:
        flags.out.write_text(text)


def table(flags, load, seconds, cpu, sizes):
    rates = {name: [flags.images / took for took in all_] for name, all_ in seconds.items()}
    share = [j / p for j, p in zip(rates["job"], rates["plain"], strict=True)]
    best, cpu_share = max(rates["job"]) / max(rates["plain"]), min(cpu["plain"]) / min(cpu["job"])
    names = {
        "plain": "plain loop: read, decode, crop, encode, write",
        "job": "the job, annotators that do nothing",
        "copy": "the finished shards' bytes copied, one process",
    }
    lines = [
        "# The annotation job's own cost",
        "",
        f"{flags.images:,} JPEGs of {PHOTO_PX[0]}x{PHOTO_PX[1]} px to records of {SIZE_PX} px by {WORKERS} processes, "
        f"their start included; median of {flags.rounds} rounds (smallest, largest).",
        "",
        "| what | images/s | CPU ms an image, least | MB written |",
        "|---|---|---|---|",
    ]
    for name, what in names.items():
        low, high = min(rates[name]), max(rates[name])
        rate = f"{statistics.median(rates[name]):,.1f} ({low:,.1f}, {high:,.1f})"
        worked = 1e3 * min(cpu[name]) / flags.images
        lines.append(f"| {what} | {rate} | {worked:,.2f} | {sizes[name] / 1e6:,.1f} |")
    lines += [
        "",
        f"In the least disturbed round of each the job runs at **{100 * best:.0f} %** of the plain loop, by CPU at "
        f"{100 * cpu_share:.0f} %; in the rounds one by one at {', '.join(f'{100 * s:.0f} %' for s in share)}.",
        "",
        f"{datetime.now(UTC).date()}, {cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"load of the machine without this, before it began: {load:.1f} processes. "
        f"Command: `python benchmarks/annotate.py --images={flags.images} --rounds={flags.rounds}`",
        "",
    ]
    return "\n".join(lines)


def cpu_name():
    info = Path("/proc/cpuinfo")
    found = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return found[0] if found else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
