"""Weights and network configs of ml-mdm (Matryoshka Diffusion Models) to and from ours.

Names map one to one, so importing walks our parameter tree and asks the file for each leaf under its other
name.
"""

import functools
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from kaleido_jax.config.schema import UNet, nested
from kaleido_jax.errors import user_error
from kaleido_jax.interop.t5.names import some
from kaleido_jax.models.kaleido import eval_init
from kaleido_jax.models.nested_unet import build_denoiser

INDEXED = re.compile(r"(lm_head|down_blocks|mid_blocks|up_blocks|resnets|attn)_(\d+)")
PARTS = {  # our part of a path -> ml-mdm's; None = no part of its own there
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
def from_mdm(state: Mapping[str, np.ndarray], config: UNet, text_channels: int) -> dict:
    """Our denoiser's parameters (float32 numpy) from ml-mdm's state dict.

    Args:
      state: name -> array as in ml-mdm's file, e.g. "inner_unet.conv_in.weight" (C, 3, 3, 3).
      config: the net that the file belongs to; see `config_from_mdm`.
      text_channels: width of the text states that the net reads.

    Raises:
      UserError: names that are missing or unknown, or an array of another shape.
    """
    return convert(state, denoiser_shapes(config, text_channels))


def to_mdm(params: dict, config: UNet) -> dict[str, np.ndarray]:
    """Inverse of `from_mdm`: ml-mdm's names and layouts.

    Raises:
      UserError: the parameters are not those of `config`.
    """
    flat = flatten_dict(params)
    state = {mdm_name(path): to_torch(path, np.asarray(leaf)) for path, leaf in flat.items()}
    check(_shapes(state), shapes_of(denoiser_shapes(config, _text_channels(flat))))
    return state


def convert(state: Mapping[str, np.ndarray], abstract: dict) -> dict:
    """`from_mdm` for any tree of our modules, given as shapes (a single block, for example)."""
    state = {name: value for name, value in state.items() if not UNUSED.search(name)}
    check(_shapes(state), shapes_of(abstract))
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

    def once(model, images):
        condition = model.condition(jnp.zeros((1, 1, text_channels)), jnp.ones((1, 1), bool))
        return model(images, jnp.zeros(1, jnp.int32), condition)

    return eval_init(functools.partial(model.init, method=once), images)["params"]


def named(abstract: dict) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """ml-mdm's name -> (path, our shape) of every leaf of a tree."""
    return {mdm_name(path): (path, leaf.shape) for path, leaf in flatten_dict(abstract).items()}


def shapes_of(abstract: dict) -> dict[str, tuple[int, ...]]:
    """ml-mdm's name -> its shape there, of every leaf of a tree of ours."""
    return {name: torch_shape(path, shape) for name, (path, shape) in named(abstract).items()}


def _shapes(state):
    return {name: tuple(value.shape) for name, value in state.items()}


def _text_channels(flat):
    widths = {path[-2]: leaf.shape[0] for path, leaf in flat.items() if path[-2] in ("lm_proj", "cond_emb")}
    return widths.get("lm_proj", widths.get("cond_emb", 1))


def check(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], what: str = "weights") -> None:
    """Compares names and shapes of tensors.

    Raises:
      UserError: names that are missing or unknown, or another shape; starts with `what`.
    """
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        lists = {"missing": missing, "unknown": unknown}
        told = [f"{len(names)} {kind} names ({some(names)})" for kind, names in lists.items() if names]
        raise user_error(
            f"{what} with {' and '.join(told)}", f"the {len(expected)} tensors of this net", "take weights of this net"
        )
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise user_error(f"{what}: {name} has shape {tuple(found[name])}", f"{shape}", "take weights of this net")


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


# ------------------------------------------------------------------------------------------- configs
REFUSED = {  # field -> the only value that our nets have
    "temporal_mode": (False, None),
    "skip_inner_unet_input": (False, None),
}


def config_from_mdm(values: Mapping, image_size: int) -> UNet:
    """Our config of a net from ml-mdm's, the fields of a UNet or NestedUNet, for images of `image_size` px.

    The outermost net's `conditioning_feature_dim` is no part of ours: it is the text_channels of `from_mdm`.
    Dropout is a matter of training and is not kept.

    Raises:
      UserError: a setting that our nets do not have.
    """
    channels = tuple(values["resolution_channels"])
    inner, resnet = values.get("inner_config"), values.get("resnet_config") or {}
    _check_supported(values, innermost=inner is None)
    return UNet(
        image_size=image_size,
        channels=channels,
        num_res_blocks=_per_level(values.get("num_resnets_per_resolution", 2), len(channels)),
        num_attn_layers=_attention_layers(values, len(channels)),
        attention_ffn=bool(resnet.get("use_attention_ffn", False)),
        mid_blocks=inner is None and not values.get("skip_mid_blocks", False),
        emb_channels=values.get("temporal_dim") or 4 * channels[0],
        num_groups=resnet.get("num_groups_norm", 32),
        text_proj_channels=max(0, values.get("conditioning_feature_proj_dim", -1)),
        num_text_layers=values.get("num_lm_head_layers", 0),
        masked_cross_attention=bool(values.get("masked_cross_attention", 1)),
        normalize_input=inner is not None and not values.get("skip_normalization", False),
        micro=_micro(values.get("micro_conditioning")),
        inner=None if inner is None else config_from_mdm(inner, image_size // 2 ** (len(channels) - 1)),
    )


def _check_supported(values, innermost):
    refused = dict(REFUSED)
    if innermost:
        refused["skip_cond_emb"] = (False, None)
    else:
        refused |= {"skip_mid_blocks": (True,), "skip_cond_emb": (True,), "num_lm_head_layers": (0, None)}
    for name, allowed in refused.items():
        value = values.get(name, allowed[0])
        if value not in allowed:
            where = "an innermost net" if innermost else "an outer net"
            raise user_error(f"{name} = {value!r} in {where}", f"{allowed[0]!r}", "this net has no import")


def _per_level(value, levels):
    value = tuple(value) if isinstance(value, list | tuple) else (value,)
    return value * levels if len(value) == 1 else value


def _attention_layers(values, levels):
    layers = _per_level(values.get("num_attention_layers", 1), levels)
    return tuple(n if i in values.get("attention_levels", (2, 3)) else 0 for i, n in enumerate(layers))


def _micro(text):
    if not text or text == "None":
        return ()
    return tuple((name, float(default)) for name, default in (entry.split(":") for entry in text.split(",")))
