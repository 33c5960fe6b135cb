"""Config schema: every field once, with its type, range or words, and its unit or reason.

`MayChange` marks what may differ between the runs of one workdir. `default_config()` gives the ml_collections form that
config files edit; `fields.build` makes it these frozen dataclasses. Nothing here imports JAX, so that every room may
know the schema and the command line starts fast.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kaleido_jax.config.fields import (
    MAY_CHANGE,
    Count,
    MayChange,
    PathText,
    Positive,
    Range,
    Share,
    Weight,
    Whole,
    add_word,
    build,
    expand,
    marked,
)
from kaleido_jax.errors import user_error
from kaleido_jax.runtime.posthoc_ema import MAX_SIGMA_REL

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# What a layer keeps for the backward pass: everything, the products with its weights, these in the host's memory, or
# its inputs only.
Remat = Literal["none", "dots", "offload", "full"]
Attention = Literal["plain", "fused"]


@dataclass(frozen=True, kw_only=True)
class T5Encoder:
    """The caption side of T5."""

    trainable: bool = False  # frozen in the paper; True only where no pretrained T5 of this size exists


@dataclass(frozen=True, kw_only=True)
class T5:
    """T5 v1.1 sizes; defaults are XL's."""

    vocabulary: PathText = "t5"  # "t5", "emoji" or the path of a sentencepiece model, which training copies
    checkpoint: PathText | None = None  # weights to start from; None = random (only sensible with a trainable encoder)
    d_model: Count = 2048  # width of the residual stream
    d_ff: Count = 5120  # width of each GEGLU branch
    num_heads: Count = 32
    head_dim: Count = 64
    num_encoder_layers: Count = 24
    num_decoder_layers: Count = 24
    remat: MayChange[Remat] = "none"  # of every layer
    attention: MayChange[Attention] = "plain"  # of the decoder to itself, in training; "fused" = cuDNN's kernel on GPUs
    encoder: T5Encoder = field(default_factory=T5Encoder)


@dataclass(frozen=True, kw_only=True)
class UNet:
    """One net of the nest; `inner` is the net in its middle, None for the innermost (MDM, spec of the network)."""

    image_size: Count = 64  # px, side of the square image this net draws
    patch: Count = 1  # px; squares of patch x patch px become the channels of one position, as in ViT
    channels: tuple[Count, ...] = (256, 512, 768)  # width of each level, highest resolution first
    num_res_blocks: tuple[Count, ...] = (2, 2, 2)  # residual blocks of each level on the way down
    num_attn_layers: tuple[Whole, ...] = (0, 1, 5)  # attention blocks after each residual block; 0 = level without text
    attention_ffn: bool = True  # feed-forward part in every attention block
    mid_blocks: bool = True  # middle blocks of the innermost net; outer nets have the inner net instead
    emb_channels: Count = 1024  # width E of the time embedding; the same at every depth
    num_groups: Count = 32  # groups of the norms in residual blocks (attention norms always have 32)
    text_proj_channels: Whole = 0  # width D' the text is projected to; 0 = no projection. Innermost only
    num_text_layers: Whole = 0  # self-attention layers over the text before use. Innermost only
    masked_cross_attention: bool = True  # hide padding from attention over text
    normalize_input: bool = False  # divide the noisy input by its own standard deviation; outer nets only
    # Micro conditions as (name, default). (("scale", 64.0),): px of the photo's shorter side before it was resized.
    micro: tuple[tuple[str, Weight], ...] = ()
    remat: MayChange[Remat] = "none"  # of residual and attention blocks
    attention: MayChange[Attention] = "plain"  # between pixels; "fused" = cuDNN's kernel on GPUs, splash's on TPUs
    inner: "UNet | None" = None


@dataclass(frozen=True, kw_only=True)
class PointNet:
    """A residual MLP for data that are points, not images (figure 3 of the paper)."""

    dim: Count = 2  # coordinates of a point
    width: Count = 128  # hidden channels
    num_layers: Count = 3  # residual layers
    emb_channels: Count = 64  # width of the time embedding


@dataclass(frozen=True, kw_only=True)
class Model:
    """Both networks. Exactly one of `denoiser` and `point_denoiser` is set."""

    t5: T5 = field(default_factory=T5)
    denoiser: UNet | None = field(default_factory=UNet)
    point_denoiser: PointNet | None = None
    precision: Literal["bfloat16", "float16", "float32"] = "bfloat16"  # compute dtype; parameters are always float32


@dataclass(frozen=True, kw_only=True)
class Init:
    """What a fresh run starts from, besides config.model.t5.checkpoint; a resumed run does not read it."""

    inner: PathText | None = None  # weights of denoiser.inner: a run's workdir, MDM's .pth, or safetensors


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The noise process (MDM)."""

    schedule: Literal["squared_cosine", "cosine", "linear"] = "squared_cosine"  # "cosine" has logSNR +-5
    num_steps: Annotated[int, Range(2)] = 1000  # N of the discrete schedule
    prediction: Literal["v", "eps", "x0"] = "v"  # what the network outputs
    loss_space: Literal["v", "eps", "x0"] = "eps"  # space in which the squared error is taken
    shift_power: Weight = 1.0  # SNR of a resolution s times the innermost is divided by s**shift_power
    loss_weights: tuple[Weight, ...] = ()  # per resolution, high to low; () = 1 for each
    vdm_weights: bool = False  # weigh samples by VDM's SNR[k-1] / SNR[k] - 1 instead of alike
    p_uncond: Share = 0.1  # share of samples whose (c, z) are dropped together, for guidance


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Which latents z the model has. No segments = the MDM baseline, without a prior."""

    segments: tuple[str, ...] = ("text", "bbox", "voken")
    max_latents_tokens: Annotated[int, Range(2)] = 416  # bucket length of z in tokens, eos included
    coordinate_step: Count = 1  # numbers of boxes and blobs are rounded to multiples; divides 1000 and 180
    codebook_size: Count = 8192  # entries of the voken codebook, one more row of the token table each
    vokens_per_image: Count = 32  # length of the voken segment


@dataclass(frozen=True, kw_only=True)
class DataEmoji:
    """The generated scenes of emoji."""

    num_train: Count = 20_000  # training records
    num_test: Count = 2_000  # held-out records
    two_share: Share = 0.2  # share of the scenes that have two sprites
    kinds: tuple[str, ...] = ()  # of the ten, e.g. ("fruit", "bird"); () = all
    names_alone: bool = False  # the text names the sprites and says nothing else: an oracle of the hidden mode
    least_side: Annotated[float, Range(0.2, 0.9)] = 0.45  # of a sprite alone, in parts of the image's; 0.8: close-ups
    most_tilt: Annotated[int, Range(0, 45)] = 45  # degrees to the left and to the right; to 12 all are upright


@dataclass(frozen=True, kw_only=True)
class DataCoco:
    """COCO's JSON."""

    licenses: tuple[Whole, ...] = ()  # ids of the photos' licenses to keep; () = all


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """Tables of captions: CSV, TSV, JSONL or a list in JSON."""

    columns: tuple[str, str, str] = ("image", "caption", "description")  # the last may be absent
    separator: str = ""  # character between the cells; "" = a comma in CSV, a tab in TSV files


@dataclass(frozen=True, kw_only=True)
class DataTfds:
    """TFDS data sets in ArrayRecord files; a feature inside another is "OUTER/INNER"."""

    folder: PathText = ""  # of the data set below root: "imagenet2012", "coco_captions/2014/1.1.0"; "" = root itself
    image: str = "image"  # feature with the image
    caption: str = "label"  # feature with the class, or with one or several captions, e.g. "captions/text"
    description: str = ""  # feature with a long text; "" = the longest caption


@dataclass(frozen=True, kw_only=True)
class DataTar:
    """Tar shards of img2dataset and webdataset."""

    caption: str = "caption"  # field of KEY.json that is the caption where there is no KEY.txt
    description: str = "description"  # field of KEY.json with a long text; it may be absent
    classes: PathText = ""  # file below root with a class in each line, for KEY.cls; "imagenet" = ImageNet-1k's
    index: MayChange[PathText] = ""  # folder of the shards' index files; "" = beside the shards


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where images, captions and latents come from."""

    # records: annotated already
    source: Literal["emoji", "records", "coco", "gbc", "table", "folder", "text_files", "tfds", "tar"] = "records"
    root: MayChange[PathText | None] = None  # folder of the data that `annotate` reads
    split: str = ""  # the part of it, as the data calls it, e.g. "val2017"; "" = all
    labels: tuple[PathText, ...] = ()  # label files below root; () = the data set's usual ones
    images: PathText = ""  # image folder below root; "" = the data set's usual one
    records: MayChange[PathText | None] = None  # folder with manifest.json or split folders; None = the workdir's
    max_caption_tokens: Annotated[int, Range(2)] = 128  # bucket length of c in tokens, eos included
    class_captions: tuple[str, ...] = ()  # all captions of the data, if they are few: each is then encoded once
    length_buckets: tuple[Count, ...] = ()  # of z below max_latents_tokens: a batch has one, so short z are padded less
    num_workers: MayChange[Whole] = 0  # processes that read and decode records; 0 = threads of the training process
    in_memory: MayChange[bool] = False  # keep every record decoded once it was read: for data that fit into memory
    max_bad_share: MayChange[Share] = 0.001  # share of records that may be unreadable before training stops
    verify: MayChange[Literal["full", "size"]] = "full"  # check of record shards when opened: sha256 or size
    fetch: MayChange[str] = ""  # shown when the records are missing: where to get the data
    emoji: DataEmoji = field(default_factory=DataEmoji)
    coco: DataCoco = field(default_factory=DataCoco)
    table: DataTable = field(default_factory=DataTable)
    tfds: DataTfds = field(default_factory=DataTfds)
    tar: DataTar = field(default_factory=DataTar)


@dataclass(frozen=True, kw_only=True)
class AnnotateEndpoint:
    """An OpenAI-compatible server with a vision-language model, for segments with kind = "openai"."""

    base_url: str | None = None  # e.g. "http://localhost:8000/v1"
    model: str | None = None  # as the server calls it
    api_key_variable: str | None = None  # environment variable that holds the key; None = the server needs none
    concurrency: Count = 32  # concurrent requests of each process
    timeout_s: Positive = 120.0  # for one request, from connecting to the answer's last byte
    retries: Whole = 5  # further attempts after a failure or an unusable answer
    requests_per_minute: Weight = 0.0  # of each process; 0 = no limit
    price_in: Weight = 0.0  # per million tokens read, images included; for the cost in the log
    price_out: Weight = 0.0  # per million tokens written
    max_answer_bytes: Annotated[int, Range(1024)] = 1_000_000  # of a whole response; the rest is not read
    image_format: Literal["jpeg", "png"] = "jpeg"  # quality 95, or lossless at about four times the bytes
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # the server's name of the limit
    sampling: bool = True  # send temperature and seed; some hosted models refuse requests that have them


@dataclass(frozen=True, kw_only=True)
class AnnotateText:
    """How the text segment is made."""

    kind: Literal["labels", "openai", "transformers"] = "labels"  # labels: a description or caption that the data has
    model: PathText | None = None  # folder of weights of a local model; openai: another model than the endpoint's
    instruction: Literal["caption", "label"] = "caption"  # the model gets the image's caption or class label
    image_size: Annotated[int, Range(28)] = 448  # px, side of the picture shown to the model
    batch_size: Count = 8  # images in one forward pass of a local model


@dataclass(frozen=True, kw_only=True)
class AnnotateBbox:
    """How the bbox segment is made."""

    kind: Literal["labels", "openai", "transformers", "onnx"] = "labels"  # labels: boxes that the data has; onnx: YOLOX
    model: PathText | None = None  # folder or file of weights of a local model; openai: another than the endpoint's
    instruction: Literal["json", "caption"] = "json"  # json: Qwen2.5-VL and newer; caption: a grounded caption, Qwen-VL
    coordinates: Literal["thousandths", "pixels"] = "thousandths"  # units of a model's answer; pixels: Qwen2.5-VL
    image_size: Annotated[int, Range(28)] = 448  # px, side of the picture shown to the model; pixels: a multiple of 28
    batch_size: Count = 8  # images in one forward pass of a local model
    max_boxes: Count = 10  # per image: the first named, onnx: the most confident, labels: the largest, also ellipses
    threshold: Share = 0.3  # onnx: lowest score of a box, objectness times class probability


@dataclass(frozen=True, kw_only=True)
class AnnotateBlob:
    """How the blob segment is made: masks, and their ellipses."""

    kind: Literal["labels", "sam", "onnx"] = "labels"  # labels: masks that the data has; others: one inside each box
    model: PathText | None = None  # folder or file of weights of a local model


@dataclass(frozen=True, kw_only=True)
class AnnotateVoken:
    """How the voken segment is made."""

    kind: Literal["quantizer", "seed"] = "quantizer"  # ours, fitted on the data; or SEED, as in the paper
    model: PathText | None = None  # seed: folder of weights; quantizer: file of one fitted before, instead of fitting
    quantizer: Literal["residual", "fsq"] = "residual"  # k-means, a codebook for each token; fsq needs fewer images
    fit_examples: Count = 4096  # training images that the quantizer is fitted on; all if there are fewer
    feature: Literal["pixels", "autoencoder", "onnx", "transformers"] = "pixels"  # what it quantizes
    feature_model: PathText | None = None  # folder or file of weights of the last three


@dataclass(frozen=True, kw_only=True)
class Annotate:
    """How images get their latents, and how that work is distributed."""

    shard_size: Count = 2048  # images per shard, the unit of work
    batch_size: MayChange[Count] = 16  # images given to an annotator at once, and the most that a killed run loses
    segments: tuple[str, ...] = ("text", "bbox", "blob", "voken")  # the latents to make
    required: tuple[str, ...] = ()  # an image without one of these is left out; () = all of segments
    image_size: Whole = 0  # px of the records; 0 = that of the outermost denoiser
    view_size: Whole = 0  # px of the crop that annotators see; 0 = the photo's own size, 1024 at most
    held_out_share: Annotated[float, Range(0, 0.5)] = 0.0  # of the images, by a hash of their bytes, in a split `test`
    limit: Whole = 0  # images of the source to annotate, from the first; 0 = all
    date: MayChange[str] = ""  # in every latent's provenance; "" = the day on which the job is first started, UTC
    engine: MayChange[Literal["local", "ray"]] = "local"
    num_workers: MayChange[Whole] = 0  # local: processes, 0 = this one; ray: actors
    ray_address: MayChange[str | None] = None  # e.g. "auto" or "ray://head:10001"; None = a cluster on this machine
    worker_cpus: MayChange[Weight] = 1.0  # CPUs that Ray reserves for a worker
    worker_gpus: MayChange[tuple[tuple[str, Weight], ...]] = ()  # GPUs for a segment's annotator, e.g. (("text", 0.5),)
    report_samples: MayChange[Whole] = 100  # images shown in report.html
    endpoint: MayChange[AnnotateEndpoint] = field(default_factory=AnnotateEndpoint)
    text: AnnotateText = field(default_factory=AnnotateText)
    bbox: AnnotateBbox = field(default_factory=AnnotateBbox)
    blob: AnnotateBlob = field(default_factory=AnnotateBlob)
    voken: AnnotateVoken = field(default_factory=AnnotateVoken)


@dataclass(frozen=True, kw_only=True)
class Train:
    """L = L_DM + eta * L_AR under Adam with EMA (paper, table B.2)."""

    batch_size: Count = 512  # samples per step over all devices
    num_steps: MayChange[Count] = 400_000
    accumulate: Count = 1  # parts of a batch that run one after the other, for a batch too large for the memory
    mixed_ratio: tuple[Whole, ...] = ()  # (2, 1): the outer net trains on 2/3 of a batch, the inner on all; () = off
    eta: Weight = 1.0  # weight of the AR loss
    scheduled_sampling: Share = 0.0  # share of the AR loss's input tokens that are sampled, not given; 0 = off
    learning_rate: Weight = 1e-4  # the same for denoiser and prior
    lr_schedule: Literal["constant", "cosine"] = "constant"  # after warm-up; cosine falls to zero at num_steps
    warmup_steps: Whole = 10_000
    adam_b1: Share = 0.9
    adam_b2: Share = 0.99
    adam_eps: Annotated[float, Range(1e-16)] = 1e-8  # alone divides small gradients, whose squares are 0 in float32
    adam_mu_dtype: Literal["float32", "bfloat16"] = "float32"  # of the first moment
    clip_norm: Positive = 2.0  # global L2 norm of all gradients
    clip_part_norms: tuple[tuple[str, Positive], ...] = ()  # L2 norms of single parts before that, e.g. (("prior", 1),)
    ema_decay: Share = 0.9999
    ema_every_steps: Count = 1  # steps from one EMA update to the next, which then decays as much as all of them
    # sigma_rel of averages beside the EMA, e.g. (0.05, 0.1), of which `export --sigma_rel` makes any other; () = none
    ema_profiles: tuple[Annotated[float, Range(0, MAX_SIGMA_REL, open=True)], ...] = ()
    ema_snapshot_every_steps: MayChange[Whole] = 0  # from one snapshot of these to the next; 0 = with every checkpoint
    logits_chunk: Whole = 0  # positions of z whose logits exist at once, in training; 0 = all
    max_skipped_steps: MayChange[Count] = 10  # steps in a row without a finite update before training stops
    log_every_steps: MayChange[Count] = 100
    checkpoint_every_steps: MayChange[Count] = 5_000
    keep_checkpoints: MayChange[Count] = 2  # the newest
    keep_every_steps: MayChange[Whole] = 0  # checkpoints at multiples of this are kept as well; 0 = none
    full_disk: MayChange[Literal["stop", "continue"]] = "stop"  # when something does not fit; the last checkpoint must
    profile_steps: MayChange[tuple[Count, ...]] = ()  # (first, number): steps that profile/ shows to TensorBoard
    wandb_project: MayChange[str] = ""  # project of Weights & Biases that gets the metrics too; "" = none
    sample_at_end: MayChange[bool] = True  # write the grid when training ends


@dataclass(frozen=True, kw_only=True)
class Sample:
    """How latents and images are drawn."""

    captions: tuple[str, ...] = ()  # rows of the grid; () = the classes of the data, or some captions of the records
    latents_per_caption: Count = 2  # rows of the grid for each caption; baselines have one
    images_per_caption: Count = 2  # of each row; they share its latents and differ in noise
    sampler: Literal["ddpm", "ddim", "dpmpp_2m", "heun"] = "ddpm"  # ddpm: ancestral; heun: two evaluations a step
    num_steps: Count = 250  # reverse steps
    gamma: float = 4.0  # guidance weight; 1 = off
    guidance: Literal["cfg", "cads", "apg", "autoguidance"] = "cfg"  # cads: cfg under a noisy condition; apg: projected
    guidance_interval: tuple[Weight, ...] = ()  # (low, high] of the innermost sigma/alpha, where gamma acts; () = all
    cads_tau: tuple[Share, Share] = (0.6, 0.9)  # shares of N: a clean condition up to the first, noise from the second
    cads_noise: Weight = 0.25  # in standard deviations of the condition
    cads_mix: Share = 1.0  # share of the noisy condition that is rescaled to the old mean and deviation; 0 = none
    apg_eta: Share = 0.0  # share kept of the update's part that is parallel to the prediction; 1 = all
    apg_threshold: Weight = 0.0  # largest L2 norm of an x0 update at the innermost resolution; 0 = no limit
    apg_momentum: Annotated[float, Range(-1, 1, open=True)] = -0.5  # of the update over steps; negative: repels
    autoguidance_step: Whole = 0  # checkpoint whose EMA is the worse model; keep it by train.keep_checkpoints
    # Where that checkpoint is, or an exported folder that is the worse model itself; None = the workdir
    autoguidance_workdir: PathText | None = None
    ddim_eta: Share = 0.0  # noise of DDIM; 1 equals ancestral
    threshold: Literal["none", "clip", "dynamic", "dynamic_capped"] = "clip"  # of predicted x0
    sigma_min: Weight = 0.0  # noise sigma / alpha, innermost, below which the network is not asked: x0 is the image
    start_at_n: bool = False  # start the step list at N instead of MDM's first step (997 of 250)
    micro: tuple[tuple[str, Weight], ...] = ()  # values of the denoiser's micro conditions; others take their default
    temperature: Weight = 1.0  # of the prior; 0 = greedy
    top_k: Whole = 0  # 0 = off
    top_p: Share = 1.0  # 1 = off
    grammar: bool = False  # mask tokens so that every z parses; False: the parse rate measures the prior


@dataclass(frozen=True, kw_only=True)
class Eval:
    """What is measured when training ends and by the verb `evaluate`, and what is looked at while it trains."""

    every_steps: Whole = 0  # between looks while training: held-out losses and a grid of the EMA; 0 = none
    held_out_batches: Whole = 4  # of each look, always the same; 0 = no held-out losses
    grid: bool = True  # of each look: the same captions, latents and noise
    # emoji: images against captions and z, and how many modes are drawn. edits: whether images follow edits of their z.
    # records: any pictures with records, beside the held-out ones and a baseline; by the verb `evaluate` only
    protocol: Literal["none", "emoji", "edits", "records"] = "none"
    # captions take turns; the modes of ten kinds want some 200 of each, `edits` 200 in all, `records` 50 at least
    num_samples: Count = 2_000
    gamma: float = 2.0
    num_steps: Count = 50  # reverse steps, with the sampler of `sample`
    real_scenes: Count = 1_000  # emoji: real images that are measured alike, as the ceiling
    reader_steps: Count = 4_000  # training of the reader, for image sizes whose reader is not shipped


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Device mesh and what is split over it; -1 for one axis means all remaining devices."""

    data: Annotated[int, Range(-1)] = -1  # samples
    fsdp: Annotated[int, Range(-1)] = 1  # samples, and parameters, optimizer and EMA
    tensor: Annotated[int, Range(-1)] = 1  # heads, mlp and vocabulary
    across_slices: Literal["data", "fsdp"] = "data"  # the axis on which several TPU slices follow each other
    # (logical axis, mesh axes joined by "+"); "" = not split. `batch` and `act_*` are of activations, the others of
    # weights.
    rules: tuple[tuple[str, str], ...] = (
        ("embed", "fsdp"),
        ("mlp", "tensor"),
        ("heads", "tensor"),
        ("vocab", "tensor"),
        ("conv_in", ""),
        ("conv_out", "fsdp"),
        ("height", ""),
        ("width", ""),
        ("layers", ""),
        ("norm", ""),
        ("buckets", ""),
        ("batch", "data+fsdp"),
        ("act_embed", ""),
        ("act_mlp", "tensor"),
        ("act_heads", "tensor"),
        ("act_vocab", "tensor"),
        ("act_conv", ""),
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole of one experiment."""

    name: MayChange[str] = "kaleido"
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    model: Model = field(default_factory=Model)
    init: MayChange[Init] = field(default_factory=Init)
    diffusion: Diffusion = field(default_factory=Diffusion)
    latents: Latents = field(default_factory=Latents)
    data: Data = field(default_factory=Data)
    annotate: Annotate = field(default_factory=Annotate)
    train: Train = field(default_factory=Train)
    sample: MayChange[Sample] = field(default_factory=Sample)
    eval: MayChange[Eval] = field(default_factory=Eval)
    mesh: MayChange[Mesh] = field(default_factory=Mesh)

    @classmethod
    def from_json(cls, source: Path | str) -> "Config":
        """The config of a file, of a folder that holds config.json (a workdir), or of JSON text itself.

        Missing fields get their defaults.

        Raises:
          UserError: no such file, not a JSON object, an unknown key, or invalid values.
        """
        return build(cls, json_values(source))

    def to_json(self) -> str:
        """The text of a workdir's config.json."""
        return json.dumps(dataclasses.asdict(self), indent=2)


# ----------------------------------------------------------------------------------- forms of a config
def default_config() -> "ConfigDict":
    """The schema's defaults as an ml_collections ConfigDict, for config files to edit."""
    return to_config_dict(Config())


def to_config_dict(group: Any) -> "ConfigDict":
    """A group of the schema, such as a UNet, as ConfigDict."""
    from ml_collections import ConfigDict

    return ConfigDict(dataclasses.asdict(group))


def json_values(source: Path | str) -> dict[str, Any]:
    """The values of a config in JSON, as in `Config.from_json`, not yet checked.

    Raises:
      UserError: no such file, or not a JSON object.
    """
    text = name = str(source).removeprefix("\ufeff")  # a byte order mark, as an editor on Windows writes
    if isinstance(source, Path) or not text.lstrip().startswith("{"):
        path = Path(expand(text, "config"))
        path = path / "config.json" if path.is_dir() else path
        try:
            text, name = path.read_text(encoding="utf-8-sig"), str(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise user_error(f"{path} cannot be read ({reason})", "a config in JSON", "correct the path") from error
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise user_error(f"{name[:200]} is not JSON ({error})", "a config in JSON", "correct it") from error
    if not isinstance(values, dict):
        raise user_error(f"{name[:200]} holds {str(values)[:40]}", "a config in JSON", "name a config.json")
    return values


def allow(path: str, word: str) -> None:
    """Allows one more word in a field, e.g. ("sample.sampler", "mine"), for a part registered from outside."""
    add_word(Config, path, word)


# ------------------------------------------------------------------------------------------ derived values
def nested(net: UNet) -> tuple[UNet, ...]:
    """The nets of a nest, outermost first."""
    return (net,) + (nested(net.inner) if net.inner else ())


def records_size(config: Config) -> int:
    """Size of the records in px: config.annotate.image_size, or that of the outermost denoiser.

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


def micro_names(model: Model) -> tuple[str, ...]:
    """Names of the micro conditions that any net of the denoiser has."""
    nets = nested(model.denoiser) if model.denoiser else ()
    return tuple(sorted({name for net in nets for name, _ in net.micro}))


def sample_shapes(model: Model) -> tuple[tuple[int, ...], ...]:
    """Shape of one sample at each resolution, high to low, without the batch axis."""
    if model.denoiser is None:
        return ((model.point_denoiser.dim,),)
    return tuple((net.image_size, net.image_size, 3) for net in nested(model.denoiser))


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that may not change within a workdir, of a config as a mapping, flattened to dotted keys."""
    free = marked(Config, MAY_CHANGE)
    flat = {}

    def walk(path: str, value: Any) -> None:
        if path.replace(".inner.", ".") in free:  # a net's fields are alike at every depth
            return
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(f"{path}.{key}".lstrip("."), item)
        else:
            flat[path] = value

    walk("", values)
    return json.loads(json.dumps(flat))  # tuples become lists, as in a stored config
