"""What storing an exported model in float16 or bfloat16 costs: bytes, held-out losses, and pixels of the same recipes.

python -m benchmarks.export_precision --records=DIR --model=WORKDIR_OR_NAME [--model=...] [--results=FILE]

DIR holds the records of a run (its workdir's records/, with the split test). Each model is exported in every precision
and read again. Losses are means over 512 held-out scenes with the same noise and times. Pictures have the captions,
seeds and z of those of the float32 export; "same z" is the share of captions for which the prior samples the same z as
there.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.emoji_recipe import held_out_losses  # first: it sets XLA's flags

import numpy as np  # isort: skip

from benchmarks.tables import described, table
from kaleido_jax.config.codec import open_codec
from kaleido_jax.data.sources.emoji import KINDS
from kaleido_jax.export.folder import PRECISIONS, export_folder
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.runtime import checkpoints
from kaleido_jax.sampling.output import pixels_of
from kaleido_jax.sampling.pipeline import KaleidoPipeline, find_model

COLUMNS = (
    ("model", "model", "{}"),
    ("weights", "precision", "{}"),
    ("folder, MB", "megabytes", "{:.2f}"),
    ("L_AR", "ar", "{:.5f}"),
    ("L_DM", "dm", "{:.6f}"),
    ("same z", "same_z", "{:.1%}"),
    ("pixels changed", "changed", "{:.2%}"),
    ("mean difference, of 255", "mean", "{:.4f}"),
    ("95 % of images below", "mean_95", "{:.3f}"),
    ("largest difference", "largest", "{}"),
)


def megabytes(path: Path) -> float:
    """Size of a file or of all files below a folder, 1e6 bytes."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6


def measure(model: str, records: Path, number: int) -> list[dict[str, Any]]:
    """One row of the table for each precision."""
    rows, captions, reference = [], [KINDS[i % len(KINDS)] for i in range(number)], None
    losses = None
    with tempfile.TemporaryDirectory() as temporary:
        for precision in PRECISIONS:  # float32 first
            folder = export_folder(model, Path(temporary) / precision, precision)
            pipeline = KaleidoPipeline.from_pretrained(folder)
            config = pipeline.config
            if losses is None:
                network = build_model(config, open_codec(config).tokenizer.base_vocab_size)
                losses = held_out_losses(config, network, records)
            ar, dm, _ = losses(pipeline.params)
            sample = pipeline.override({"grammar": True})
            z = [one.spelled(pipeline.codec) for one in pipeline.sample_latents(captions, seed=0, sample=sample)]
            reference_z = z if reference is None else reference[0]
            pixels = pixels_of(pipeline.sample_images(captions, reference_z, seed=0, sample=sample)).astype(int)
            reference = reference or (z, pixels)
            difference = np.abs(pixels - reference[1])
            rows.append(
                {"model": f"{config.name}, step {pipeline.step:,}", "precision": precision, "ar": ar, "dm": dm}
                | {"megabytes": megabytes(folder), "changed": (difference > 0).mean(), "mean": difference.mean()}
                | {"mean_95": np.quantile(difference.mean((1, 2, 3)), 0.95), "largest": difference.max()}
                | {"same_z": np.mean([a == b for a, b in zip(z, reference[0], strict=True)])}
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Prints the table, and writes it to --results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True, help="a workdir, or the name of a bundled model")
    parser.add_argument("--number", type=int, default=200, help="of pictures")
    parser.add_argument("--results", type=Path, help="a Markdown file to write")
    given = parser.parse_args()
    rows, sizes = [], []
    for model in given.model:
        rows += measure(model, given.records, given.number)
        if steps := checkpoints.steps_of(folder := find_model(model)):
            size = megabytes(folder / checkpoints.FOLDER / str(steps[-1]))
            sizes.append(f"- one checkpoint of {rows[-1]['model']}: {size:.1f} MB")
    text = "\n".join(
        [
            "# Loss of storing the weights in half precision\n",
            *table(COLUMNS, rows),
            f"\n{given.number} pictures of the ten kinds, by the config's sampler and guidance.\n",
            *sizes,
            described("jax"),
        ]
    )
    print(text)
    if given.results:
        given.results.write_text(text + "\n")


if __name__ == "__main__":
    main()
