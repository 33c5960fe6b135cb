"""The quickstart's model in two checkouts: training step, decoding of z and sampler evaluations, timed alternately.

python -m benchmarks.two_checkouts --before=DIR --after=DIR [--rounds=21] [--out=benchmarks/results/two_checkouts.md]

One process for each checkout serves timed runs, so that the code before and after meets the same minutes of the
machine; parameters and inputs are the same, and so must be the loss, the tokens and the images.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

FIGURES = {
    "train": "training step, batch 16",
    "decode": "z of 16 captions, 40 tokens",
    "sample": "3 sampler evaluations, 16 rows, with reading c and z",
}


def first_of(*names: str) -> Any:
    """The first of "module:attribute" that there is: the two versions need not agree on where things are."""
    for name in names:
        module, attribute = name.split(":")
        try:
            return getattr(import_module(f"kaleido_jax.{module}"), attribute)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"none of {', '.join(names)} in this checkout")


def field(group: Any, *names: str) -> Any:
    """The first of these fields that a config group has."""
    return next(getattr(group, name) for name in names if hasattr(group, name))


def serve() -> None:
    """Prints what the model computes, then "wall CPU" seconds for each name of FIGURES on stdin."""
    first_of("runtime.xla_flags:set_cpu_flag", "xla_flags:set_cpu_flag")()
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np

    from configs.emoji_combined import get_config

    config = first_of("config.checks:validate", "config_checks:validate")(get_config())
    shapes = first_of("config.schema:sample_shapes", "config:sample_shapes")(config.model)
    codebook_size = field(config.latents, "codebook_size", "num_vokens")
    tokenizer = first_of("latents.tokenizer:load_tokenizer")(config.model.t5.vocabulary, codebook_size)
    model = first_of("models.kaleido:build_model")(config, field(tokenizer, "base_vocab_size", "base_rows"))
    init = first_of("models.kaleido:init_params")
    params = jax.jit(lambda key: nn.meta.unbox(init(model, key)))(jax.random.key(0))
    optimizer = first_of("train.optimizer:make_optimizer", "train.state:make_optimizer")(config.train)
    zero = jnp.zeros((), jnp.int32)
    state = first_of("train.state:State")(step=zero, params=params, ema=params, opt_state=optimizer.init(params))

    rng, rows = np.random.default_rng(0), config.train.batch_size
    length = field(config.latents, "max_latents_tokens", "max_tokens")
    weights = (np.arange(length) < rng.integers(5, length, (rows, 1))).astype(np.float32)
    targets = np.where(weights > 0, rng.integers(3, 300, (rows, length)), 0).astype(np.int32)
    captions = rng.integers(3, 100, (rows, field(config.data, "max_caption_tokens", "caption_tokens")))
    batch = {
        "image": rng.uniform(-1, 1, (rows, *shapes[0])).astype(np.float32),
        "encoder_input_tokens": captions.astype(np.int32),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_loss_weights": weights,
        "sample_id": np.arange(rows),
    }
    batch = jax.device_put(batch)
    images = [jnp.asarray(rng.normal(size=(rows, *shape)), jnp.float32) for shape in shapes]
    train_step = jax.jit(first_of("train.step:make_train_step")(model, config, optimizer))
    sample_tokens, keys = first_of("models.decode:sample_tokens"), jax.random.split(jax.random.key(1), rows)

    @jax.jit
    def decode(params: dict) -> jax.Array:
        apply = functools.partial(model.apply, {"params": params})
        h_c, mask = apply(batch["encoder_input_tokens"], method="encode")
        cache = apply(h_c, 40, method="start_decoding")

        def step(token: jax.Array, index: jax.Array, cache: Any) -> tuple:
            return apply(token, index, cache, mask, method="decode_step")

        return sample_tokens(step, cache, keys, max_len=40)

    @jax.jit
    def denoise(params: dict) -> list[jax.Array]:
        apply = functools.partial(model.apply, {"params": params})
        h_c, mask = apply(batch["encoder_input_tokens"], method="encode")
        h_z, _ = apply(h_c, mask, batch["decoder_input_tokens"], method="read_latents")
        condition = apply(h_c, mask, h_z, batch["decoder_target_tokens"] > 0, method="condition")

        def body(x: list[jax.Array], _: None) -> tuple:
            return apply(x, jnp.full(rows, 500), condition, method="denoise"), None

        return jax.lax.scan(body, images, None, length=3)[0]

    calls: dict[str, Callable[[], Any]] = {
        "train": lambda: jax.block_until_ready(train_step(state, {}, batch)),
        "decode": lambda: jax.block_until_ready(decode(params)),
        "sample": lambda: jax.block_until_ready(denoise(params)),
    }
    out = {name: call() for name, call in calls.items()}
    results = {
        "loss": float(out["train"][1]["loss"]),
        "sum of tokens": int(np.asarray(out["decode"]).sum()),
        "sum of |images|": float(jnp.abs(out["sample"][0]).sum()),
    }
    sys.stdout.write(json.dumps(results) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        calls[line.strip()]()
        sys.stdout.write(f"{time.perf_counter() - wall} {time.process_time() - cpu}\n")
        sys.stdout.flush()


class Side:
    """The server process of one checkout."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, cwd=folder, env=environment, **pipes)
        self.results = json.loads(self._process.stdout.readline())

    def run(self, name: str) -> tuple[float, float]:
        """(wall, CPU) seconds of one call."""
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        wall, cpu = map(float, self._process.stdout.readline().split())
        return wall, cpu

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def table(sides: dict[str, Side], rounds: int) -> str:
    """Medians and ratios as Markdown."""
    lines = [
        f"| milliseconds, median of {rounds} | before: wall / CPU | after: wall / CPU | after / before: wall / CPU |",
        "|---|---|---|---|",
    ]
    for name, what in FIGURES.items():
        times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for number in range(rounds):
            for side in list(sides)[:: 1 if number % 2 else -1]:
                times[side].append(sides[side].run(name))
        medians = {side: [statistics.median(column) for column in zip(*times[side], strict=True)] for side in sides}
        cells = [" / ".join(f"{1000 * value:.1f}" for value in medians[side]) for side in sides]
        ratios = " / ".join(f"{b / a:.3f}" for a, b in zip(medians["before"], medians["after"], strict=True))
        lines.append(f"| {what} | {cells[0]} | {cells[1]} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--after", type=Path)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    from benchmarks.machine import describe

    sides = {name: Side(getattr(given, name).resolve()) for name in ("before", "after")}
    text = "\n".join(
        [
            "# The quickstart's model in two checkouts",
            "",
            describe("jax", "jaxlib", "flax"),
            "",
            table(sides, given.rounds),
            "",
            *(f"- {name} computes {json.dumps(side.results)}" for name, side in sides.items()),
            "",
        ]
    )
    for side in sides.values():
        side.close()
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
