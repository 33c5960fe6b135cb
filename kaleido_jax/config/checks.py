"""Checks across fields, which `build` calls with each group: impossible combinations are refused before compiling.

What concerns one field alone (type, range, words) is at the field, in schema.py. Nothing here imports JAX.
"""

from collections.abc import Mapping
from typing import Any

from kaleido_jax.config.fields import build, cross_check
from kaleido_jax.config.schema import (
    Annotate,
    Config,
    Data,
    Latents,
    Mesh,
    Model,
    PointNet,
    Sample,
    Train,
    UNet,
    micro_names,
    nested,
)
from kaleido_jax.errors import user_error
from kaleido_jax.latents import segments as registry
from kaleido_jax.latents.validity import HALF_TURN, MAX_COORDINATE

_OF_SCENES = ("emoji", "edits")  # protocols that know what is in the picture only where the data are scenes


def validate(config: Mapping[str, Any]) -> Config:
    """Checks a ConfigDict (or mapping) against the schema and returns it frozen.

    Raises:
      UserError: unknown key (with the nearest valid one), wrong type, value out of range or an impossible
        combination. Nothing has been compiled by then.
    """
    return build(Config, config)


# ------------------------------------------------------------------------------------------ the networks
@cross_check(UNet)
def _check_net(net: UNet, path: str) -> None:
    levels = len(net.channels)
    for name in ("num_res_blocks", "num_attn_layers"):
        if len(getattr(net, name)) != levels:
            raise user_error(
                f"config.{path}.{name} has {len(getattr(net, name))} entries",
                f"{levels}, one for each level of config.{path}.channels",
                "give one for each level",
            )
    if not levels:
        raise user_error(f"config.{path}.channels = ()", "the width of at least one level", "name it")
    multiple = net.patch * 2 ** (levels - 1)
    if net.image_size % multiple:
        raise user_error(
            f"config.{path}.image_size = {net.image_size}",
            f"a multiple of {multiple} for {levels} levels and patches of {net.patch} px",
            "change the size, the patch or the number of levels",
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
    if dict(net.micro).get("scale", 1.0) <= 0:  # values are divided by it
        raise user_error(f"config.{path}.micro has a scale of 0", "px of this net's images", "correct it")
    attention = [c for c, n in zip(net.channels, net.num_attn_layers, strict=True) if n]
    if net.inner is None and net.mid_blocks:
        attention.append(net.channels[-1])
    for width in attention:
        if width % 32:
            raise user_error(
                f"config.{path}.channels has {width} on a level with attention",
                "a multiple of 32, the groups of its norm",
                "widen that level",
            )


@cross_check(PointNet)
def _check_point_net(net: PointNet, path: str) -> None:
    if net.emb_channels % 8:
        raise user_error(f"config.{path}.emb_channels = {net.emb_channels}", "a multiple of 8", "correct it")


@cross_check(UNet)
def _check_nesting(outer: UNet, path: str) -> None:
    inner, levels = outer.inner, len(outer.channels)
    if inner is None:
        return
    ends = outer.patch * 2 ** (levels - 1)
    reached = outer.image_size // ends * inner.patch
    if reached != inner.image_size:
        raise user_error(
            f"config.{path}.inner.image_size = {inner.image_size}",
            f"{reached}, where the {levels} levels of config.{path} end ({outer.image_size} px / {ends})",
            "change the sizes or the number of outer levels",
        )
    if outer.emb_channels != inner.emb_channels:
        raise user_error(
            f"config.{path}.emb_channels = {outer.emb_channels}",
            f"{inner.emb_channels} as in the inner net, since the pooled text is shared",
            "make them equal",
        )


@cross_check(Model)
def _check_fused_attention(model: Model, path: str) -> None:
    nets = (model.t5, *(nested(model.denoiser) if model.denoiser else ()))
    fused = any(net.attention == "fused" for net in nets)
    if fused and model.precision == "float32":
        raise user_error(
            f'config.{path}.precision = "float32" with attention = "fused"',
            "half precision, which its kernels want",
            f'set config.{path}.precision to "bfloat16", or attention to "plain"',
        )


@cross_check(Model)
def _check_text_layers(model: Model, path: str) -> None:
    innermost = nested(model.denoiser)[-1] if model.denoiser else None
    if innermost and innermost.num_text_layers and (width := innermost.text_proj_channels or model.t5.d_model) % 8:
        raise user_error(
            f"text of width {width} for config.{path}.denoiser's num_text_layers",
            "a multiple of 8, the heads of these layers",
            "change the innermost net's text_proj_channels, or without one t5.d_model",
        )


@cross_check(Config)
def _check_parts(config: Config, path: str) -> None:
    del path
    model = config.model
    if (model.denoiser is None) == (model.point_denoiser is None):
        raise user_error(
            "config.model.denoiser and config.model.point_denoiser",
            "exactly one of them set",
            "set the other to None",
        )
    names = micro_names(model)
    for name, _ in config.sample.micro:
        if name not in names:
            raise user_error(
                f"config.sample.micro has {name!r}",
                f"micro conditions of config.model.denoiser ({', '.join(names) or 'it has none'})",
                "leave it out",
            )
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


@cross_check(Config)
def _check_protocol(config: Config, path: str) -> None:
    del path
    protocol, source = config.eval.protocol, config.data.source
    if protocol in _OF_SCENES and source not in ("emoji", "records"):
        raise user_error(
            f"config.eval.protocol = {protocol!r} with config.data.source = {source!r}",
            "the scenes of emoji, which this protocol reads",
            "set config.eval.protocol to 'none'",
        )
    if protocol in _OF_SCENES and config.model.denoiser is None:
        found = f"config.eval.protocol = {protocol!r} with a model of points"
        raise user_error(found, "a model of images", "set config.eval.protocol to 'none'")
    if protocol == "edits" and (lacking := [name for name in ("text", "bbox") if name not in config.latents.segments]):
        found = f"config.eval.protocol = 'edits' with config.latents.segments without {' and '.join(lacking)}"
        raise user_error(found, "both, which it edits", "set config.eval.protocol to 'emoji'")


# --------------------------------------------------------------------------------- training and sampling
@cross_check(Config)
def _check_batches(config: Config, path: str) -> None:
    del path
    train, buckets = config.train, config.data.length_buckets
    if train.batch_size % train.accumulate:
        raise user_error(
            f"config.train.accumulate = {train.accumulate}",
            f"a divisor of config.train.batch_size = {train.batch_size}",
            "change one of them",
        )
    if train.scheduled_sampling and train.logits_chunk:
        raise user_error(
            "config.train.logits_chunk with scheduled_sampling, which draws from all logits",
            "one of them",
            "set config.train.logits_chunk to 0",
        )
    if list(buckets) != sorted({*buckets}):
        raise user_error(f"config.data.length_buckets = {buckets}", "ascending lengths", "correct it")
    denoiser = config.model.denoiser
    if buckets and denoiser is not None and not nested(denoiser)[-1].masked_cross_attention:
        raise user_error(
            f"config.data.length_buckets = {buckets} for a net with masked_cross_attention = False",
            "one length of z, since padding is a part of such a net",
            "set config.data.length_buckets to ()",
        )
    if config.eval.every_steps and config.eval.grid and config.data.class_captions:
        raise user_error(
            "config.eval.grid while training with config.data.class_captions, whose encoder is then gone",
            "one of them",
            "set config.eval.grid to False",
        )
    if len(train.profile_steps) not in (0, 2):
        raise user_error(f"config.train.profile_steps = {train.profile_steps}", "(first, number) or ()", "correct it")
    unknown = [part for part, _ in train.clip_part_norms if part not in ("encoder", "prior", "denoiser")]
    if unknown:
        raise user_error(
            f"config.train.clip_part_norms has {unknown[0]!r}", "encoder, prior or denoiser", "correct the name"
        )


@cross_check(Config)
def _check_training(config: Config, path: str) -> None:
    del path
    heads = len(nested(config.model.denoiser)) if config.model.denoiser else 1
    if len(config.diffusion.loss_weights) not in (0, heads):
        raise user_error(
            f"config.diffusion.loss_weights has {len(config.diffusion.loss_weights)} entries",
            f"{heads}, one for each resolution of config.model.denoiser",
            "give one weight for each, high to low",
        )
    ratio = config.train.mixed_ratio
    if ratio and (len(ratio) != heads or not ratio[0] or ratio[0] * config.train.batch_size < sum(ratio)):
        raise user_error(
            f"config.train.mixed_ratio = {ratio}",
            f"{heads} numbers from 0, one for each resolution, whose first leaves a row of the batch",
            "give one for each, high to low",
        )
    train = config.train
    rows = train.batch_size // train.accumulate  # of a part; each resolution's share of it must be whole
    if train.accumulate > 1 and any(rows * sum(ratio[: r + 1]) % sum(ratio) for r in range(len(ratio))):
        raise user_error(
            f"config.train.accumulate = {train.accumulate} with mixed_ratio = {ratio}",
            "parts of the batch that the ratio divides evenly",
            "change the batch size or one of them",
        )
    steps = max(config.sample.num_steps, config.eval.num_steps)
    if steps > config.diffusion.num_steps:
        raise user_error(
            f"{steps} sampling steps",
            f"at most config.diffusion.num_steps = {config.diffusion.num_steps}",
            "lower config.sample.num_steps and config.eval.num_steps",
        )


@cross_check(Train)
def _check_averages(train: Train, path: str) -> None:
    for name in ("adam_b1", "adam_b2", "ema_decay"):
        if getattr(train, name) == 1:  # Adam would divide by 1 - 1, and the EMA stay at the first weights
            found = f"config.{path}.{name} = 1.0, an average that never moves"
            raise user_error(found, "less than 1", "lower it")
    if train.ema_every_steps > train.num_steps:
        found = f"config.{path}.ema_every_steps = {train.ema_every_steps}, an EMA that never moves"
        raise user_error(found, f"at most {path}.num_steps = {train.num_steps}", "lower it")
    if len({*train.ema_profiles}) < len(train.ema_profiles):
        raise user_error(f"config.{path}.ema_profiles = {train.ema_profiles}", "different widths", "name each once")
    if train.ema_snapshot_every_steps and not train.ema_profiles:
        raise user_error(
            f"config.{path}.ema_snapshot_every_steps without averages to write",
            f"config.{path}.ema_profiles",
            "set them, e.g. to (0.05, 0.1)",
        )


@cross_check(Sample)
def _check_guidance(sample: Sample, path: str) -> None:
    interval, (low, high) = sample.guidance_interval, sample.cads_tau
    if len(interval) not in (0, 2) or (interval and interval[0] >= interval[1]):
        raise user_error(
            f"config.{path}.guidance_interval = {interval}", "() or (low, high) with 0 <= low < high", "correct it"
        )
    if low > high:
        raise user_error(f"config.{path}.cads_tau = {(low, high)}", "two shares from 0 to 1 in order", "correct it")
    if sample.guidance == "autoguidance" and not (sample.autoguidance_step or sample.autoguidance_workdir):
        raise user_error(
            f"config.{path}.guidance = 'autoguidance' without a worse model",
            f"config.{path}.autoguidance_step, or autoguidance_workdir with an exported folder",
            "set it to the step of an early checkpoint",
        )


def check_worse_model(config: Config) -> None:
    """Checks that a training keeps the checkpoint that is autoguidance's worse model until its end.

    Raises:
      UserError: that step is not written, or is deleted before training ends.
    """
    sample, train = config.sample, config.train
    if sample.guidance != "autoguidance" or sample.autoguidance_workdir is not None:
        return
    step, every, last = sample.autoguidance_step, train.checkpoint_every_steps, train.num_steps
    later = last // every - step // every + (last % every > 0)  # checkpoints after it
    kept = later < train.keep_checkpoints or (train.keep_every_steps and step % train.keep_every_steps == 0)
    if step != last and (step > last or step % every or not kept):
        raise user_error(
            f"config.sample.autoguidance_step = {step}, of which there is no checkpoint when training ends",
            f"a multiple of config.train.checkpoint_every_steps = {every} that is kept, up to {last}",
            f"correct it, or set config.train.keep_every_steps to it (now {train.keep_every_steps})",
        )


# ------------------------------------------------------------------------------- latents and annotation
def _check_segments(segments: tuple[str, ...], path: str) -> None:
    known = registry.names()
    in_order = tuple(s for s in known if s in segments)
    for segment in segments:
        if segment not in known:
            raise user_error(f"config.{path} has {segment!r}", f"segments from {known}", "correct the name")
    if segments != in_order:
        raise user_error(f"config.{path} = {segments}", f"{in_order}, once each in this order", "reorder them")


@cross_check(Data)
def _check_data(data: Data, path: str) -> None:
    if data.in_memory and data.num_workers:
        found = f"config.{path}.in_memory and {path}.num_workers = {data.num_workers}"
        raise user_error(found, "one of them, since each process would keep all records", "unset the other")


@cross_check(Latents)
def _check_latents(latents: Latents, path: str) -> None:
    _check_segments(latents.segments, f"{path}.segments")
    if MAX_COORDINATE % latents.coordinate_step or HALF_TURN % latents.coordinate_step:
        found = f"config.{path}.coordinate_step = {latents.coordinate_step}"
        raise user_error(found, f"a divisor of {MAX_COORDINATE} and of {HALF_TURN} degrees", "use e.g. 10")
    needed = 2 * latents.vokens_per_image  # the vokens, "#" between them, and eos
    if "voken" in latents.segments and needed > latents.max_latents_tokens:
        raise user_error(
            f"config.{path}.max_latents_tokens = {latents.max_latents_tokens}",
            f"at least {needed} for config.{path}.vokens_per_image = {latents.vokens_per_image}",
            "raise it",
        )


@cross_check(Annotate)
def _check_annotate(annotate: Annotate, path: str) -> None:
    _check_segments(annotate.segments, f"{path}.segments")
    _check_segments(annotate.required, f"{path}.required")
    wanted = [s for s in (*annotate.required, *(s for s, _ in annotate.worker_gpus)) if s not in annotate.segments]
    if wanted:
        raise user_error(
            f"config.{path} names {wanted[0]!r} in required or worker_gpus",
            f"one of config.{path}.segments = {annotate.segments}",
            "add it there",
        )
    if not annotate.segments:
        raise user_error(f"config.{path}.segments = ()", "at least one segment", "name one")


@cross_check(Annotate)
def _check_vision_models(annotate: Annotate, path: str) -> None:
    url = annotate.endpoint.base_url
    if url is not None and not url.startswith(("http://", "https://")):
        raise user_error(
            f"config.{path}.endpoint.base_url = {url!r}", "http://... or https://...", "write it with its scheme"
        )
    for segment, group in (("text", annotate.text), ("bbox", annotate.bbox)):
        if group.kind == "openai" and not (url and (group.model or annotate.endpoint.model)):
            raise user_error(
                f"config.{path}.{segment}.kind = 'openai' without a server",
                f"config.{path}.endpoint.base_url and config.{path}.endpoint.model",
                "set both",
            )
        if group.kind == "transformers" and not group.model:
            raise user_error(
                f"config.{path}.{segment}.kind = 'transformers' without weights",
                f"config.{path}.{segment}.model",
                "set it to the model's folder",
            )
    bbox = annotate.bbox
    if bbox.kind in ("openai", "transformers") and bbox.coordinates == "pixels" and bbox.image_size % 28:
        raise user_error(
            f"config.{path}.bbox.image_size = {bbox.image_size} with coordinates in pixels",
            "a multiple of 28, which Qwen2.5-VL does not resize before it measures",
            f"use {max(28, round(bbox.image_size / 28) * 28)}",
        )


# ------------------------------------------------------------------------------------------- the machine
def check_devices(config: Config, num_devices: int) -> None:
    """Checks what depends on the machine: the mesh fits the devices, and the batch divides over them.

    Raises:
      UserError: the sizes do not fit.
    """
    sizes = mesh_sizes(config.mesh, num_devices)
    shards = sizes["data"] * sizes["fsdp"] * config.train.accumulate
    if config.train.batch_size % shards:
        parts = " x config.train.accumulate" if config.train.accumulate > 1 else ""
        raise user_error(
            f"config.train.batch_size = {config.train.batch_size}",
            f"a multiple of {shards}, the devices over which samples are split (mesh data x fsdp){parts}",
            f"use {max(1, config.train.batch_size // shards) * shards} or change config.mesh",
        )


@cross_check(Mesh)
def _check_axes(mesh: Mesh, path: str) -> None:
    for name, size in _axes(mesh).items():
        if not size:
            raise user_error(f"config.{path}.{name} = 0", "at least 1, or -1 for all remaining devices", "correct it")
    known, rules = dict(Mesh().rules), dict(mesh.rules)
    if wrong := sorted(known.keys() ^ rules.keys()):
        found = f"config.{path}.rules {'without' if wrong[0] in known else 'with'} {wrong[0]!r}"
        raise user_error(found, f"one for each of {', '.join(known)}", "correct it")
    for name, axes in rules.items():
        if wrong := [axis for axis in axes.split("+") if axes and axis not in _axes(mesh)]:
            found = f"config.{path}.rules has ({name!r}, {axes!r})"
            raise user_error(found, "data, fsdp and tensor, joined by +", f"correct {wrong[0]!r}")
        if len({*axes.split("+")}) < len(axes.split("+")):
            raise user_error(f"config.{path}.rules has ({name!r}, {axes!r})", "each axis once", "leave one out")


def _axes(mesh: Mesh) -> dict[str, int]:
    return {"data": mesh.data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}


def mesh_sizes(mesh: Mesh, num_devices: int) -> dict[str, int]:
    """Axis name -> size, with the one -1 filled in.

    Raises:
      UserError: the product is not the number of devices.
    """
    sizes = _axes(mesh)
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
