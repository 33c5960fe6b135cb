"""ml-mdm's own configs, as its reference files hold them, turned into ours, and our parameters turned into its."""

import functools

import numpy as np
from flax.traverse_util import flatten_dict

from kaleido_jax.config.schema import UNet
from kaleido_jax.errors import user_error
from kaleido_jax.interop.mdm import layout as mdm

REFUSED = {  # field -> the only value that our nets have
    "temporal_mode": (False, None),
    "skip_inner_unet_input": (False, None),
}


def config_from_mdm(values, image_size):
    """Our config of a net from ml-mdm's, the fields of a UNet or NestedUNet, for images of `image_size` px.

    The outermost net's `conditioning_feature_dim` is no part of ours: it is the text_channels of `denoiser_from_mdm`.
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


def denoiser_to_mdm(params, config):
    """Inverse of `denoiser_from_mdm`: ml-mdm's names and layouts, after a check that they are those of the config."""
    flat = flatten_dict(params)
    state = {mdm.mdm_name(path): mdm.to_torch(path, np.asarray(leaf)) for path, leaf in flat.items()}
    widths = {path[-2]: leaf.shape[0] for path, leaf in flat.items() if path[-2] in ("lm_proj", "cond_emb")}
    text_channels = widths.get("lm_proj", widths.get("cond_emb", 1))
    found = {name: value.shape for name, value in state.items()}
    mdm.check_denoiser(found, _expected(config, text_channels), "weights")
    return state


@functools.cache
def _expected(config, text_channels):
    return mdm.shapes_of(mdm.denoiser_shapes(config, text_channels))
