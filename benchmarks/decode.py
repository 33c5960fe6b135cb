"""Tokens a second of sampling z: our cached decoding, ours without a cache, and transformers' generate in torch.

    python -m benchmarks.decode --results=benchmarks/results/decode.md

The same random weights (through our export to Hugging Face), captions and number of new tokens, greedy, float32, one
CPU, one process. All take turns, and medians are reported: tokens a second, and in brackets tokens a second of
processor time, which other work on the machine changes little. Without a cache there is one turn. torch runs with one
thread and with more: on a busy machine its threads wait for each other. Tokens have to be equal. Needs torch and
transformers.
"""

import argparse
import functools
import os
import sys
import tempfile
import time
from pathlib import Path

from kaleido_jax.runtime.xla_flags import set_cpu_flag

set_cpu_flag()  # before jax comes in, as the command line does

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.machine import describe  # noqa: E402
from kaleido_jax.config.schema import T5  # noqa: E402
from kaleido_jax.interop.t5.huggingface import write_huggingface  # noqa: E402
from kaleido_jax.interop.t5.layout import TABLE, layouts  # noqa: E402
from kaleido_jax.interop.t5.t5x import from_flat  # noqa: E402
from kaleido_jax.models import decode  # noqa: E402
from kaleido_jax.models.t5 import PAD, Decoder, Encoder  # noqa: E402

SHAPES = {  # sizes, rows of the table; "tiny" is the quickstart's prior
    "tiny": (T5(d_model=128, d_ff=256, num_heads=4, head_dim=32, num_encoder_layers=3, num_decoder_layers=3), 1216),
    "T5-small": (
        T5(d_model=512, d_ff=1024, num_heads=6, head_dim=64, num_encoder_layers=8, num_decoder_layers=8),
        32128,
    ),
}
CAPTION_TOKENS, BATCHES = 32, (1, 16)


class Weights:
    """Random T5 weights at t5x's scales; the head is larger, so that the best token is clear."""

    def __init__(self, config: T5, rows: int):
        """Draws all tensors."""
        rng, flat = np.random.default_rng(0), {}
        for part in layouts(config, rows).values():
            for names, shape in part.values():
                for name in names:
                    std = 1.0 if name == TABLE else shape[0] ** -0.5
                    std *= config.head_dim**-0.5 if "query" in name else 4.0 if "logits" in name else 1.0
                    flat[name] = np.ones(shape) if name.endswith("scale") else rng.normal(size=shape) * std
        # The end of a sequence is never best: both sides have to write the whole length.
        flat["decoder/logits_dense/kernel"][:, 1] = 0
        self.flat = {name: value.astype(np.float32) for name, value in flat.items()}
        self.path, self.names = Path("random"), tuple(sorted(flat))

    def shape(self, name):
        """Shape of a tensor."""
        return self.flat[name].shape

    def read(self, name):
        """A tensor."""
        return self.flat[name]


# ------------------------------------------------------------------------------------------- the three
def ours(config: T5, rows: int, weights: Weights, captions: np.ndarray, new_tokens: int) -> dict:
    """Name -> function that decodes: with the cache, and teacher-forced over all positions for each token."""
    params = jax.device_put(from_flat(weights.flat, config))
    encoder, decoder = Encoder(config, rows), Decoder(config, rows)
    keys = jax.random.split(jax.random.key(0), len(captions))

    @jax.jit
    def cached(params, captions):
        variables, mask = {"params": params[1]}, captions != PAD
        h_c = encoder.apply({"params": params[0]}, captions)
        cache = decoder.apply(variables, h_c, new_tokens, method="init_cache")
        step = lambda *args: decoder.apply(variables, *args, mask, method="step")  # noqa: E731
        return decode.sample_tokens(step, cache, keys, max_len=new_tokens, temperature=0)

    @jax.jit
    def uncached(params, captions):
        variables, mask = {"params": params[1]}, captions != PAD
        h_c = encoder.apply({"params": params[0]}, captions)

        def write(index, tokens):
            _, logits = decoder.apply(variables, decode.shift_right(tokens), h_c, mask)
            return tokens.at[:, index].set(jnp.argmax(logits[:, index], -1).astype(jnp.int32))

        return jax.lax.fori_loop(0, new_tokens, write, jnp.zeros((len(captions), new_tokens), jnp.int32))

    return {
        "ours, cached": lambda: np.asarray(cached(params, captions)),
        "ours, uncached": lambda: np.asarray(uncached(params, captions)),
    }


def theirs(weights: Weights, captions: np.ndarray, new_tokens: int, threads: list[int]) -> dict:
    """transformers' generate with its cache, for each number of threads."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        write_huggingface(weights, Path(folder))
        model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    given = torch.tensor(captions, dtype=torch.long)
    settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": new_tokens, "use_cache": True}

    def generate(threads):
        torch.set_num_threads(threads)
        with torch.inference_mode():
            out = model.generate(input_ids=given, attention_mask=(given != PAD).long(), **settings)
        return out[:, 1:].numpy()  # the first is the start

    return {f"transformers, {n} threads": functools.partial(generate, n) for n in threads}


# ------------------------------------------------------------------------------------------- measuring
def measure(name: str, batch: int, given: argparse.Namespace) -> dict:
    """One row of the table: medians of interleaved runs."""
    (config, rows), new_tokens = SHAPES[name], given.new_tokens
    rng = np.random.default_rng(1)
    captions = rng.integers(3, rows, (batch, CAPTION_TOKENS)).astype(np.int32)
    captions[:, -1] = 1
    captions[::3, CAPTION_TOKENS // 2 :] = 0
    weights = Weights(config, rows)
    runs = ours(config, rows, weights, captions, new_tokens)
    runs |= theirs(weights, captions, new_tokens, given.threads)
    if not given.uncached:
        del runs["ours, uncached"]
    tokens = {which: run() for which, run in runs.items()}  # compiles, too
    for which, found in tokens.items():
        if not np.array_equal(found, tokens["ours, cached"]):
            sys.exit(f"{name}, batch {batch}: {which} wrote other tokens than ours, cached")
    times = {which: [] for which in runs}
    for turn in range(given.rounds):
        for which, run in runs.items():
            if which == "ours, uncached" and turn:
                continue
            started = time.perf_counter(), time.process_time()
            run()
            times[which].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    medians = {which: np.median(found, axis=0) for which, found in times.items()}
    speed = {which: batch * new_tokens / both for which, both in medians.items()}
    theirs_best = np.max([both for which, both in speed.items() if which.startswith("transformers")], axis=0)
    show = lambda both: f"{both[0]:.4g} ({both[1]:.4g})"  # noqa: E731
    return {"shape": name, "batch": batch, "new tokens": new_tokens} | {
        **{which: show(both) for which, both in speed.items()},
        "cached / the better transformers": show(speed["ours, cached"] / theirs_best),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, os.cpu_count()])
    parser.add_argument("--uncached", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--results", type=Path, help="a Markdown file to write")
    given = parser.parse_args()
    lines = []
    for name in given.shapes:
        for batch in given.batches:
            lines.append(measure(name, batch, given))
            print(lines[-1], flush=True)
    cells = [list(lines[0]), ["---"] * len(lines[0]), *(line.values() for line in lines)]
    table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in cells)
    load = f"- load average at the end: {os.getloadavg()[1]:.1f} (5 minutes)"
    where = f"{describe('jax', 'torch', 'transformers')}\n{load}"
    text = f"# Decoding speed, tokens a second (of processor time)\n\n{table}\n\n{where}\n"
    print(text)
    if given.results:
        given.results.write_text(text)


if __name__ == "__main__":
    main()
