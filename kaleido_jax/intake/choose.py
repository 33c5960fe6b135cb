"""Choosing a config for surveyed data: vocabulary, lengths of the buckets, segments, size and number of steps."""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaleido_jax.annotate.vision.detector import class_names
from kaleido_jax.config.checks import validate
from kaleido_jax.config.load import base_config, load_config
from kaleido_jax.config.schema import Config
from kaleido_jax.config.schema import Latents as LatentsFields
from kaleido_jax.data.records import DEFAULT_CAPTIONS, spread
from kaleido_jax.errors import user_error
from kaleido_jax.intake.recognize import Found
from kaleido_jax.intake.survey import LABELED, MOST, Survey
from kaleido_jax.latents import segments as registry
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.grammar import serialize
from kaleido_jax.latents.tokenizer import load_tokenizer, round_up
from kaleido_jax.latents.types import segments_of, select
from kaleido_jax.latents.validity import LatentsError
from kaleido_jax.latents.vocabulary import vocabulary_of
from kaleido_jax.models.flops import step_flops, sum_parts
from kaleido_jax.runtime.workdir import VOCABULARY

BASE = "own_pictures"
FEWEST = 24  # images; the vokens' finite scalars need more than 16 to be fitted on
SIZES = (32, 64)  # px, of the variants of BASE
# Rates of training that were measured: where, config, images a second (benchmarks/results/emoji_recipe.md).
MEASURED = {
    "cpu": ("one core of an AMD EPYC", "emoji_combined", 31.0),
    "accelerator": ("an H100", "emoji_combined", 12_500.0),
}
MINUTES = {"cpu": 12.0, "accelerator": 5.0}  # of training, if the person does not say
EPOCHS = 400  # at most; a fast machine would only learn a few pictures by heart
HELD_OUT_SHARE, HELD_OUT = 0.05, 20  # of the images; of few of them more, to reach this many
_MOST_HELD_OUT = 0.15  # of the images, however few they are: training needs them more
_MOST_CLASSES = 12  # rows of a grid of classes
_RARE = 1.5  # a bucket this much longer than 98 % need is shortened to them
_VIEW_PX = 512  # what detectors see; more costs time and finds little in photos


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the person said; None, () and "" leave it to us.

    Raises:
      UserError: a segment that is none or in another order, a size that is no variant of BASE, or no time at all.
    """

    segments: tuple[str, ...] = ()
    image_size: int | None = None  # px
    minutes: float | None = None  # of training
    detector: str = ""  # a YOLOX's .onnx file
    masks: str = ""  # an .onnx file or a folder of SAM

    def __post_init__(self) -> None:
        wanted = {registry.get(name).name for name in self.segments}
        in_order = tuple(name for name in registry.names() if name in wanted)
        if self.segments != in_order:
            found = f"--segments={','.join(self.segments)}"
            raise user_error(found, f"{','.join(in_order)}, once each in this order", "reorder them")
        if self.image_size is not None and self.image_size not in SIZES:
            found = f"--image_size={self.image_size}"
            raise user_error(found, " or ".join(map(str, SIZES)), "choose one, or write a config by hand")
        if self.minutes is not None and not self.minutes > 0:
            raise user_error(f"--minutes={self.minutes:g}", "more than 0", "correct it, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A config that fits the data."""

    found: Found
    base: str  # what it builds on, a name for base_config
    fields: dict[str, Any]  # dotted path -> value, of those that differ; without the vocabulary
    vocabulary: bytes  # of the sentencepiece model
    num_pieces: int
    longest_caption: tuple[int, str]  # tokens with eos, the caption
    labels: tuple[str, ...]  # segments that come from the labels of the data
    labeled: int  # images of those looked at that have all of these
    training: int  # images to train on, about: those that have all, without the held-out ones
    too_long: int  # images of those looked at whose caption or latents do not fit the buckets
    image_flops: float  # of a training step, for one image
    minutes: float  # of training, expected
    rate: float  # images a second, expected
    measured_on: str  # where the rate is from


def choose(found: Found, survey: Survey, wishes: Wishes, *, accelerated: bool) -> Choice:
    """The smallest config that fits.

    Args:
      found: what the data are.
      survey: what is in them.
      wishes: what the person said.
      accelerated: whether the machine has a GPU or TPU.

    Raises:
      UserError: too few images, or segments that nothing makes.
    """
    _check_number(len(survey.looks), "that can be used", "add some, or write a config by hand")
    machine = "accelerator" if accelerated else "cpu"
    size = _size(survey, accelerated) if wishes.image_size is None else wishes.image_size
    base = f"{BASE}:{size}" + ("-accelerator" if accelerated else "")
    fields = _data_fields(found) | _segment_fields(survey, wishes)
    labels, labeled = _labeled(survey, fields["latents.segments"], wishes)
    usable = survey.num_images * labeled // len(survey.looks)
    values = base_config(base)
    vocabulary = vocabulary_of([*_sentences(survey), *survey.class_counts, *detected_classes(wishes.detector)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / VOCABULARY
        path.write_bytes(vocabulary)
        latents = LatentsFields(**values.latents.to_dict() | {"segments": fields["latents.segments"]})
        codec = _codec(latents, path)
        captions, lengths = _lengths(survey, codec, wishes, values.annotate.bbox.max_boxes)
        margin = 1.25 if survey.num_images > MOST else 1.0  # for those that were not looked at
        fields["data.max_caption_tokens"] = _bucket([n for n, _ in captions], margin)
        fields["latents.max_latents_tokens"] = _bucket(lengths, margin)
        config = validate(_with(values.to_dict(), fields | {"model.t5.vocabulary": str(path)}))
        flops = _image_flops(config, path)
    where, reference, measured = MEASURED[machine]
    rate = measured * _image_flops(load_config(reference)) / flops
    allowed = MINUTES[machine] if wishes.minutes is None else wishes.minutes
    share = _held_out_share(usable)
    training = round(usable * (1 - share))
    steps, minutes = _steps(config, training, rate, allowed)
    fields |= {"train.num_steps": steps, "annotate.held_out_share": share}
    fields["sample.captions"] = tuple(_rows(survey))
    fields["eval.protocol"] = "records"
    fits = zip(captions, lengths, strict=True)
    caption_bucket, latents_bucket = fields["data.max_caption_tokens"], fields["latents.max_latents_tokens"]
    return Choice(
        found=found,
        base=base,
        fields={"name": Path(found.data.root).resolve().name or BASE} | fields,
        vocabulary=vocabulary,
        num_pieces=codec.tokenizer.num_pieces,
        longest_caption=max(captions),
        labels=labels,
        labeled=labeled,
        training=training,
        too_long=sum(n > caption_bucket or length > latents_bucket for (n, _), length in fits),
        image_flops=flops,
        minutes=minutes,
        rate=rate,
        measured_on=where,
    )


def _check_number(images: int, which: str, do: str) -> None:
    if images < FEWEST:
        raise user_error(f"{images} images {which}", f"{FEWEST} at least, better hundreds", do)


def _rows(survey: Survey) -> list[str]:
    """Captions of the grid's rows: classes that have images, or some captions from frequent to rare."""
    classes = [name for name, number in survey.class_counts.items() if number]
    return spread(classes, _MOST_CLASSES) if classes else spread(survey.captions, DEFAULT_CAPTIONS)


def _size(survey: Survey, accelerated: bool) -> int:
    middle = survey.shorter_sides_px[len(survey.looks) // 2]
    return 64 if accelerated and middle >= 64 else 32


def _data_fields(found: Found) -> dict[str, Any]:
    data = found.data
    fields: dict[str, Any] = {"data.source": data.source, "data.root": str(Path(data.root).resolve())}
    fields |= {f"data.{name}": value for name in ("split", "labels", "images") if (value := getattr(data, name))}
    if data.source == "table":
        fields["data.table.columns"] = data.table.columns
        if data.table.separator:
            fields["data.table.separator"] = data.table.separator
    return fields


def _segment_fields(survey: Survey, wishes: Wishes) -> dict[str, Any]:
    boxes = wishes.detector or survey.share_with("bbox") >= LABELED
    blobs = boxes and (wishes.masks or (not wishes.detector and survey.share_with("blob") >= LABELED))
    chosen = {"text": survey.share_with("text") > 0, "bbox": boxes, "blob": blobs, "voken": True}
    segments = wishes.segments or tuple(segment for segment, wanted in chosen.items() if wanted)
    for segment, made in (("bbox", wishes.detector), ("blob", wishes.masks)):
        if segment in segments and not made and not survey.share_with(segment):
            do = "leave it out, or name a model by --detector (and --masks)"
            raise user_error(f"--segments with {segment}", "images with such labels", do)
    fields: dict[str, Any] = {"latents.segments": segments, "annotate.segments": segments}
    if wishes.detector:
        fields |= {"annotate.bbox.kind": "onnx", "annotate.bbox.model": str(Path(wishes.detector).resolve())}
    if wishes.masks:
        kind = "sam" if Path(wishes.masks).is_dir() else "onnx"
        fields |= {"annotate.blob.kind": kind, "annotate.blob.model": str(Path(wishes.masks).resolve())}
    if wishes.detector or wishes.masks:
        fields["annotate.view_size"] = _VIEW_PX
    return fields


def _labeled(survey: Survey, segments: Sequence[str], wishes: Wishes) -> tuple[tuple[str, ...], int]:
    """(segments that come from the labels of the data, images with all of them); refuses too few."""
    made = {"bbox": wishes.detector, "blob": wishes.masks, "voken": "pixels"}
    labels = tuple(segment for segment in segments if not made.get(segment))
    labeled = sum(all(getattr(look.latents, segment) is not None for segment in labels) for look in survey.looks)
    _check_number(labeled, f"that have all of {', '.join(labels)}", "choose fewer by --segments, or label more")
    return labels, labeled


def _held_out_share(images: int) -> float:
    return round(min(max(HELD_OUT_SHARE, HELD_OUT / images), _MOST_HELD_OUT), 2)


# --------------------------------------------------------------------------------------------- vocabulary
def _sentences(survey: Survey) -> Iterator[str]:
    for look in survey.looks:
        yield look.caption
        yield from (serialize(select(look.latents, (s,)), (s,)) for s in segments_of(look.latents))


def detected_classes(detector: str) -> tuple[str, ...]:
    """The phrases that a detector's boxes may have; () without one."""
    return class_names(Path(detector)) if detector else ()


def _codec(latents: LatentsFields, vocabulary: Path) -> Codec:
    return Codec(
        tokenizer=load_tokenizer(str(vocabulary), latents.codebook_size),
        segments=latents.segments,
        vokens_per_image=latents.vokens_per_image,
        coordinate_step=latents.coordinate_step,
    )


# ------------------------------------------------------------------------------------------------ lengths
def _lengths(survey: Survey, codec: Codec, wishes: Wishes, max_boxes: int) -> tuple[list[tuple[int, str]], list[int]]:
    """((tokens, caption), tokens of the latents) of each image that was read, eos included."""
    tokenizer, captions, lengths = codec.tokenizer, [], []
    names = [len(tokenizer.encode(name)) for name in detected_classes(wishes.detector)] or [2]
    found_ones = max_boxes * (max(names) + 9)  # phrase, brackets, four numbers and what joins them and the next box
    guessed = {"bbox": found_ones * bool(wishes.detector), "blob": (found_ones + max_boxes) * bool(wishes.masks)}
    for look in survey.looks:
        captions.append((len(tokenizer.encode(look.caption)) + 1, look.caption))
        length = 2 * codec.vokens_per_image if "voken" in codec.segments else 1  # "#" between vokens, eos after them
        for segment in codec.segments:
            value = getattr(look.latents, segment)
            if segment != "voken":
                own = 0 if value is None else _tokens(look.latents, segment, codec)
                length += len(codec.separator) + (guessed.get(segment) or own)
        lengths.append(length)
    return captions, lengths


def _tokens(z: Any, segment: str, codec: Codec) -> int:
    try:
        part = codec.fit(codec.snap(select(z, (segment,))))
    except LatentsError:  # words without a character that can be written: `annotate` leaves the image out and tells it
        return 0
    return len(codec.segment_tokens(part, segment))


def _bucket(lengths: Sequence[int], margin: float) -> int:
    """A length that holds all of them, or 98 % where the rest is much longer; a multiple of 8."""
    ordered = sorted(lengths)
    usual = ordered[math.ceil(0.98 * len(ordered)) - 1]
    longest = ordered[-1] if ordered[-1] <= _RARE * usual else usual
    return round_up(math.ceil(longest * margin), 8)


# --------------------------------------------------------------------------------------------------- time
def _image_flops(config: Config, vocabulary: Path | None = None) -> float:
    name = str(vocabulary) if vocabulary else config.model.t5.vocabulary
    rows = load_tokenizer(name, config.latents.codebook_size).base_vocab_size
    return sum_parts(step_flops(config, rows)).total / config.train.batch_size


def _steps(config: Config, training: int, rate: float, minutes: float) -> tuple[int, float]:
    """(steps, minutes), as many as the time allows and the number of images deserves."""
    images = min(60 * minutes * rate, EPOCHS * training)
    steps = max(100, round(images / config.train.batch_size / 100) * 100)
    return steps, steps * config.train.batch_size / rate / 60


def _with(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config with some fields changed by their dotted path."""
    out = dict(values)
    for key, value in fields.items():
        head, _, rest = key.partition(".")
        out[head] = _with(out[head], {rest: value}) if rest else value
    return out
