"""Conversion of MDM's denoisers between ml-mdm's names and layouts and ours."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.config.checks import validate
from kaleido_jax.config.schema import UNet, nested
from kaleido_jax.errors import user_error
from kaleido_jax.interop.files.safetensors import write_safetensors
from kaleido_jax.interop.mdm import layout as mdm
from kaleido_jax.interop.mdm.load import CONFIG, PART, settings_of, shapes_in
from kaleido_jax.interop.mdm.sizes import assumed, read_sizes, shift_power
from kaleido_jax.interop.source import Source, read_weight
from kaleido_jax.runtime.files import new_folder

RELEASED = {64: (713, 461_359_107), 256: (889, 476_613_958), 1024: (1063, 480_970_057)}  # px: tensors, parameters


def convert_denoiser(source: Source, output: Path, form: str) -> str:
    """Writes a denoiser as a new folder: model.safetensors (float32), and denoiser.json with its config.

    Args:
      source: from `open_denoiser`.
      output: folder that does not exist or is empty.
      form: "kaleido" (our names and layouts) or "mdm" (ml-mdm's, for torch).

    Returns:
      A description of the weights.

    Raises:
      UserError: a tensor is missing, unknown, damaged or of another shape; the output exists.
    """
    config, text_channels = read_sizes(source)
    settings = settings_of(source)
    if settings is not None:
        config = _stored_config(settings, source.path)
    leaves = mdm.named(mdm.denoiser_shapes(config, text_channels))
    mdm.check_denoiser(
        shapes_in(source), {n: mdm.torch_shape(p, shape) for n, (p, shape) in leaves.items()}, str(source.path)
    )
    counts = (len(leaves), sum(math.prod(shape) for _, shape in leaves.values()))

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, (path, shape) in leaves.items():
            array = read_weight(source, name)
            if form == "mdm":
                yield name, np.asarray(array, np.float32)
            else:
                yield "/".join((PART, *path)), mdm.from_torch(array, shape)

    with new_folder(output, "--output") as folder:
        write_safetensors(tensors(), folder)
        values = {
            "denoiser": dataclasses.asdict(config),
            "text_channels": text_channels,
            "diffusion": settings["diffusion"] if settings else {"shift_power": shift_power(config)},
            "assumed": settings.get("assumed", {}) if settings else assumed(config),
        }
        (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    released = next((px for px, found in RELEASED.items() if found == counts), None)
    size = nested(config)[0].image_size
    kind = f"MDM's {released} px model (configs/mdm_{released}.py)" if released else f"a net of {size} px"
    return f"{counts[0]} tensors, {counts[1]:,} parameters: {kind}"


def _stored_config(settings: dict[str, Any], path: Path) -> UNet:
    try:
        return validate({"model": {PART: settings["denoiser"]}, "diffusion": settings["diffusion"]}).model.denoiser
    except (KeyError, TypeError, AttributeError) as error:
        raise user_error(
            f"the config beside {path} is damaged", "the net and its diffusion", "make it again"
        ) from error
