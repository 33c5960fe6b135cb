"""The config schema: every field once, with its unit or reason.

`default_config()` gives the ml_collections form that config files edit; `validate()` in config_checks.py turns it into
these frozen dataclasses. Neither imports jax, so that every room may know them and the command line starts fast.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kaleido_jax.errors import user_error

# What a layer keeps for the backward pass: everything, the products with its weights, or its inputs only.
Remat = Literal["none", "dots", "full"]


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
    remat: Remat = "none"  # of every layer
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
    normalize_input: bool = False  # divide the noisy input by its own standard deviation; outer nets only
    micro: tuple[tuple[str, float], ...] = ()  # micro conditions as (name, default), e.g. (("scale", 64.0),)
    remat: Remat = "none"  # of residual and attention blocks
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
    max_latents_tokens: int = 416  # bucket length of z in tokens, eos included
    codebook_size: int = 8192  # rows appended to the token table, one a codebook entry
    vokens_per_image: int = 32  # length of the voken segment


@dataclass(frozen=True, kw_only=True)
class DataFashion:
    """The generated garments."""

    num_train: int = 20_000  # training records
    num_test: int = 2_000  # held-out records


@dataclass(frozen=True, kw_only=True)
class DataCoco:
    """COCO's JSON."""

    licenses: tuple[int, ...] = ()  # ids of the photos' licenses to keep; () = all


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """Tables of captions: CSV, TSV or JSONL."""

    columns: tuple[str, str, str] = ("image", "caption", "description")  # the last may be absent


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where images, captions and latents come from."""

    source: str = "records"  # "fashion" (shipped), "records" (annotated already), or "coco", "gbc", "table", "folder"
    root: str | None = None  # folder of the data that `annotate` reads
    split: str = ""  # the part of it, as the data calls it, e.g. "val2017"; "" = all
    labels: tuple[str, ...] = ()  # files of labels below root; () = where the data set has them by custom
    images: str = ""  # folder of the images below root; "" = where the data set has them by custom
    records: str | None = None  # folder with manifest.json, or with one for each split; None = the workdir's
    max_caption_tokens: int = 128  # bucket length of c in tokens, eos included
    class_captions: tuple[str, ...] = ()  # every caption there is, where few: a frozen encoder then runs once on each
    verify: str = "full"  # record shards are checked by "full" (sha256) or "size" when opened
    fetch: str = ""  # what to say when the records are missing: where to get the data
    fashion: DataFashion = field(default_factory=DataFashion)
    coco: DataCoco = field(default_factory=DataCoco)
    table: DataTable = field(default_factory=DataTable)


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

    kind: str = "quantizer"  # "quantizer" (ours, fitted on the data) or "seed" (the paper's)
    model: str | None = None  # seed: folder of weights
    quantizer: str = "residual"  # "residual" (a k-means codebook a token) or "fsq" (finite scalars, for few images)
    fit_examples: int = 4096  # training images on which it is fitted; all, where there are fewer
    feature: str = "pixels"  # what it sees: "appearance" (garments), "pixels", "autoencoder", "onnx", "transformers"
    feature_model: str | None = None  # folder or file of weights of the last three


@dataclass(frozen=True, kw_only=True)
class Annotate:
    """How images get their latents, and how that work is spread."""

    shard_size: int = 2048  # images to one shard, the unit of work and all that a killed run can lose
    batch_size: int = 16  # images given to an annotator at once
    segments: tuple[str, ...] = ("text", "bbox", "blob", "voken")  # the latents to make
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
    images_per_caption: int = 4  # of the grid; they share the caption's latents and differ in noise
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
    fsdp: int = 1  # parameters, optimizer and EMA
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


# A workdir belongs to these parts of its config; the others may change between runs of the same work.
IDENTITY_FREE = ("sample", "eval", "mesh", "name", "init")
IDENTITY_FREE_FIELDS = {
    "train": ("num_steps", "log_every_steps", "checkpoint_every_steps", "keep_checkpoints", "sample_at_end"),
    "data": ("verify", "fetch", "records", "root"),
    "annotate": (
        "batch_size",
        "date",
        "endpoint",  # which model it was is in the metadata of the latents
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
