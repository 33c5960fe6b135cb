"""Layout of ml-mdm's denoisers (Matryoshka Diffusion Models): its names and shapes of our parameters, both ways.

Names map one to one, so importing walks our parameter tree and reads each leaf under its other name.
"""

import functools
import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from kaleido_jax.config.schema import UNet, nested
from kaleido_jax.interop.source import check_tensors
from kaleido_jax.models.kaleido import eval_init
from kaleido_jax.models.nested_unet import build_denoiser

INDEXED = re.compile(r"(lm_head|down_blocks|mid_blocks|up_blocks|resnets|attn)_(\d+)")
PARTS = {  # our part of a path -> ml-mdm's; None = ml-mdm has no such part
    "outer": None,
    "text_path": None,
    "inner": "inner_unet",
    "attn_norm": "attn.norm",
    "attn_qkv": "attn.qkv",
    "attn_proj_out": "attn.proj_out",
    "mlp_norm": "mlp.main.0",
    "mlp_in": "mlp.main.1",
    "mlp_out": "mlp.main.3",
    "ffn_norm": "ffn.0",
    "ffn_in": "ffn.1",
    "ffn_out": "ffn.3",
    "kernel": "weight",
    "scale": "weight",
}
POINTWISE = ("qkv", "proj_out", "ffn_in", "ffn_out")  # 1x1 convolutions there, dense layers here
UNUSED = re.compile(r"(^|\.)interp_layer[12]\.")  # stored with interp_conditioning, never read


# ------------------------------------------------------------------------------------------- weights
def denoiser_from_mdm(state: Mapping[str, np.ndarray], config: UNet, text_channels: int) -> dict:
    """Our denoiser's parameters (float32 numpy) from ml-mdm's state dict.

    Args:
      state: name -> array as in ml-mdm's file, e.g. "inner_unet.conv_in.weight" (C, 3, 3, 3).
      config: the net that the file belongs to; its sizes are in `interop.mdm.sizes`.
      text_channels: width of the text states that the net reads.

    Raises:
      UserError: names that are missing or unknown, or an array of another shape.
    """
    return params_from_mdm(state, denoiser_shapes(config, text_channels))


def params_from_mdm(state: Mapping[str, np.ndarray], abstract: dict) -> dict:
    """`denoiser_from_mdm` for any tree of our modules, given as shapes (a single block, for example)."""
    state = {name: value for name, value in state.items() if not UNUSED.search(name)}
    check_denoiser(_shapes(state), shapes_of(abstract), "weights")
    return unflatten_dict(
        {path: from_torch(np.asarray(state[name]), shape) for name, (path, shape) in named(abstract).items()}
    )


def mdm_name(path: tuple[str, ...]) -> str:
    """ml-mdm's name of the parameter at a path of our tree."""
    parts = [PARTS.get(part, INDEXED.sub(r"\1.\2", part)) for part in path]
    name = ".".join(part for part in parts if part is not None)
    name = re.sub(r"temb\.time\.layer([12])", r"temb_layer\1", name)
    return re.sub(r"temb\.micro_(\w+)\.layer([12])", lambda m: f"cond_layers.{m[1]}.{int(m[2]) - 1}", name)


def denoiser_shapes(config: UNet, text_channels: int) -> dict:
    """Shapes of a denoiser's parameters, without making any."""
    model = build_denoiser(config, text_channels)
    images = [jax.ShapeDtypeStruct((1, net.image_size, net.image_size, 3), jnp.float32) for net in nested(config)]

    def once(model: nn.Module, images: list) -> list:
        condition = model.condition(jnp.zeros((1, 1, text_channels)), jnp.ones((1, 1), bool))
        return model(images, jnp.zeros(1, jnp.int32), condition)

    return eval_init(functools.partial(model.init, method=once), images)["params"]


def named(abstract: dict) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """ml-mdm's name -> (path, our shape) of every leaf of a tree."""
    return {mdm_name(path): (path, leaf.shape) for path, leaf in flatten_dict(abstract).items()}


def shapes_of(abstract: dict) -> dict[str, tuple[int, ...]]:
    """ml-mdm's name -> its shape there, of every leaf of a tree of ours."""
    return {name: torch_shape(path, shape) for name, (path, shape) in named(abstract).items()}


def _shapes(state: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def check_denoiser(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """`check_tensors` of a denoiser.

    Raises:
      UserError: missing or unknown names, or another shape; it starts with `what`.
    """
    check_tensors(found, expected, what, "this net", "take weights of this net")


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in ml-mdm of a leaf of ours: OIHW convolutions, [out, in] matrices."""
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    if len(shape) == 2:
        return shape[::-1] + ((1, 1) if path[-2] in POINTWISE else ())
    return tuple(shape)


def from_torch(array: np.ndarray, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """A tensor of ml-mdm in our layout, float32; `shape` is ours."""
    array = array.transpose(2, 3, 1, 0) if len(shape) == 4 else array
    array = array.reshape(array.shape[:2]).T if len(shape) == 2 else array
    return np.ascontiguousarray(array, np.float32)


def to_torch(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """Inverse of `from_torch` for the leaf at a path."""
    transposed = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return np.ascontiguousarray(transposed.reshape(torch_shape(path, array.shape)))
