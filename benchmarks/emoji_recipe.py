"""One trial of the emoji recipe: trains for some CPU seconds on one core and prints held-out losses along the way.

python -m benchmarks.emoji_recipe --records=DIR [--seconds=480] [--config=emoji_combined:long] [--config.KEY=VALUE ...]
python -m benchmarks.emoji_recipe --records=DIR --run=WORKDIR

DIR holds the records of a run (its workdir's records/, with the splits train and test). With --run nothing is trained:
the latest EMA of that run is measured, at single noise levels too. "of another" is L_DM where each image gets another
scene's caption and z; its quotient by L_DM grows as the net follows z, and is about 0.95 where it does not.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"

from kaleido_jax.runtime.xla_flags import keep_compiled, keep_memory, set_cpu_flag

set_cpu_flag()
keep_memory()
keep_compiled()
os.environ["XLA_FLAGS"] += " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from kaleido_jax.config.codec import open_codec  # noqa: E402
from kaleido_jax.config.load import config_from_flags  # noqa: E402
from kaleido_jax.config.schema import Config  # noqa: E402
from kaleido_jax.data.loader import make_loader  # noqa: E402
from kaleido_jax.data.records import open_records  # noqa: E402
from kaleido_jax.diffusion.schedule import alpha_bar_table  # noqa: E402
from kaleido_jax.models.kaleido import build_model  # noqa: E402
from kaleido_jax.runtime.mesh import make_mesh  # noqa: E402
from kaleido_jax.sampling.pipeline import KaleidoPipeline  # noqa: E402
from kaleido_jax.train import step as training  # noqa: E402
from kaleido_jax.train.optimizer import make_optimizer  # noqa: E402
from kaleido_jax.train.state import create_state  # noqa: E402
from kaleido_jax.train.step import joint_loss, make_train_step  # noqa: E402

HELD_OUT, ROWS = 512, 64  # scenes, and of a batch of them
FIRST_STEP = 10**6  # held-out batch i has the noise and times of this step + i, whatever was trained
LEVELS = (1, 8, 20, 40, 48, 80, 120, 200, 400, 500, 900)  # steps of the noise process
HEADINGS = ("weights", "CPU s", "steps", "images", "img/s", "L_AR", "L_DM", "of another", "quotient")


def batches(config: Config, folder: Path, rows: int, **options: Any) -> Any:
    """Batches of one split's records."""
    codec, latents = open_codec(config), config.latents
    records = open_records(folder, codec=codec, image_size=config.model.denoiser.image_size, verify="size")
    lengths = {"max_caption_tokens": config.data.max_caption_tokens, "max_latents_tokens": latents.max_latents_tokens}
    return make_loader(records, codec=codec, batch_size=rows, seed=config.seed, **lengths, **options)


def held_out_losses(config: Config, model: Any, records: Path) -> Callable[[Any], tuple[float, float, float]]:
    """params -> (L_AR, L_DM, L_DM of another scene's caption and z), means over the first HELD_OUT test scenes."""
    config = replace(config, diffusion=replace(config.diffusion, p_uncond=0.0))
    loss = jax.jit(lambda params, batch, step: joint_loss(params, model, config, batch, step)[1])
    loader = batches(config, records / "test", ROWS, shuffle=False, num_epochs=1)
    held = [next(loader) for _ in range(HELD_OUT // ROWS)]

    def losses(params: Any) -> tuple[float, float, float]:
        rows = []
        for i, batch in enumerate(held):
            own = loss(params, batch, FIRST_STEP + i)
            # The images move, and their noise and times with the rows stay.
            other = loss(params, batch | {"image": np.roll(batch["image"], 7, axis=0)}, FIRST_STEP + i)
            rows.append((float(own.get("loss_ar", 0)), float(own["loss_dm"]), float(other["loss_dm"])))
        return tuple(np.mean(rows, axis=0))

    return losses


def print_levels(config: Config, model: Any, params: Any, records: Path) -> None:
    """The mean squared error of x0 at single noise levels, a table; the first ROWS test scenes, each with its z."""
    diffusion = replace(config.diffusion, p_uncond=0.0, loss_space="x0")
    config = replace(config, diffusion=diffusion)
    batch = next(batches(config, records / "test", ROWS, shuffle=False, num_epochs=1))

    @jax.jit
    def error(params: Any, at: Any) -> Any:
        with mock.patch.object(training, "sample_times", lambda config, step, rows: jnp.full(rows.shape, at - 1)):
            return joint_loss(params, model, config, batch, FIRST_STEP)[1]["loss_dm"]

    print("\n| step | sigma / alpha | of x_t / alpha | of the net |\n|---|---|---|---|", flush=True)
    alpha_bars = alpha_bar_table(diffusion.schedule, diffusion.num_steps).astype(np.float64)
    for at in LEVELS:
        noise = (1 - alpha_bars[at]) / alpha_bars[at]
        print(f"| {at} | {noise**0.5:.3f} | {noise:.5f} | {float(error(params, at)):.5f} |", flush=True)


def row(weights: str, seconds: float, step: int, batch_size: int, losses: tuple[float, float, float]) -> str:
    """A line of the table."""
    ar, own, other = losses
    rate = f"{step * batch_size / seconds:.1f}" if seconds else "-"
    cells = (weights, f"{seconds:.0f}", f"{step:,}", f"{step * batch_size:,}", rate)
    return f"| {' | '.join(cells)} | {ar:.3f} | {own:.4f} | {other:.4f} | {other / own:.2f} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--config", default="emoji_combined:long")
    parser.add_argument("--run", type=Path)
    args, flags = parser.parse_known_args()
    print(f"| {' | '.join(HEADINGS)} |\n{'|---' * len(HEADINGS)}|", flush=True)
    if args.run:
        pipeline = KaleidoPipeline.from_pretrained(args.run)
        config = pipeline.config
        model = build_model(config, open_codec(config).tokenizer.base_vocab_size)
        losses = held_out_losses(config, model, args.records)(pipeline.params)
        print(row("EMA", 0, pipeline.step, config.train.batch_size, losses))
        print_levels(config, model, pipeline.params, args.records)
        return

    config = config_from_flags(args.config, flags)
    model = build_model(config, open_codec(config).tokenizer.base_vocab_size)
    losses = held_out_losses(config, model, args.records)
    optimizer = make_optimizer(config.train)
    state, frozen, _ = create_state(config, model, optimizer, make_mesh({"data": 1, "fsdp": 1, "tensor": 1}))
    step = jax.jit(make_train_step(model, config, optimizer), donate_argnums=0)
    loader = batches(config, args.records / "train", config.train.batch_size)
    spent, marks = 0.0, [args.seconds * part / 4 for part in (1, 2, 3, 4)]
    state, _ = step(state, frozen, next(loader))  # compiles
    while marks:
        batch = next(loader)
        start = time.process_time()
        state, _ = jax.block_until_ready(step(state, frozen, batch))
        spent += time.process_time() - start
        if spent >= marks[0]:
            marks.pop(0)
            for name, params in (("raw", state.params), ("EMA", state.ema)):
                print(row(name, spent, int(state.step), config.train.batch_size, losses(params)), flush=True)


if __name__ == "__main__":
    main()
