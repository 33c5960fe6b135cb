"""export: the EMA of a workdir's latest checkpoint as a folder for inference."""

from pathlib import Path

from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.verbs.verb import Flag, say

HELP = "a run's latest checkpoint -> a folder for inference: config, weights, model card; needs no config"
FLAGS = (
    Flag(
        name="workdir",
        value="DIR",
        help="folder of the run",
        missing="name the folder of the run",
        kind=Path,
    ),
    Flag(name="output", value="DIR", help="a new folder", missing="name the folder to write", kind=Path),
    Flag(
        name="precision",
        value="DTYPE",
        help="float16 (the default), bfloat16 or float32, of the stored weights",
        words=("float16", "bfloat16", "float32"),
    ),
)


def run(workdir: Path, output: Path, precision: str | None) -> None:
    """Writes the folder, which `from_pretrained` and `sample --model` read."""
    check_backend()
    from kaleido_jax.export.folder import export_folder

    say(f"exported to {export_folder(workdir, output, precision or 'float16')}")
