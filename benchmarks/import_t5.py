"""Peak memory of importing a large T5: how much more than the checkpoint's own bytes the loader needs.

    python -m benchmarks.import_t5 --size=xl --format=huggingface --results=benchmarks/results/import_t5.md

A checkpoint of random bfloat16 weights is written tensor by tensor, a fresh process loads encoder and decoder with
`load_t5` in the stored type, and the high-water mark of its resident memory (mapped file pages included) less that
before loading is divided by the bytes of the checkpoint's tensors (t5x compresses its files). The checkpoint is removed
at the end. Linux only.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import describe

SIZES = {  # d_model, d_ff, heads, layers of each stack (T5 v1.1)
    "small": (512, 1024, 6, 8),
    "large": (1024, 2816, 16, 24),
    "xl": (2048, 5120, 32, 24),
}
ROWS, BOUND = 32128, 1.3


# --------------------------------------------------------------------------------------------- writing
class RandomT5:
    """A T5 of random bfloat16 numbers between 1/128 and 1/64 in size, made when they are read."""

    def __init__(self, size: str):
        """Shapes only."""
        from kaleido_jax.config.schema import T5
        from kaleido_jax.interop.t5.layout import expected_shapes, layouts

        d_model, d_ff, heads, layers = SIZES[size]
        config = T5(d_model=d_model, d_ff=d_ff, num_heads=heads, num_encoder_layers=layers, num_decoder_layers=layers)
        self._shapes = expected_shapes(layouts(config, ROWS))
        self.path, self.names, self._rng = Path(size), tuple(sorted(self._shapes)), np.random.default_rng(0)

    def shape(self, name):
        """Shape of a tensor."""
        return self._shapes[name]

    @property
    def num_bytes(self):
        """Of all tensors."""
        return 2 * sum(math.prod(shape) for shape in self._shapes.values())

    def read(self, name):
        """Another draw at every call."""
        import jax.numpy as jnp

        bits = self._rng.integers(0, 2**16, self._shapes[name], np.uint16)
        return ((bits & 0x807F) | 0x3C00).view(jnp.bfloat16)


def write(source: RandomT5, form: str, folder: Path) -> None:
    """A checkpoint in one of two formats; Hugging Face's in shards of about 1 GiB."""
    from kaleido_jax.interop.t5.huggingface import write_huggingface
    from kaleido_jax.interop.t5.t5x import write_t5x

    if form == "t5x":
        write_t5x(source, folder)
    else:
        write_huggingface(source, folder, shard_bytes=2**30)


# --------------------------------------------------------------------------------------------- loading
def memory() -> dict[str, int]:
    """Bytes: resident now, the most so far, and what of it is anonymous."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"resident": "VmRSS", "peak": "VmHWM", "anonymous": "RssAnon"}
    return {name: int(fields[field].split()[0]) * 1024 for name, field in names.items()}


def load(folder: Path) -> dict:
    """Loads both stacks in bfloat16 on the first device; bytes before, at the peak and after, and seconds."""
    import jax
    import jax.numpy as jnp

    from kaleido_jax.interop.t5.layout import sizes, t5_shapes
    from kaleido_jax.interop.t5.load import load_t5, open_t5

    config, rows = sizes(open_t5(folder))
    encoder, prior = t5_shapes(config, rows)
    targets = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), {"encoder": encoder, "prior": prior}
    )
    # What any process with jax has: the device, its thread pool, its compiler, one compiled function.
    jax.block_until_ready(jax.jit(jnp.sin)(jnp.ones(8)))
    before, started = memory(), time.monotonic()
    params = load_t5(folder, targets, num_pieces=32000, base_vocab_size=rows, seed=0)
    jax.block_until_ready(params)
    after = memory()
    return {
        "parameters": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "before": before["resident"],
        "peak": after["peak"],
        "after": after["resident"],
        "after_anonymous": after["anonymous"],
        "seconds": time.monotonic() - started,
    }


# ---------------------------------------------------------------------------------------------- report
def table(size: str, form: str, num_bytes: int, file_bytes: int, found: dict) -> str:
    """The figures as Markdown."""
    gb = lambda value: f"{value / 1e9:.2f} GB"  # noqa: E731
    rows = {
        "checkpoint": f"T5 v1.1 {size}, {form}, bfloat16: {gb(num_bytes)} of tensors, {gb(file_bytes)} of files",
        "parameters in memory (a token table in each stack)": gb(found["parameters"]),
        "resident before loading": gb(found["before"]),
        "peak resident (VmHWM)": gb(found["peak"]),
        "resident after loading": f"{gb(found['after'])}, of it anonymous {gb(found['after_anonymous'])}",
        "**peak less before, over the checkpoint**": f"**{ratio(found, num_bytes):.3f}** (bound {BOUND})",
        "peak over the checkpoint": f"{found['peak'] / num_bytes:.3f}",
        "time": f"{found['seconds']:.1f} s",
    }
    return "\n".join(["| what | figure |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def ratio(found: dict, num_bytes: int) -> float:
    """What loading added at its peak, relative to the files."""
    return (found["peak"] - found["before"]) / num_bytes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="xl")
    parser.add_argument("--format", choices=("huggingface", "t5x"), default="huggingface")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the files may be")
    parser.add_argument("--results", type=Path, help="a Markdown file to add the figures to")
    parser.add_argument("--load", type=Path, help="only load this checkpoint and print JSON")
    given = parser.parse_args()
    if given.load:
        print(json.dumps(load(given.load)))
        return
    folder = given.folder / f"import_t5_{given.size}_{given.format}"
    try:
        source = RandomT5(given.size)
        write(source, given.format, folder)
        file_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        command = [sys.executable, "-m", "benchmarks.import_t5", f"--load={folder}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    measured = table(given.size, given.format, source.num_bytes, file_bytes, found)
    lines = f"{measured}\n\n{describe('jax', 'safetensors', 'tensorstore')}\n"
    print(lines)
    if given.results:
        old = given.results.read_text() if given.results.exists() else "# Peak memory of importing a T5 checkpoint\n"
        given.results.write_text(f"{old}\n{lines}")
    sys.exit(ratio(found, source.num_bytes) >= BOUND)


if __name__ == "__main__":
    main()
