"""The config schema: every field once, with its unit or reason, and the checks that run before any compile.

`default_config()` gives the ml_collections form that config files edit; `validate()` turns it into frozen
dataclasses. This module imports no jax, so that every room may know it and the command line starts fast.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field

from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents.types import SEGMENTS


@dataclass(frozen=True, kw_only=True)
class T5Encoder:
    """The caption side of T5."""

    trainable: bool = False  # frozen in the paper; True only where no pretrained T5 of this size exists


@dataclass(frozen=True, kw_only=True)
class T5:
    """T5 v1.1 sizes; defaults are XL's."""

    vocabulary: str = "t5"  # "t5", "fashion" or the path of a sentencepiece model
    checkpoint: str | None = None  # weights to start from; None = fresh (only sensible with a trainable encoder)
    d_model: int = 2048  # width of the residual stream
    d_ff: int = 5120  # width of each GEGLU branch
    num_heads: int = 32
    head_dim: int = 64
    num_encoder_layers: int = 24
    num_decoder_layers: int = 24
    remat: str = "none"  # "none", "full" (keep layer inputs only) or "dots" (keep matmul outputs)
    encoder: T5Encoder = field(default_factory=T5Encoder)


@dataclass(frozen=True, kw_only=True)
class UNet:
    """One net of the nest; `inner` is the net in its middle, None for the innermost (MDM, spec of the network)."""

    image_size: int = 64  # px, side of the square image this net draws
    channels: tuple[int, ...] = (256, 512, 768)  # width of each level, highest resolution first
    num_res_blocks: tuple[int, ...] = (2, 2, 2)  # residual blocks of each level on the way down
    num_attn_layers: tuple[int, ...] = (0, 1, 5)  # attention blocks after each residual block; 0 = level without text
    attention_ffn: bool = True  # feed-forward part in every attention block
    mid_blocks: bool = True  # middle blocks of the innermost net; outer nets have the inner net instead
    emb_channels: int = 1024  # width E of the time embedding; the same at every depth
    num_groups: int = 32  # groups of the norms in residual blocks (attention norms always have 32)
    text_proj_channels: int = 0  # width D' the text is projected to; 0 = no projection. Innermost only
    num_text_layers: int = 0  # self-attention layers over the text before use. Innermost only
    masked_cross_attention: bool = True  # hide padding from attention over text
    normalise_input: bool = False  # divide the noisy input by its own standard deviation; outer nets only
    micro: tuple[tuple[str, float], ...] = ()  # micro conditions as (name, default), e.g. (("scale", 64.0),)
    remat: bool = False  # recompute residual and attention blocks in the backward pass
    inner: "UNet | None" = None


@dataclass(frozen=True, kw_only=True)
class PointNet:
    """A residual MLP for data that are points, not images (figure 3 of the paper)."""

    dim: int = 2  # coordinates of a point
    width: int = 128  # hidden channels
    num_layers: int = 3  # residual layers
    emb_channels: int = 64  # width of the time embedding


@dataclass(frozen=True, kw_only=True)
class Model:
    """Both networks. Exactly one of `denoiser` and `point_denoiser` is set."""

    t5: T5 = field(default_factory=T5)
    denoiser: UNet | None = field(default_factory=UNet)
    point_denoiser: PointNet | None = None
    precision: str = "bfloat16"  # compute dtype, "bfloat16" or "float32"; parameters are always float32


@dataclass(frozen=True, kw_only=True)
class Init:
    """What a fresh run starts from, besides config.model.t5.checkpoint; a resumed run does not read it."""

    inner: str | None = None  # weights of denoiser.inner: a run's workdir, MDM's .pth, or safetensors


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The noise process (MDM)."""

    schedule: str = "squared_cosine"  # or "cosine" (logSNR +-5), "linear"
    num_steps: int = 1000  # N of the discrete schedule
    prediction: str = "v"  # what the network outputs: "v", "eps" or "x0"
    loss_space: str = "eps"  # space in which the squared error is taken
    shift_power: float = 1.0  # SNR of a resolution s times the innermost is divided by s**shift_power
    loss_weights: tuple[float, ...] = ()  # per resolution, high to low; () = 1 for each
    vdm_weights: bool = False  # weigh samples by VDM's SNR[k-1] / SNR[k] - 1 instead of alike
    p_uncond: float = 0.1  # share of samples whose (c, z) are dropped together, for guidance


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Which latents z the model has. No segments = the MDM baseline, without a prior."""

    segments: tuple[str, ...] = ("text", "bbox", "voken")
    max_tokens: int = 416  # bucket length of z in tokens, eos included
    num_vokens: int = 8192  # rows appended to the token table, one a codebook entry
    vokens_per_image: int = 32  # length of the voken segment


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where images, captions and latents come from."""

    source: str = "records"  # "fashion" (shipped), "records" (annotated already), or "coco", "gbc", "table", "folder"
    root: str | None = None  # folder of the data that `annotate` reads
    split: str = ""  # the part of it, as the data calls it, e.g. "val2017"; "" = all
    labels: tuple[str, ...] = ()  # files of labels below root; () = where the data set has them by custom
    images: str = ""  # folder of the images below root; "" = where the data set has them by custom
    columns: tuple[str, str, str] = ("image", "caption", "description")  # of a table; the last may be absent
    licenses: tuple[int, ...] = ()  # coco: ids of the photos' licences to keep; () = all
    records: str | None = None  # folder with manifest.json, or with one for each split; None = the workdir's
    num_train: int = 20_000  # training records made from a shipped source
    num_test: int = 2_000  # held-out records made from a shipped source
    caption_tokens: int = 128  # bucket length of c in tokens, eos included
    class_captions: tuple[str, ...] = ()  # every caption there is, where few: a frozen encoder then runs once on each
    verify: str = "full"  # record shards are checked by "full" (sha256) or "size" when opened
    fetch: str = ""  # what to say when the records are missing: where to get the data


@dataclass(frozen=True, kw_only=True)
class AnnotateEndpoint:
    """An OpenAI-compatible server with a vision-language model; who asks names it by kind = "openai"."""

    base_url: str | None = None  # e.g. "http://localhost:8000/v1"
    model: str | None = None  # as the server calls it
    api_key_variable: str | None = None  # environment variable that holds the key; None = the server wants none
    concurrency: int = 32  # requests under way at once, of each process
    timeout_s: float = 120.0  # for one request, from connecting to the answer's last byte
    retries: int = 5  # further tries after a failure or an unusable answer
    requests_per_minute: float = 0.0  # of each process; 0 = no limit
    price_in: float = 0.0  # per million tokens read, images included; for the cost in the log
    price_out: float = 0.0  # per million tokens written
    max_answer_bytes: int = 1_000_000  # of a whole response; what is longer is not read to its end
    image_format: str = "jpeg"  # "jpeg" (quality 95) or "png" (lossless, about four times the bytes)
    limit_field: str = "max_tokens"  # how the server calls the limit of an answer, or "max_completion_tokens"
    sampling: bool = True  # send temperature and seed; some hosted models refuse requests that have them


@dataclass(frozen=True, kw_only=True)
class AnnotateText:
    """Who writes the text segment."""

    kind: str = "labels"  # "labels" (a description or caption that the data has), "openai" or "transformers"
    model: str | None = None  # folder of weights of a local model; openai: another model than the endpoint's
    instruction: str = "caption"  # what the model is told of the image: its "caption" or its class "label"
    image_size: int = 448  # px, side of the picture that the model is shown
    batch_size: int = 8  # images of one pass of a local model


@dataclass(frozen=True, kw_only=True)
class AnnotateBbox:
    """Who finds the boxes."""

    kind: str = "labels"  # "labels" (boxes that the data has), "openai", "transformers" or "onnx" (YOLOX)
    model: str | None = None  # folder or file of weights of a local model; openai: another than the endpoint's
    instruction: str = "json"  # "json" (Qwen2.5-VL and newer) or "caption" (a grounded caption, Qwen-VL)
    coordinates: str = "thousandths"  # in which a model answers: "thousandths" or "pixels" (Qwen2.5-VL)
    image_size: int = 448  # px, side of the picture that a vision-language model is shown; pixels: a multiple of 28
    batch_size: int = 8  # images of one pass of a local model
    max_boxes: int = 10  # of an image: the first named, the surest found by onnx; of labels, also ellipses, the largest
    threshold: float = 0.3  # onnx: least score of a box, objectness times class, 0..1


@dataclass(frozen=True, kw_only=True)
class AnnotateBlob:
    """Who finds the masks that become ellipses."""

    kind: str = "labels"  # "labels" (masks that the data has), "sam" or "onnx", the last two within each box
    model: str | None = None  # folder or file of weights of a local model


@dataclass(frozen=True, kw_only=True)
class AnnotateVoken:
    """Who writes the visual tokens."""

    kind: str = "quantiser"  # "quantiser" (ours, fitted on the data) or "seed" (the paper's)
    model: str | None = None  # seed: folder of weights
    quantiser: str = "residual"  # "residual" (a k-means codebook a token) or "fsq" (finite scalars, for few images)
    fit_examples: int = 4096  # training images on which it is fitted; all, where there are fewer
    feature: str = "pixels"  # what it sees: "appearance" (garments), "pixels", "autoencoder", "onnx", "transformers"
    feature_model: str | None = None  # folder or file of weights of the last three


@dataclass(frozen=True, kw_only=True)
class Annotate:
    """How images get their latents, and how that work is spread."""

    shard_size: int = 2048  # images to one shard, the unit of work and all that a killed run can lose
    batch_size: int = 16  # images given to an annotator at once
    segments: tuple[str, ...] = SEGMENTS  # the latents to make
    required: tuple[str, ...] = ()  # an image without one of these is left out; () = all of segments
    image_size: int = 0  # px of the records; 0 = that of the outermost denoiser
    limit: int = 0  # images of the source to annotate, from the first; 0 = all
    date: str = ""  # in every latent's provenance; "" = the day on which the job is first started, UTC
    engine: str = "local"  # or "ray"
    num_workers: int = 0  # local: processes, 0 = this one; ray: actors
    ray_address: str | None = None  # e.g. "auto" or "ray://head:10001"; None = a cluster on this machine
    worker_cpus: float = 1.0  # that Ray keeps for a worker
    worker_gpus: tuple[tuple[str, float], ...] = ()  # GPUs that an annotator asks of Ray, e.g. (("text", 1.0),)
    report_samples: int = 100  # images shown in report.html
    endpoint: AnnotateEndpoint = field(default_factory=AnnotateEndpoint)
    text: AnnotateText = field(default_factory=AnnotateText)
    bbox: AnnotateBbox = field(default_factory=AnnotateBbox)
    blob: AnnotateBlob = field(default_factory=AnnotateBlob)
    voken: AnnotateVoken = field(default_factory=AnnotateVoken)


@dataclass(frozen=True, kw_only=True)
class Train:
    """L = L_DM + eta * L_AR under Adam with EMA (paper, table B.2)."""

    batch_size: int = 512  # samples per step over all devices
    num_steps: int = 400_000
    mixed_ratio: tuple[int, ...] = ()  # (2, 1): the outer net sees two thirds of a batch, the inner all of it; () = off
    eta: float = 1.0  # weight of the AR loss
    scheduled_sampling: float = 0.0  # share of tokens the AR loss reads as sampled, not as given; 0 = off
    learning_rate: float = 1e-4  # the same for denoiser and prior
    lr_schedule: str = "constant"  # after warm-up: "constant" or "cosine" (to zero at num_steps)
    warmup_steps: int = 10_000
    adam_b1: float = 0.9
    adam_b2: float = 0.99
    adam_eps: float = 1e-8
    clip_norm: float = 2.0  # global L2 norm of all gradients
    ema_decay: float = 0.9999
    log_every_steps: int = 100
    checkpoint_every_steps: int = 5_000
    keep_checkpoints: int = 2
    sample_at_end: bool = True  # write the grid when training ends


@dataclass(frozen=True, kw_only=True)
class Sample:
    """How latents and images are drawn."""

    captions: tuple[str, ...] = ()  # rows of the grid; empty = the class names of the source
    images_per_latents: int = 4  # images with different noise from the same latents
    sampler: str = "ddpm"  # "ddpm" (ancestral), "ddim", "dpmpp_2m" or "heun" (two network runs a step)
    num_steps: int = 250  # reverse steps
    gamma: float = 4.0  # guidance weight; 1 = off
    guidance: str = "cfg"  # "cfg", "cads" (cfg under a noisy condition), "apg" (projected) or "autoguidance"
    guidance_interval: tuple[float, ...] = ()  # sigma/alpha (low, high], innermost, where gamma acts; () = everywhere
    cads_tau: tuple[float, float] = (0.6, 0.9)  # share of N: clean condition up to the first, noise from the second
    cads_noise: float = 0.25  # in standard deviations of the condition
    cads_mix: float = 1.0  # share of the noisy condition that is rescaled to the old mean and deviation; 0 = none
    apg_eta: float = 0.0  # what is kept of the update parallel to the prediction; 1 = all
    apg_threshold: float = 0.0  # largest L2 norm of an x0 update at the innermost resolution; 0 = no limit
    apg_momentum: float = -0.5  # of the update over steps; negative ones repel from the last
    autoguidance_step: int = 0  # checkpoint whose EMA is the worse model; keep it by train.keep_checkpoints
    autoguidance_workdir: str | None = None  # where that checkpoint is; None = the workdir itself
    ddim_eta: float = 0.0  # noise of DDIM; 1 equals ancestral
    threshold: str = "clip"  # of predicted x0: "none", "clip", "dynamic" or "dynamic_capped"
    start_at_n: bool = False  # start the step list at N instead of MDM's first step (997 of 250)
    temperature: float = 1.0  # of the prior; 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0  # 1 = off
    grammar: bool = False  # mask tokens so that every z parses; off, the parse rate says what the prior has learned


@dataclass(frozen=True, kw_only=True)
class Eval:
    """What is measured when training ends, and by the verb `evaluate`."""

    protocol: str = "none"  # "none" or "quickstart" (classifier, parse rate and box IoU on the fashion source)
    num_samples: int = 500
    gamma: float = 2.0
    num_steps: int = 50  # reverse steps, with the sampler of `sample`
    classifier_steps: int = 600  # training steps of the judge
    real_images: tuple[int, int] = (10_000, 2_000)  # real images that train and test the judge


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Device mesh; -1 for one axis means "all that is left"."""

    data: int = -1  # samples
    fsdp: int = 1  # parameters, optimiser and EMA
    tensor: int = 1  # heads, mlp and vocabulary


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole of one experiment."""

    name: str = "kaleido"
    seed: int = 0
    recipe: str = "train"  # "train" or "figure3" (the two-dimensional toy)
    model: Model = field(default_factory=Model)
    init: Init = field(default_factory=Init)
    diffusion: Diffusion = field(default_factory=Diffusion)
    latents: Latents = field(default_factory=Latents)
    data: Data = field(default_factory=Data)
    annotate: Annotate = field(default_factory=Annotate)
    train: Train = field(default_factory=Train)
    sample: Sample = field(default_factory=Sample)
    eval: Eval = field(default_factory=Eval)
    mesh: Mesh = field(default_factory=Mesh)


CHOICES = {
    "recipe": ("train", "figure3"),
    "model.precision": ("bfloat16", "float32"),
    "model.t5.remat": ("none", "full", "dots"),
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
    "annotate.voken.kind": ("quantiser", "seed"),
    "annotate.voken.quantiser": ("residual", "fsq"),
    "annotate.voken.feature": ("appearance", "pixels", "autoencoder", "onnx", "transformers"),
    "train.lr_schedule": ("constant", "cosine"),
    "sample.sampler": ("ddpm", "ddim", "dpmpp_2m", "heun"),
    "sample.guidance": ("cfg", "cads", "apg", "autoguidance"),
    "sample.threshold": ("none", "clip", "dynamic", "dynamic_capped"),
    "eval.protocol": ("none", "quickstart"),
}

# A workdir belongs to these parts of its config; the others may change between runs of the same work.
IDENTITY_FREE = ("sample", "eval", "mesh", "name", "init")
IDENTITY_FREE_FIELDS = {
    "train": ("num_steps", "log_every_steps", "checkpoint_every_steps", "keep_checkpoints", "sample_at_end"),
    "data": ("verify", "fetch", "records", "root"),
    "annotate": (
        "batch_size",
        "date",
        "endpoint",  # which model it was is in the origin of the latents
        "engine",
        "num_workers",
        "ray_address",
        "worker_cpus",
        "worker_gpus",
        "report_samples",
    ),
}


# --------------------------------------------------------------------------------- from files and flags
def default_config():
    """The schema's defaults as an ml_collections ConfigDict, for config files to edit."""
    return to_config_dict(Config())


def to_config_dict(value):
    """A schema dataclass as ConfigDict (nested, tuples kept)."""
    from ml_collections import ConfigDict
    from ml_collections.config_dict import placeholder

    def plain(field):
        item = getattr(value, field.name)
        if item is None and field.type == str | None:
            return placeholder(str)  # a bare None could not be set by a flag
        return to_config_dict(item) if dataclasses.is_dataclass(item) else item

    return ConfigDict({f.name: plain(f) for f in dataclasses.fields(value)})


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
        value = lookup(config, path)
        if value not in allowed:
            near = difflib.get_close_matches(value, allowed, n=1)
            do = f"did you mean '{near[0]}'?" if near else "choose one"
            raise user_error(f"config.{path} = {value!r}", f"one of {', '.join(allowed)}", do)


AT_LEAST = {
    "diffusion.num_steps": 2,
    "latents.max_tokens": 2,
    "latents.vokens_per_image": 1,
    "data.num_train": 1,
    "data.num_test": 1,
    "data.caption_tokens": 2,
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
    "sample.images_per_latents": 1,
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
    in_order = tuple(s for s in SEGMENTS if s in segments)
    for segment in segments:
        if segment not in SEGMENTS:
            raise user_error(f"config.{path} has {segment!r}", f"segments from {SEGMENTS}", "correct the name")
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


# ------------------------------------------------------------------------------------------ derived values
def nested(net: UNet) -> tuple[UNet, ...]:
    """The nets of a nest, outermost first."""
    return (net,) + (nested(net.inner) if net.inner else ())


def records_size(config: Config) -> int:
    """Px of the records: config.annotate.image_size, or what the outermost denoiser draws.

    Raises:
      UserError: neither is given.
    """
    if not config.annotate.image_size and config.model.denoiser is None:
        raise user_error("no size of the records", "config.annotate.image_size or a denoiser", "set one of them")
    return config.annotate.image_size or config.model.denoiser.image_size


def scales(model: Model) -> tuple[int, ...]:
    """Size of each resolution relative to the innermost, high to low; (1,) for points."""
    if model.denoiser is None:
        return (1,)
    nets = nested(model.denoiser)
    return tuple(net.image_size // nets[-1].image_size for net in nets)


def sample_shapes(model: Model) -> tuple[tuple[int, ...], ...]:
    """Shape of one sample at each resolution, high to low, without the batch axis."""
    if model.denoiser is None:
        return ((model.point_denoiser.dim,),)
    return tuple((net.image_size, net.image_size, 3) for net in nested(model.denoiser))


def to_json(config: Config) -> str:
    """The config as stored in a workdir's config.json."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def identity(values: Mapping) -> dict:
    """The part of a config (as a mapping) that a workdir belongs to, flattened to dotted keys."""
    flat = {}

    def walk(prefix, value):
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else key, item)
        else:
            flat[prefix] = list(value) if isinstance(value, tuple) else value

    for key, value in values.items():
        if key not in IDENTITY_FREE:
            kept = value
            if isinstance(value, Mapping):
                kept = {k: v for k, v in value.items() if k not in IDENTITY_FREE_FIELDS.get(key, ())}
            walk(key, kept)
    return json.loads(json.dumps(flat))
