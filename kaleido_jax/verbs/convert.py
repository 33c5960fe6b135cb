"""convert: T5 or MDM weights, or a trained run's, into another format."""

from pathlib import Path

from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.verbs.verb import OUTPUT, Flag, say

HELP = "T5 or MDM weights, or those of a run, into another format; needs no config"
FORMATS = ("t5x", "huggingface", "kaleido", "mdm")
FLAGS = (
    Flag(
        name="input",
        value="PATH",
        help="T5 as t5x or safetensors; MDM's vis_model.pth, its or our safetensors; or a workdir, of which the EMA is "
        "taken, or an exported folder (encoder and prior for t5x and huggingface, else the denoiser). No code in a "
        ".pth is run",
        missing="name a T5 checkpoint or a denoiser's weights",
        kind=Path,
    ),
    OUTPUT,
    Flag(
        name="format",
        value="FORMAT",
        help="t5x or huggingface (T5), mdm (denoisers, for torch) or kaleido (ours, both)",
        missing="name the format to write",
        words=FORMATS,
    ),
)


def run(input: Path, output: Path, format: str) -> None:
    """Writes a T5 checkpoint or a denoiser as a new folder; sizes are read from the tensors.

    From a workdir or an exported folder, "t5x" and "huggingface" take encoder and prior, the others the denoiser.
    """
    check_backend()
    from kaleido_jax.interop import workdir
    from kaleido_jax.interop.mdm.convert import convert_denoiser
    from kaleido_jax.interop.mdm.load import holds_denoiser, open_denoiser
    from kaleido_jax.interop.t5.convert import convert_t5

    trained = (input / "checkpoints").is_dir()
    if format == "mdm" or (format == "kaleido" and (trained or holds_denoiser(input))):
        weights = workdir.trained_denoiser(input) if trained else open_denoiser(input)
        say(f"{output}: {convert_denoiser(weights, output, format)}, from {weights.path} as {format}")
    else:
        read = convert_t5(workdir.trained_t5(input) if trained else input, output, format)
        say(f"{output}: {len(read.names)} tensors of {read.path} as {format}")
