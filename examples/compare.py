"""The paper's figure 3 with pictures: which of a caption's modes two models draw as gamma grows.

    python examples/compare.py --kaleido=MODEL --baseline=MODEL --out=DIR [--gammas 1 4 8] [--caption=bird] ...

A model is a workdir, an exported folder, or the name of a bundled model, trained on the emoji scenes. Writes
DIR/compare.png. The verb `evaluate --sweep` measures such models.
"""

import argparse
import sys
from pathlib import Path

from kaleido_jax.data.sources.emoji import KINDS
from kaleido_jax.errors import UserError
from kaleido_jax.evaluate.compare import compare
from kaleido_jax.main import start_logging
from kaleido_jax.runtime.files import make_folder
from kaleido_jax.runtime.xla_flags import keep_memory, set_cpu_flag
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.verbs.verb import say


def main(argv: list[str]) -> None:
    """Parses the flags and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kaleido", help="the model with latents")
    parser.add_argument("--baseline", help="the model without")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--gammas", type=float, nargs="+", help="guidance weights")
    parser.add_argument("--caption", default=KINDS[0], choices=KINDS, help="of the picture")
    parser.add_argument("--sampler", help="instead of the models' own")
    parser.add_argument("--num_steps", type=int, help="reverse steps, instead of the models' own")
    parser.add_argument(
        "--guidance_interval", type=float, nargs="*", help="LOW HIGH, or nothing for all of it, instead of their own"
    )
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(argv)
    chosen = {"baseline": flags.baseline, "Kaleido": flags.kaleido}
    if not any(chosen.values()):
        parser.error("name --kaleido, --baseline or both")
    set_cpu_flag()  # before jax starts its backend
    keep_memory()
    start_logging()
    models = {name: KaleidoPipeline.from_pretrained(path) for name, path in chosen.items() if path}
    given = {name: getattr(flags, name) for name in ("gammas", "sampler", "num_steps", "guidance_interval")}
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None}
    settings |= {"seed": flags.seed, "caption": flags.caption}
    folder = make_folder(flags.out.expanduser(), "--out")
    say(f"picture: {compare(models, folder, **settings)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"compare: error: {error}")
