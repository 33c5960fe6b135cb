"""Attention at the paper model's shapes, forward and backward: ours against jax.nn.dot_product_attention.

python -m benchmarks.attention [--batch=16] [--latents=256] [--loops=20] [--topology=v5p:2x2x1] [--out=FILE.md]

Each form starts from (b, t, c) queries, keys and values in bfloat16 and ends with (b, t, c), as the networks call it,
the heads' transposes included. A loop inside one program feeds the gradients back, so that no call can be left out and
none waits for the host. Errors are against float32 attention on the same bfloat16 inputs. Rematerialization, which
computes the forward pass once more, is left out. On CPU the shapes are tiny, and cuDNN's form is not there.

With --topology nothing runs: one call is compiled for one chip of a TPU or one GPU that need not be there, and the
table has the compiler's memory and the bytes that it expects to move.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.tables import described, first_line, table
from kaleido_jax.models import cpu
from kaleido_jax.models.attention import attend, merge_heads, split_heads
from kaleido_jax.models.fused_attention import fused_attend, fused_causal_attend
from kaleido_jax.models.unet import scaled_attend
from kaleido_jax.plan.compiled import topology_devices
from kaleido_jax.plan.gpus import options_for

PLAIN, FUSED, PEER = "kaleido_jax", "kaleido_jax, fused", "jax.nn, xla"
FORMS = (PLAIN, FUSED, PEER, "jax.nn, cudnn")
CAPTION = 16  # tokens of the caption, before those of z
TURNS = 5  # timed loops

Inputs = tuple[jax.Array, ...]  # q, k, v and, in T5, the bias


@dataclasses.dataclass(frozen=True)
class Shape:
    """One kind of attention block of the model."""

    name: str
    heads: int
    head_dim: int
    queries: int  # tokens
    keys: int  # tokens
    mask: str = "none"  # over keys, "causal" or "none"
    bias: bool = False  # T5's relative positions, which are learned

    def flops(self, batch: int) -> int:
        """Of forward and backward together; masked pairs count."""
        return 3 * 2 * 2 * batch * self.heads * self.queries * self.keys * self.head_dim


def shapes_of(latents: int, tiny: bool) -> tuple[Shape, ...]:
    """Of configs/imagenet_combined.py with z padded to `latents` tokens; `tiny` ones have the same kinds."""
    text, (fine, coarse), heads = CAPTION + latents, (1024, 256), (8, 32)
    if tiny:
        text, (fine, coarse), heads, latents = CAPTION + 32, (64, 16), (2, 2), 32
    return (
        Shape("UNet 32 px: pixels", heads[0], 64, fine, fine),
        Shape("UNet 32 px: text", heads[0], 64, fine, text, "keys"),
        Shape("UNet 16 px: pixels", heads[0], 96, coarse, coarse),
        Shape("UNet 16 px: text", heads[0], 96, coarse, text, "keys"),
        Shape("text layers", heads[0], 128, text, text, "keys"),
        Shape("T5 decoder: self", heads[1], 64, latents, latents, "causal", bias=True),
        Shape("T5 decoder: caption", heads[1], 64, latents, CAPTION, "keys"),
    )


def make_inputs(shape: Shape, batch: int) -> tuple[Inputs, jax.Array, jax.Array | None]:
    """((q, k, v[, bias]), gradient of the output, mask)."""
    keys = jax.random.split(jax.random.key(0), 5)
    width = shape.heads * shape.head_dim
    # T5 does not scale: its queries are small instead, as its initialization makes them.
    scale = shape.head_dim**-0.5 if "T5" in shape.name else 1.0
    sizes = (shape.queries, shape.keys, shape.keys, shape.queries)
    q, k, v, dy = (jax.random.normal(key, (batch, t, width)) for key, t in zip(keys, sizes, strict=False))
    inputs = [x.astype(jnp.bfloat16) for x in (scale * q, k, v)]
    if shape.bias:
        inputs.append(jax.random.normal(keys[4], (1, shape.heads, shape.queries, shape.keys)).astype(jnp.bfloat16))
    mask = None
    if shape.mask == "causal":
        mask = jnp.tril(jnp.ones((shape.queries, shape.keys), bool))[None, None]
    elif shape.mask == "keys":  # the second half is filled to between a half and all of it
        filled = np.random.default_rng(0).integers(shape.keys // 2, shape.keys, (batch, 1, 1, 1)) + 1
        mask = jnp.arange(shape.keys) < filled
    return tuple(inputs), dy.astype(jnp.bfloat16), mask


def form_of(name: str, shape: Shape, mask: jax.Array | None) -> Callable[..., jax.Array]:
    """(q, k, v[, bias]) -> output, all (b, t, c)."""
    scaled = "T5" not in shape.name

    def ours(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        q, k, v = (split_heads(x, shape.heads) for x in (q, k, v))
        if scaled:
            return merge_heads(scaled_attend(q, k, v, None if mask is None else mask[:, 0, 0]))
        return merge_heads(attend(q, k, v, bias, mask))

    def theirs(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        q, k, v = (x.reshape(*x.shape[:2], shape.heads, shape.head_dim) for x in (q, k, v))
        causal = shape.mask == "causal"
        y = jax.nn.dot_product_attention(
            q,
            k,
            v,
            bias=bias,
            mask=None if causal else mask,
            is_causal=causal,
            scale=shape.head_dim**-0.5 if scaled else 1.0,
            implementation=name.rpartition(" ")[2],
        )
        return y.reshape(*y.shape[:2], -1)

    def fused(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        q, k, v = (split_heads(x, shape.heads) for x in (q, k, v))
        if bias is not None:
            return merge_heads(fused_causal_attend(q, k, v, bias, mask))
        scale = shape.head_dim**-0.25
        return merge_heads(fused_attend(q * scale, k * scale, v))

    return {PLAIN: ours, FUSED: fused}.get(name, theirs)


def with_gradients(form: Callable[..., jax.Array]) -> Callable[[Inputs, jax.Array], tuple[jax.Array, Inputs]]:
    def run(inputs: Inputs, dy: jax.Array) -> tuple[jax.Array, Inputs]:
        y, back = jax.vjp(form, *inputs)
        return y, back(dy)

    return run


def looped(form: Callable[..., jax.Array], loops: int) -> Callable[[Inputs, jax.Array], tuple[Inputs, jax.Array]]:
    """`loops` calls, each on what the last one changed by a little."""

    def once(_: int, carry: tuple[Inputs, jax.Array]) -> tuple[Inputs, jax.Array]:
        y, gradients = with_gradients(form)(*carry)
        moved = jax.tree.map(lambda x, change: x + 1e-3 * change.astype(x.dtype), carry, (gradients, y))
        return jax.lax.optimization_barrier(moved)

    return lambda inputs, dy: jax.lax.fori_loop(0, loops, once, (inputs, dy))


def relative_error(value: jax.Array, reference: jax.Array) -> float:
    """|value - reference| / |reference|, in the 2-norm."""
    value, reference = (np.asarray(x, np.float64) for x in (value, reference))
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def measure(name: str, shape: Shape, batch: int, loops: int) -> dict[str, float | str]:
    """One row; "why" instead of figures if the form refuses the shape."""
    inputs, dy, mask = make_inputs(shape, batch)
    row: dict[str, float | str] = {"shape": shape.name, "form": name}
    exact = [x.astype(jnp.float32) for x in (*inputs, dy)]
    with jax.default_matmul_precision("highest"):
        y, gradients = jax.jit(with_gradients(form_of(PEER, shape, mask)))(tuple(exact[:-1]), exact[-1])
    form = form_of(name, shape, mask)
    try:
        mine, its = jax.jit(with_gradients(form))(inputs, dy)
        row["error"] = relative_error(mine, y)
        row["gradient_error"] = max(map(relative_error, its, gradients))
        compiled = jax.jit(looped(form, loops)).lower(inputs, dy).compile()
        jax.block_until_ready(compiled(inputs, dy))
        times = []
        for _ in range(TURNS):
            start = time.perf_counter()
            jax.block_until_ready(compiled(inputs, dy))
            times.append(1e3 * (time.perf_counter() - start) / loops)
    except Exception as error:  # noqa: BLE001  whatever a library says, the other rows go on
        return row | {"why": f"{type(error).__name__}: {first_line(error)[:120]}"}
    row["ms"] = statistics.median(times)
    row["tflops"] = shape.flops(batch) / row["ms"] / 1e9
    if (memory := compiled.memory_analysis()) is not None:
        row["temp_mb"] = memory.temp_size_in_bytes / 1e6
    return row


def compiled_for(name: str, shape: Shape, batch: int, device: jax.Device) -> dict[str, float | str]:
    """One row: what the compiler of a device that is not there says of one call."""
    inputs, dy, mask = make_inputs(shape, batch)
    there = jax.sharding.SingleDeviceSharding(device)
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), (inputs, dy))
    row: dict[str, float | str] = {"shape": shape.name, "form": name}
    try:
        with cpu.plain(device.platform):
            lowered = jax.jit(with_gradients(form_of(name, shape, mask))).lower(*given)
        compiled = lowered.compile(compiler_options=options_for(device))
    except Exception as error:  # noqa: BLE001  whatever a library says, the other rows go on
        return row | {"why": f"{type(error).__name__}: {first_line(error)[:120]}"}
    row["temp_mb"] = compiled.memory_analysis().temp_size_in_bytes / 1e6
    if cost := compiled.cost_analysis():  # NVIDIA's compiler says nothing without a device
        row["moved_gb"] = cost["bytes accessed"] / 1e9
    return row


def forms_of(shape: Shape, device: jax.Device) -> Iterator[str]:
    """What can run there; fused attention is for pixels, and on GPUs for T5's decoder; cuDNN's is for GPUs."""
    for name in FORMS:
        if name == FUSED and device.platform not in ({"gpu"} if shape.bias else {"gpu", "tpu"}):
            continue
        if name == FUSED and not shape.bias and shape.mask != "none":
            continue
        if "cudnn" in name and device.platform != "gpu":
            continue
        yield name


COLUMNS = (  # heading, key, format
    ("attention", "shape", "{}"),
    ("heads x d, queries x keys", "size", "{}"),
    ("form", "form", "{}"),
    ("ms", "ms", "{:.3f}"),
    ("TFLOP/s", "tflops", "{:.1f}"),
    ("temporary MB", "temp_mb", "{:.0f}"),
    ("bytes accessed, GB", "moved_gb", "{:.2f}"),
    ("error of output", "error", "{:.1e}"),
    ("largest error of a gradient", "gradient_error", "{:.1e}"),
    ("refused", "why", "{}"),
)


def write(rows: Sequence[dict[str, float | str]], batch: int, device: jax.Device, out: Path | None) -> str:
    """The report so far; also written to `out` and, as JSON, beside it."""
    lines = [
        described("jax", "jaxlib"),
        f"- device: {device.device_kind}, {batch} rows",
        "",
        *table([column for column in COLUMNS if any(column[1] in row for row in rows)], rows),
    ]
    text = "\n".join(lines) + "\n"
    if out:
        out.write_text(text)
        out.with_suffix(".json").write_text(json.dumps(list(rows), indent=1))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--latents", type=lambda text: tuple(map(int, text.split(","))), default=(192, 256))
    parser.add_argument("--loops", type=int, default=20, help="calls in one program")
    parser.add_argument("--topology", help="what to compile for, e.g. v5p:2x2x1 or h100:1")
    parser.add_argument("--out", type=Path, help="FILE.md; the numbers go to FILE.json")
    args = parser.parse_args()
    device = topology_devices(args.topology).flat[0] if args.topology else jax.devices()[0]
    tiny = device.platform == "cpu"
    batch = 2 if tiny else args.batch
    shapes = dict.fromkeys(shape for latents in args.latents for shape in shapes_of(latents, tiny))
    rows = []
    for shape in shapes:
        size = f"{shape.heads} x {shape.head_dim}, {shape.queries} x {shape.keys}"
        for name in forms_of(shape, device):
            row = compiled_for(name, shape, batch, device) if args.topology else measure(name, shape, batch, args.loops)
            rows.append(row | {"size": size})
            print(json.dumps(rows[-1]), flush=True)
            write(rows, batch, device, args.out)
    print(write(rows, batch, device, args.out))


if __name__ == "__main__":
    main()
