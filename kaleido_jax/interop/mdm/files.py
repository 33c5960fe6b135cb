"""MDM's denoisers in files: opened whatever the format is, sized by their tensors' shapes, and converted.

Formats are ml-mdm's .pth, safetensors with ml-mdm's names, and our own safetensors, "denoiser/inner/conv_in/kernel".
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from kaleido_jax.config.checks import validate
from kaleido_jax.config.schema import UNet, nested
from kaleido_jax.errors import user_error
from kaleido_jax.interop.files.torch_zip import TorchZip
from kaleido_jax.interop.mdm import names as mdm
from kaleido_jax.interop.t5.huggingface import PICKLES, Safetensors, is_pickle, write_safetensors
from kaleido_jax.interop.t5.names import Source
from kaleido_jax.models.unet import NUM_HEADS
from kaleido_jax.runtime.files import new_folder

PART = "denoiser"
CONFIG = "denoiser.json"
FORMATS = ("kaleido", "mdm")
INNERMOST_PX, MOST_PX = 64, 4096
RELEASED = {64: (713, 461_359_107), 256: (889, 476_613_958), 1024: (1063, 480_970_057)}  # px: tensors, parameters
ANOTHER = "name the weights of an MDM denoiser"


# --------------------------------------------------------------------------------------------- opening
def holds_denoiser(path: Path) -> bool:
    """Whether a file or folder is one for `open_denoiser`, by its first bytes or its tensors' names."""
    if path.is_file() and is_pickle(path):
        return True
    if path.suffix != ".safetensors" and not (path.is_dir() and any(path.glob("*.safetensors"))):
        return False
    return any(name.startswith(f"{PART}/") or _is_mdm(name) for name in Safetensors(path).names)


def open_denoiser(path: Path) -> Source:
    """A denoiser's weights under ml-mdm's names and in its layouts; no tensor is read yet.

    Raises:
      UserError: nothing there, damage, or no denoiser inside.
    """
    if not path.exists():
        raise user_error(f"no weights at {path}", "a denoiser's .pth or safetensors", "correct the path")
    if path.is_dir() and not any(path.glob("*.safetensors")):
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
        raise user_error(
            f"{path} is a folder without safetensors", "a file", f"name {pickles[0] if pickles else 'one'}"
        )
    source = TorchZip(path) if path.is_file() and is_pickle(path) else Safetensors(path)
    leaves = {tuple(n.split("/")[1:]): n for n in source.names if n.startswith(f"{PART}/")}
    if leaves:
        shapes = {path: source.shape(name) for path, name in leaves.items()}
        return OurDenoiser(source.path, shapes, lambda leaf: source.read(leaves[leaf]), _settings(source.path.parent))
    if not any(_is_mdm(name) for name in source.names):
        raise user_error(
            f"{source.path} holds no MDM denoiser (its first tensor is {source.names[0]})", "a conv_in.weight", ANOTHER
        )
    return source


def _is_mdm(name):
    return name == "conv_in.weight" or name.endswith("inner_unet.conv_in.weight")


def _settings(folder):
    path = folder / CONFIG
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except ValueError as error:
        raise user_error(f"{path} is damaged", "what `convert` wrote", "convert the weights again") from error


class OurDenoiser:
    """Our leaves under ml-mdm's names."""

    def __init__(self, path: Path, shapes: Mapping[tuple, tuple], read: Callable[[tuple], np.ndarray], settings=None):
        """Takes leaves by their paths below the denoiser.

        Args:
          path: for messages.
          shapes: our shape of each leaf.
          read: gives a leaf.
          settings: what denoiser.json says, with "denoiser" and "diffusion"; None where it is not known.
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
    """Name -> shape of all that ml-mdm reads."""
    return {name: source.shape(name) for name in source.names if not mdm.UNUSED.search(name)}


# ---------------------------------------------------------------------------------------------- sizes
def read_sizes(source: Source) -> tuple[UNet, int]:
    """(config, width of the text states) of a denoiser, from its shapes.

    What shapes do not tell is taken as ml-mdm released it; `assumed` lists it.

    Raises:
      UserError: a tensor that tells a size is missing or strange, or the sizes are none that our nets have.
    """
    shapes = shapes_in(source)
    prefixes = [""]
    while any(name.startswith(prefixes[-1] + "inner_unet.") for name in shapes):
        prefixes.append(prefixes[-1] + "inner_unet.")
    inner, size = None, INNERMOST_PX
    for depth, prefix in reversed(list(enumerate(prefixes))):
        net = _Shapes(source.path, prefix, _below(prefix, shapes))
        levels = net.count("down_blocks.{}.resnets.0.conv1.weight")
        size = size if inner is None else size * 2 ** max(levels - 1, 0)
        if not levels or size > MOST_PX:
            raise user_error(f"{source.path}: {prefix}down_blocks of {levels} levels", f"up to {MOST_PX} px", ANOTHER)
        # The 256 px net alone reads its input as it is; inside the 1024 px net it divides it by its deviation.
        inner = _net(net, levels, size, inner, normalize_input=inner is not None and depth > 0)
    # Fields that need another net than ours are refused in the schema's words.
    validate({"model": {PART: dataclasses.asdict(inner)}})
    text = _Shapes(source.path, prefixes[-1], _below(prefixes[-1], shapes))
    if text.size("cond_emb.weight", 1) % NUM_HEADS:
        raise user_error(f"{source.path}: text of width {text.size('cond_emb.weight', 1)}", "a multiple of 8", ANOTHER)
    return inner, text.size("lm_proj.weight" if nested(inner)[-1].text_proj_channels else "cond_emb.weight", 1)


def _below(prefix, shapes):
    """One net's own tensors, without those of the net inside it."""
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    return {name: shape for name, shape in own.items() if not name.startswith("inner_unet.")}


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """Shapes of one net of the nest."""

    path: Path
    prefix: str
    shapes: dict

    def size(self, name, axis):
        shape = self.shapes.get(name, ())
        if len(shape) <= axis or shape[axis] < 1:
            raise user_error(f"{self.path}: {self.prefix}{name} of shape {shape}", "an MDM denoiser's", ANOTHER)
        return shape[axis]

    def count(self, pattern):
        number = 0
        while pattern.format(number) in self.shapes:
            number += 1
        return number


def _net(net, levels, image_size, inner, normalize_input):
    channels = tuple(net.size(f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels))
    blocks = tuple(net.count(f"down_blocks.{i}.resnets.{{}}.conv1.weight") for i in range(levels))
    attention = tuple(net.count(f"down_blocks.{i}.attn.{{}}.qkv.weight") for i in range(levels))
    micros = sorted({name.split(".")[1] for name in net.shapes if name.startswith("cond_layers.")})
    return UNet(
        image_size=image_size,
        channels=channels,
        num_res_blocks=blocks,
        num_attn_layers=tuple(a // b for a, b in zip(attention, blocks, strict=True)),
        attention_ffn=any(".ffn." in name for name in net.shapes),
        mid_blocks="mid_blocks.0.resnets.0.conv1.weight" in net.shapes,
        emb_channels=net.size("temb_layer2.weight", 0),
        num_groups=math.gcd(32, *channels),
        text_proj_channels=net.size("lm_proj.weight", 0) if "lm_proj.weight" in net.shapes else 0,
        num_text_layers=net.count("lm_head.{}.attn.qkv.weight"),
        masked_cross_attention=False,
        normalize_input=normalize_input,
        micro=tuple((name, float(image_size) if name == "scale" else 0.0) for name in micros),
        inner=inner,
    )


def shift_power(config: UNet) -> float:
    """Of `diffusion.shift_power`: 2 in the released model of three nets, else 1."""
    return 2.0 if len(nested(config)) > 2 else 1.0


def assumed(config: UNet) -> dict[str, str]:
    """Config field -> value and reason, of all that shapes do not tell."""
    nets = nested(config)
    normalized = [net.image_size for net in nets if net.normalize_input]
    return {
        "image_size": f"{nets[-1].image_size} px in the innermost net",
        "num_groups": f"{', '.join(str(net.num_groups) for net in nets)}: 32 or what divides the widths",
        "masked_cross_attention": "False",
        "normalize_input": f"True in the {normalized[0]} px net" if normalized else "False",
        "micro": f"defaults {', '.join(f'{n}:{v:g}' for net in nets for n, v in net.micro) or 'none'}",
        "diffusion.shift_power": f"{shift_power(config):g}",
    }


# ------------------------------------------------------------------------------------------ converting
def convert(source: Source, output: Path, form: str) -> str:
    """Writes a denoiser as a new folder: model.safetensors (float32), and denoiser.json with its config.

    Args:
      source: from `open_denoiser`.
      output: folder that does not exist or is empty.
      form: "kaleido" (our names and layouts) or "mdm" (ml-mdm's, for torch).

    Returns:
      What it is, for people.

    Raises:
      UserError: a tensor is missing, unknown, damaged or of another shape; the output exists.
    """
    config, text_channels = read_sizes(source)
    settings = getattr(source, "settings", None)
    if settings is not None:
        config = _stored_config(settings, source.path)
    leaves = mdm.named(mdm.denoiser_shapes(config, text_channels))
    mdm.check(shapes_in(source), {n: mdm.torch_shape(p, shape) for n, (p, shape) in leaves.items()}, str(source.path))
    counts = (len(leaves), sum(math.prod(shape) for _, shape in leaves.values()))

    def tensors():
        for name, (path, shape) in leaves.items():
            array = source.read(name)
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


def _stored_config(settings, path):
    try:
        return validate({"model": {PART: settings["denoiser"]}, "diffusion": settings["diffusion"]}).model.denoiser
    except (KeyError, TypeError, AttributeError) as error:
        raise user_error(
            f"the config beside {path} is damaged", "the net and its diffusion", "make it again"
        ) from error
