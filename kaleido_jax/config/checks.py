"""What makes a config a valid one: keys, types, choices, ranges and combinations, told before anything compiles.

This module imports no jax, so that the command line starts fast.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping

from kaleido_jax.config.schema import Config, Mesh, nested
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents import segments as registry

CHOICES = {
    "recipe": ("train", "figure3"),
    "model.precision": ("bfloat16", "float32"),
    "diffusion.schedule": ("squared_cosine", "cosine", "linear"),
    "diffusion.prediction": ("v", "eps", "x0"),
    "diffusion.loss_space": ("v", "eps", "x0"),
    "data.source": ("fashion", "records", "coco", "gbc", "table", "folder"),
    "annotate.engine": ("local", "ray"),
    "data.verify": ("full", "size"),
    "annotate.endpoint.image_format": ("jpeg", "png"),
    "annotate.endpoint.limit_field": ("max_tokens", "max_completion_tokens"),
    "annotate.text.kind": ("labels", "openai", "transformers"),
    "annotate.text.instruction": ("caption", "label"),
    "annotate.bbox.kind": ("labels", "openai", "transformers", "onnx"),
    "annotate.bbox.instruction": ("json", "caption"),
    "annotate.bbox.coordinates": ("thousandths", "pixels"),
    "annotate.blob.kind": ("labels", "sam", "onnx"),
    "annotate.voken.kind": ("quantizer", "seed"),
    "annotate.voken.quantizer": ("residual", "fsq"),
    "annotate.voken.feature": ("appearance", "pixels", "autoencoder", "onnx", "transformers"),
    "train.lr_schedule": ("constant", "cosine"),
    "sample.sampler": ("ddpm", "ddim", "dpmpp_2m", "heun"),
    "sample.guidance": ("cfg", "cads", "apg", "autoguidance"),
    "sample.threshold": ("none", "clip", "dynamic", "dynamic_capped"),
    "eval.protocol": ("none", "quickstart"),
}


def validate(config: Mapping) -> Config:
    """Checks a ConfigDict (or mapping) against the schema and returns it frozen.

    Raises:
      UserError: unknown key (with the nearest valid one), wrong type, value out of range or an impossible
        combination. Nothing has been compiled by then.
    """
    checked = _build(Config, config, "")
    _check_choices(checked)
    _check_ranges(checked)
    _check_combination(checked)
    return checked


def _build(schema, values, path):
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        raise user_error(f"config.{path} = {values!r}", "a group of fields", "set its fields one by one")
    fields = {f.name: f for f in dataclasses.fields(schema)}
    hints = typing.get_type_hints(schema)
    for key in dict(values.items()):
        if key not in fields:
            raise unknown_key(path, key, fields)
    built = {k: _convert(hints[k], v, f"{path}.{k}".lstrip(".")) for k, v in dict(values.items()).items()}
    return schema(**built)


def unknown_key(path: str, key: str, known) -> UserError:
    """The error for a key the schema does not have, with the nearest one."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    dotted = ".".join(part for part in (path, key) if part)
    if near:
        suggestion = ".".join(part for part in (path, near[0]) if part)
        return user_error(f"unknown config key '{dotted}'", f"'{suggestion}'", "correct the key")
    return user_error(f"unknown config key '{dotted}'", f"one of {', '.join(known)}", "correct the key")


def _convert(hint, value, path):
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    if typing.get_origin(hint) is typing.Literal:
        return _choice(value, typing.get_args(hint), path)
    if typing.get_origin(hint) is tuple:
        return _convert_tuple(hint, value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise user_error(
            f"config.{path} = {value!r} ({type(value).__name__})", hint.__name__, "change the value's type"
        )
    return value


def _convert_tuple(hint, value, path):
    if not isinstance(value, tuple | list):
        raise user_error(f"config.{path} = {value!r}", "a tuple", "write it as (a, b, ...)")
    args = typing.get_args(hint)
    if args[-1] is Ellipsis:
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if len(value) != len(args):
        raise user_error(f"config.{path} has {len(value)} entries", f"{len(args)}", "correct the tuple")
    return tuple(_convert(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(args, value, strict=True)))


# ------------------------------------------------------------------------------------------- the checks
def lookup(config, path: str):
    """The value at a dotted path of a config."""
    for part in path.split("."):
        config = getattr(config, part)
    return config


def _check_choices(config):
    for path, allowed in CHOICES.items():
        _choice(lookup(config, path), allowed, path)


def _choice(value, allowed, path):
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        do = f"did you mean '{near[0]}'?" if near else "choose one"
        raise user_error(f"config.{path} = {value!r}", f"one of {', '.join(allowed)}", do)
    return value


AT_LEAST = {
    "diffusion.num_steps": 2,
    "latents.max_latents_tokens": 2,
    "latents.vokens_per_image": 1,
    "data.fashion.num_train": 1,
    "data.fashion.num_test": 1,
    "data.max_caption_tokens": 2,
    "annotate.shard_size": 1,
    "annotate.batch_size": 1,
    "annotate.image_size": 0,
    "annotate.limit": 0,
    "annotate.num_workers": 0,
    "annotate.worker_cpus": 0,
    "annotate.report_samples": 0,
    "annotate.voken.fit_examples": 1,
    "annotate.endpoint.concurrency": 1,
    "annotate.endpoint.retries": 0,
    "annotate.endpoint.requests_per_minute": 0,
    "annotate.endpoint.price_in": 0,
    "annotate.endpoint.price_out": 0,
    "annotate.endpoint.max_answer_bytes": 1024,
    "annotate.text.image_size": 28,
    "annotate.text.batch_size": 1,
    "annotate.bbox.image_size": 28,
    "annotate.bbox.batch_size": 1,
    "annotate.bbox.max_boxes": 1,
    "train.batch_size": 1,
    "train.num_steps": 1,
    "train.log_every_steps": 1,
    "train.checkpoint_every_steps": 1,
    "train.keep_checkpoints": 1,
    "train.warmup_steps": 0,
    "train.learning_rate": 0,
    "train.eta": 0,
    "train.clip_norm": 0,
    "sample.images_per_caption": 1,
    "sample.num_steps": 1,
    "sample.cads_noise": 0,
    "sample.apg_threshold": 0,
    "sample.autoguidance_step": 0,
    "sample.temperature": 0,
    "sample.top_k": 0,
    "eval.num_samples": 1,
    "eval.num_steps": 1,
    "eval.classifier_steps": 1,
}
SHARE = (
    "annotate.bbox.threshold",
    "diffusion.p_uncond",
    "train.scheduled_sampling",
    "train.adam_b1",
    "train.adam_b2",
    "train.ema_decay",
    "sample.ddim_eta",
    "sample.cads_mix",
    "sample.apg_eta",
    "sample.top_p",
)


def _check_ranges(config):
    for path, least in AT_LEAST.items():
        if lookup(config, path) < least:
            raise user_error(f"config.{path} = {lookup(config, path)}", f"at least {least}", "raise it")
    for path in SHARE:
        if not 0 <= lookup(config, path) <= 1:
            raise user_error(f"config.{path} = {lookup(config, path)}", "a number from 0 to 1", "correct it")
    if max(config.sample.num_steps, config.eval.num_steps) > config.diffusion.num_steps:
        raise user_error(
            f"{max(config.sample.num_steps, config.eval.num_steps)} sampling steps",
            f"at most config.diffusion.num_steps = {config.diffusion.num_steps}",
            "lower config.sample.num_steps and config.eval.num_steps",
        )


def _check_combination(config):
    model = config.model
    if (model.denoiser is None) == (model.point_denoiser is None):
        raise user_error(
            "config.model.denoiser and config.model.point_denoiser",
            "exactly one of them set",
            "set the other to None",
        )
    if config.recipe == "figure3" and model.point_denoiser is None:
        raise user_error("config.recipe = 'figure3' without points", "config.model.point_denoiser", "set it")
    if config.init.inner is not None and (model.denoiser is None or model.denoiser.inner is None):
        raise user_error(
            "config.init.inner without an inner net", "a nested config.model.denoiser", "set config.init.inner to None"
        )
    if config.data.class_captions and model.t5.encoder.trainable:
        raise user_error(
            "config.data.class_captions with a trainable encoder",
            "config.model.t5.encoder.trainable = False",
            "freeze the encoder or leave the captions empty",
        )
    _check_segments(config.latents.segments, "latents.segments")
    _check_annotate(config.annotate)
    nets = nested(model.denoiser) if model.denoiser else ()
    for depth, net in enumerate(nets):
        _check_net(net, "model.denoiser" + ".inner" * depth, innermost=depth == len(nets) - 1)
    for (depth, outer), inner in zip(enumerate(nets), nets[1:], strict=False):
        _check_nesting(outer, inner, "model.denoiser" + ".inner" * depth)
    heads = max(1, len(nets))
    if len(config.diffusion.loss_weights) not in (0, heads):
        raise user_error(
            f"config.diffusion.loss_weights has {len(config.diffusion.loss_weights)} entries",
            f"{heads}, one a resolution of config.model.denoiser",
            "give one weight for each, high to low",
        )
    _check_mixed_ratio(config.train, heads)
    _check_guidance(config.sample)
    _check_vision_models(config.annotate)


def _check_mixed_ratio(train, heads):
    ratio = train.mixed_ratio
    if not ratio:
        return
    if len(ratio) != heads or min(ratio) < 0 or ratio[0] * train.batch_size < sum(ratio):
        raise user_error(
            f"config.train.mixed_ratio = {ratio}",
            f"{heads} numbers from 0, one a resolution, whose first leaves a row of config.train.batch_size",
            "give one for each, high to low",
        )


def _check_guidance(sample):
    interval, (low, high) = sample.guidance_interval, sample.cads_tau
    if len(interval) not in (0, 2) or (interval and not 0 <= interval[0] < interval[1]):
        raise user_error(
            f"config.sample.guidance_interval = {interval}", "() or (low, high) with 0 <= low < high", "correct it"
        )
    if not 0 <= low <= high <= 1:
        raise user_error(f"config.sample.cads_tau = {(low, high)}", "two shares from 0 to 1 in order", "correct it")
    if not -1 < sample.apg_momentum < 1:
        raise user_error(
            f"config.sample.apg_momentum = {sample.apg_momentum}", "a number between -1 and 1", "correct it"
        )
    if sample.guidance == "autoguidance" and not sample.autoguidance_step:
        raise user_error(
            "config.sample.guidance = 'autoguidance' without a checkpoint",
            "config.sample.autoguidance_step",
            "set it to the step of an early checkpoint",
        )


def _check_vision_models(annotate):
    url = annotate.endpoint.base_url
    if url is not None and not url.startswith(("http://", "https://")):
        raise user_error(
            f"config.annotate.endpoint.base_url = {url!r}", "http://... or https://...", "write it with its scheme"
        )
    if annotate.endpoint.timeout_s <= 0:
        raise user_error(
            f"config.annotate.endpoint.timeout_s = {annotate.endpoint.timeout_s}", "more than 0 seconds", "raise it"
        )
    for segment in ("text", "bbox"):
        group = getattr(annotate, segment)
        if group.kind == "openai" and not (url and (group.model or annotate.endpoint.model)):
            raise user_error(
                f"config.annotate.{segment}.kind = 'openai' without a server",
                "config.annotate.endpoint.base_url and config.annotate.endpoint.model",
                "set both",
            )
        if group.kind == "transformers" and not group.model:
            raise user_error(
                f"config.annotate.{segment}.kind = 'transformers' without weights",
                f"config.annotate.{segment}.model",
                "set it to the model's folder",
            )
    bbox = annotate.bbox
    if bbox.kind in ("openai", "transformers") and bbox.coordinates == "pixels" and bbox.image_size % 28:
        raise user_error(
            f"config.annotate.bbox.image_size = {bbox.image_size} with coordinates in pixels",
            "a multiple of 28, which Qwen2.5-VL does not resize before it measures",
            f"use {max(28, round(bbox.image_size / 28) * 28)}",
        )


def _check_annotate(annotate):
    _check_segments(annotate.segments, "annotate.segments")
    _check_segments(annotate.required, "annotate.required")
    wanted = [s for s in (*annotate.required, *(s for s, _ in annotate.worker_gpus)) if s not in annotate.segments]
    if wanted:
        raise user_error(
            f"config.annotate names {wanted[0]!r} in required or worker_gpus",
            f"one of config.annotate.segments = {annotate.segments}",
            "add it there",
        )
    if not annotate.segments:
        raise user_error("config.annotate.segments = ()", "at least one segment", "name one")


def _check_segments(segments, path):
    known = registry.names()
    in_order = tuple(s for s in known if s in segments)
    for segment in segments:
        if segment not in known:
            raise user_error(f"config.{path} has {segment!r}", f"segments from {known}", "correct the name")
    if segments != in_order:
        raise user_error(f"config.{path} = {segments}", f"{in_order}, once each in this order", "reorder them")


def _check_net(net, path, innermost):
    levels = len(net.channels)
    for name in ("num_res_blocks", "num_attn_layers"):
        if len(getattr(net, name)) != levels:
            raise user_error(
                f"config.{path}.{name} has {len(getattr(net, name))} entries",
                f"{levels}, one a level of config.{path}.channels",
                "give one for each level",
            )
    if net.image_size % 2 ** (levels - 1):
        raise user_error(
            f"config.{path}.image_size = {net.image_size}",
            f"a multiple of {2 ** (levels - 1)} for {levels} levels",
            "change the size or the number of levels",
        )
    if net.emb_channels % 8:
        raise user_error(f"config.{path}.emb_channels = {net.emb_channels}", "a multiple of 8", "correct it")
    for width in net.channels:
        if width % net.num_groups:
            raise user_error(
                f"config.{path}.channels has {width}",
                f"multiples of config.{path}.num_groups = {net.num_groups}",
                "change one of them",
            )
    attention = [c for c, n in zip(net.channels, net.num_attn_layers, strict=True) if n]
    if innermost and net.mid_blocks:
        attention.append(net.channels[-1])
    for width in attention:
        if width % 32:
            raise user_error(
                f"config.{path}.channels has {width} on a level with attention",
                "a multiple of 32, the groups of its norm",
                "widen that level",
            )


def _check_nesting(outer, inner, path):
    reached = outer.image_size // 2 ** (len(outer.channels) - 1)
    if reached != inner.image_size:
        raise user_error(
            f"config.{path}.inner.image_size = {inner.image_size}",
            f"{reached}, where the {len(outer.channels)} levels of config.{path} end ({outer.image_size} px / "
            f"{2 ** (len(outer.channels) - 1)})",
            "change the sizes or the number of outer levels",
        )
    if outer.emb_channels != inner.emb_channels:
        raise user_error(
            f"config.{path}.emb_channels = {outer.emb_channels}",
            f"{inner.emb_channels} as in the inner net, since the pooled text is shared",
            "make them equal",
        )


def check_devices(config: Config, num_devices: int) -> None:
    """Checks what depends on the machine: the mesh fits the devices, the batch divides over them.

    Raises:
      UserError: sizes that do not fit.
    """
    sizes = mesh_sizes(config.mesh, num_devices)
    shards = sizes["data"] * sizes["fsdp"]
    if config.train.batch_size % shards:
        raise user_error(
            f"config.train.batch_size = {config.train.batch_size}",
            f"a multiple of {shards}, the devices over which samples are split (mesh data x fsdp)",
            f"use {max(1, config.train.batch_size // shards) * shards} or change config.mesh",
        )


def mesh_sizes(mesh: Mesh, num_devices: int) -> dict[str, int]:
    """Axis name -> size, with the one -1 filled in.

    Raises:
      UserError: the product is not the number of devices.
    """
    sizes = dataclasses.asdict(mesh)
    free = [name for name, size in sizes.items() if size == -1]
    fixed = 1
    for size in sizes.values():
        fixed *= size if size != -1 else 1
    if len(free) > 1 or fixed < 1 or (free and num_devices % fixed) or (not free and fixed != num_devices):
        raise user_error(
            f"config.mesh = {sizes}", f"axis sizes whose product is {num_devices} devices (one may be -1)", "correct it"
        )
    for name in free:
        sizes[name] = num_devices // fixed
    return sizes
