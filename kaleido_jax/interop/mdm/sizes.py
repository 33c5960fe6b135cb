"""Sizes of MDM's denoisers, read from the shapes of their tensors."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from kaleido_jax.config.checks import validate
from kaleido_jax.config.schema import UNet, nested
from kaleido_jax.errors import user_error
from kaleido_jax.interop.mdm.load import ANOTHER, PART, shapes_in
from kaleido_jax.interop.source import Source
from kaleido_jax.models.unet import NUM_HEADS

INNERMOST_PX, MOST_PX = 64, 4096


def read_sizes(source: Source) -> tuple[UNet, int]:
    """(config, width of the text states) of a denoiser, from its shapes.

    Settings that shapes do not show are those of ml-mdm's release; `assumed` lists them.

    Raises:
      UserError: a tensor that shows a size is missing or strange, or our nets cannot have these sizes.
    """
    shapes = shapes_in(source)
    prefixes = [""]
    while any(name.startswith(prefixes[-1] + "inner_unet.") for name in shapes):
        prefixes.append(prefixes[-1] + "inner_unet.")
    inner, size = None, INNERMOST_PX
    for depth, prefix in reversed(list(enumerate(prefixes))):
        net = _Shapes(source.path, prefix, _below(prefix, shapes))
        levels = net.count("down_blocks.{}.resnets.0.conv1.weight")
        patch = math.isqrt(net.size("conv_in.weight", 1) // 3)  # 1 in ml-mdm's own files
        size = size if inner is None else size * patch * 2 ** max(levels - 1, 0)
        if not levels or size > MOST_PX:
            raise user_error(f"{source.path}: {prefix}down_blocks of {levels} levels", f"up to {MOST_PX} px", ANOTHER)
        # The 256 px net alone reads its input as it is; inside the 1024 px net it divides it by its deviation.
        inner = _net(net, levels, size, patch, inner, normalize_input=inner is not None and depth > 0)
    # Sizes that our nets cannot have are refused with the schema's message.
    validate({"model": {PART: dataclasses.asdict(inner)}})
    text = _Shapes(source.path, prefixes[-1], _below(prefixes[-1], shapes))
    if text.size("cond_emb.weight", 1) % NUM_HEADS:
        raise user_error(f"{source.path}: text of width {text.size('cond_emb.weight', 1)}", "a multiple of 8", ANOTHER)
    return inner, text.size("lm_proj.weight" if nested(inner)[-1].text_proj_channels else "cond_emb.weight", 1)


def _below(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """One net's own tensors, without those of the net inside it."""
    own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    return {name: shape for name, shape in own.items() if not name.startswith("inner_unet.")}


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """Shapes of one net of the nest."""

    path: Path
    prefix: str
    shapes: dict[str, tuple[int, ...]]

    def size(self, name: str, axis: int) -> int:
        shape = self.shapes.get(name, ())
        if len(shape) <= axis or shape[axis] < 1:
            raise user_error(f"{self.path}: {self.prefix}{name} of shape {shape}", "an MDM denoiser's", ANOTHER)
        return shape[axis]

    def count(self, pattern: str) -> int:
        number = 0
        while pattern.format(number) in self.shapes:
            number += 1
        return number


def _net(net: _Shapes, levels: int, image_size: int, patch: int, inner: UNet | None, normalize_input: bool) -> UNet:
    channels = tuple(net.size(f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels))
    blocks = tuple(net.count(f"down_blocks.{i}.resnets.{{}}.conv1.weight") for i in range(levels))
    attention = tuple(net.count(f"down_blocks.{i}.attn.{{}}.qkv.weight") for i in range(levels))
    micros = sorted({name.split(".")[1] for name in net.shapes if name.startswith("cond_layers.")})
    return UNet(
        image_size=image_size,
        patch=patch,
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
    """Config field -> value and reason, for all settings that shapes do not show."""
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
