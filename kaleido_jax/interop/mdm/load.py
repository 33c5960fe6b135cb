"""Loading of MDM's denoisers from any format.

The formats are ml-mdm's .pth, safetensors with its names, and our own safetensors, "denoiser/inner/conv_in/kernel", as
`convert` and `export` write them.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.config.schema import Diffusion, UNet
from kaleido_jax.errors import user_error
from kaleido_jax.interop.files.safetensors import PICKLES, Safetensors, is_pickle, is_safetensors
from kaleido_jax.interop.files.weights import open_torch
from kaleido_jax.interop.mdm import layout as mdm
from kaleido_jax.interop.source import Source
from kaleido_jax.runtime.files import read_json, refuse_lfs_pointer

PART = "denoiser"
CONFIG = "denoiser.json"
WHOLE_CONFIG = "config.json"  # of a run or an exported model
PARAMETRIZATION = ("prediction", "schedule", "num_steps")  # of config.diffusion: what inputs and outputs mean
ANOTHER = "name the weights of an MDM denoiser"


def holds_denoiser(path: Path) -> bool:
    """Whether `open_denoiser` can read a file or folder, by its first bytes or its tensors' names."""
    if path.is_file() and is_pickle(path):
        return True
    if not (is_safetensors(path) if path.is_file() else any(path.glob("*.safetensors"))):
        return False
    return any(name.startswith(f"{PART}/") or _is_mdm(name) for name in Safetensors(path).names)


def open_denoiser(path: Path) -> Source:
    """A denoiser's weights under ml-mdm's names and in its layouts; no tensor is read yet.

    Raises:
      UserError: nothing there, damaged, or without a denoiser.
    """
    if not path.exists():
        raise user_error(f"no weights at {path}", "a denoiser's .pth or safetensors", "correct the path")
    if path.is_dir() and not any(path.glob("*.safetensors")):
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
        raise user_error(
            f"{path} is a folder without safetensors", "a file", f"name {pickles[0] if pickles else 'one'}"
        )
    source = open_torch(path) if path.is_file() and is_pickle(path) else Safetensors(path)
    leaves = {tuple(n.split("/")[1:]): n for n in source.names if n.startswith(f"{PART}/")}
    if leaves:
        shapes = {path: source.shape(name) for path, name in leaves.items()}
        exported = any(name.startswith("encoder/") for name in source.names)
        settings = _of_export(source.path.parent) if exported else _of_converted(source.path.parent)
        return OurDenoiser(source.path, shapes, lambda leaf: source.read(leaves[leaf]), settings)
    if not any(_is_mdm(name) for name in source.names):
        first = f"its first tensor is {source.names[0]}" if source.names else "it has no tensor"
        raise user_error(f"{source.path} holds no MDM denoiser ({first})", "a conv_in.weight", ANOTHER)
    return source


def _is_mdm(name: str) -> bool:
    return name == "conv_in.weight" or name.endswith("inner_unet.conv_in.weight")


def settings_of(source: Source) -> dict[str, Any] | None:
    """The config of the net ("denoiser") and of its "diffusion" that is known beside the weights; None if none is.

    "assumed" in it names what was taken as released, since shapes do not show it.
    """
    return _of_converted(source.path.parent) if isinstance(source, Safetensors) else getattr(source, "settings", None)


def trained_settings(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings of a net that we trained, from the values in its config.json.

    Raises:
      UserError: they are not a config's; `path` names them.
    """
    try:
        stored, default = values["diffusion"], Diffusion()  # of a field younger than the run
        diffusion = {name: stored.get(name, getattr(default, name)) for name in PARAMETRIZATION}
        return {PART: _whole(values["model"][PART]), "diffusion": {"shift_power": stored["shift_power"]} | diffusion}
    except (KeyError, TypeError, AttributeError) as error:
        raise user_error(f"{path} is missing or damaged", "the config of a run", "name another run") from error


def _whole(net: Any) -> Any:
    """A stored net with the defaults of the fields that are younger than it, at every depth."""
    if not isinstance(net, dict):
        return net
    whole = json.loads(json.dumps(dataclasses.asdict(UNet()))) | net
    return whole | {"inner": _whole(whole["inner"])}


def _of_converted(folder: Path) -> dict[str, Any] | None:
    path = folder / CONFIG
    if not path.is_file():
        return None
    refuse_lfs_pointer(path)
    values = read_json(path, "what the verb convert wrote", "convert the weights again")
    return values | {PART: _whole(values[PART])} if PART in values else values


def _of_export(folder: Path) -> dict[str, Any]:
    """Of a whole exported model, whose shapes alone would be taken for a net of MDM's size and settings."""
    path = folder / WHOLE_CONFIG
    if not path.is_file():
        raise user_error(f"a model without {path}", "the folder as it was exported", "copy its config.json too")
    return trained_settings(read_json(path, "the config as exported", "export again"), path)


class OurDenoiser:
    """Our leaves under ml-mdm's names."""

    def __init__(
        self,
        path: Path,
        shapes: Mapping[tuple[str, ...], tuple[int, ...]],
        read: Callable[[tuple[str, ...]], np.ndarray],
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Takes leaves by their paths below the denoiser.

        Args:
          path: for messages.
          shapes: our shape of each leaf.
          read: gives a leaf.
          settings: the content of denoiser.json, with "denoiser" and "diffusion"; None if it is unknown.
        """
        self.path, self._shapes, self._read, self.settings = path, shapes, read, settings
        self._paths = {mdm.mdm_name(leaf): leaf for leaf in shapes}
        self.names = tuple(sorted(self._paths))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in ml-mdm's layout."""
        path = self._paths[name]
        return mdm.torch_shape(path, self._shapes[path])

    def read(self, name: str) -> np.ndarray:
        """One tensor in ml-mdm's layout."""
        return mdm.to_torch(self._paths[name], np.asarray(self._read(self._paths[name])))


def shapes_in(source: Source) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that ml-mdm reads."""
    return {name: source.shape(name) for name in source.names if not mdm.UNUSED.search(name)}
