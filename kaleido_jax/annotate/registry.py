"""Registry of annotators: which annotator a config names, and how it is opened.

An opener imports what it needs itself, so that a job with labels loads no model library.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kaleido_jax.annotate.annotator import Annotator
from kaleido_jax.annotate.labels import LabeledBlobs, LabeledBoxes, LabeledText
from kaleido_jax.annotate.vokens.annotator import open_voken
from kaleido_jax.annotate.vokens.features import open_feature
from kaleido_jax.annotate.vokens.quantizer import load_quantizer
from kaleido_jax.config.schema import Annotate
from kaleido_jax.data.crop import square_crop
from kaleido_jax.data.held_out import held_out
from kaleido_jax.data.sources.base import Example, Source, SourceKind, SourceSettings
from kaleido_jax.errors import UserError, user_error


@dataclass(frozen=True, kw_only=True)
class AnnotatorSettings:
    """What annotators are opened with."""

    config: Annotate
    source: SourceKind
    fit_on: SourceSettings  # of the images that the vokens' quantizer is fitted on; the same for all splits
    quantizer: Path  # file of the vokens' quantizer
    vokens_per_image: int
    codebook_size: int  # entries of a voken's codebook
    image_size: int  # px of the records
    held_out_share: float = 0.0  # of the images, which the quantizer is not fitted on

    def metadata(self, segments: Sequence[str]) -> dict[str, Any]:
        """The settings that decide the latents, as JSON; no paths."""
        # The annotator's metadata has the content of paths, and no answer depends on the batch.
        free = ("model", "feature_model", "batch_size")
        groups = {s: dataclasses.asdict(getattr(self.config, s)) for s in segments}
        kept = {s: {k: v for k, v in group.items() if k not in free} for s, group in groups.items()}
        return kept | {"max_boxes": self.config.bbox.max_boxes, "vokens": (self.vokens_per_image, self.codebook_size)}


Opener = Callable[[AnnotatorSettings], Annotator]


def open_annotators(settings: AnnotatorSettings, segments: Sequence[str]) -> list[Annotator]:
    """The annotators that fill `segments`, in an order in which each finds what it needs.

    Raises:
      UserError: weights or a server are missing, or an annotator needs a segment that nothing makes.
    """
    waiting = [_opener(settings, segment)(settings) for segment in segments]
    ordered: list[Annotator] = []
    made: set[str] = set()
    while waiting:
        ready = [a for a in waiting if made.issuperset(a.needs)]
        if not ready:
            needs = ", ".join(sorted({n for a in waiting for n in a.needs} - made))
            what = ", ".join(s for a in waiting for s in a.segments)
            raise user_error(f"an annotator of {what} without {needs}", "what it needs", "add it to annotate.segments")
        ordered += ready
        made.update(s for a in ready for s in a.segments)
        waiting = [a for a in waiting if a not in ready]
    return ordered


def check_models(config: Annotate, segments: Sequence[str]) -> None:
    """Checks that the models of the annotators of `segments` are on this machine, before anything is written or fitted.

    ONNX models are opened; of others, which may be many gigabytes, the files are looked for.

    Raises:
      UserError: a model, or a file or package that it needs, is missing or unsuitable.
    """
    for segment in segments:
        kind = getattr(config, segment).kind
        if (segment, kind) in CHECKS:
            CHECKS[segment, kind](config)


def fit_vokens(settings: AnnotatorSettings, segments: Sequence[str], *, started: bool) -> None:
    """Fits and stores the vokens' quantizer, if the job has one, before any worker needs it.

    Args:
      settings: of the annotators.
      segments: that the job makes.
      started: whether there are records already; otherwise a quantizer of other images is fitted anew.

    Raises:
      UserError: too few images, or the stored one was fitted for something else.
    """
    if "voken" in segments and settings.config.voken.kind == "quantizer":
        _vokens(settings, started)


class Cropped:
    """The square crops of a source, without their objects; a bad or held-out image is replaced by the next one."""

    def __init__(self, source: Source, image_size: int, held_out_share: float = 0.0) -> None:
        """Crops to `image_size` px."""
        self.class_names, self.fingerprint = source.class_names, source.fingerprint
        self._source, self._image_size, self._held_out_share = source, image_size, held_out_share

    def __len__(self) -> int:
        return len(self._source)

    def id(self, index: int) -> str:
        """The id of one example."""
        return self._source.id(index)

    def label(self, index: int) -> int:
        """Index into class_names."""
        return self._source.label(index)

    def __getitem__(self, index: int) -> Example:
        first = ""
        for step in range(len(self)):
            number = (index + step) % len(self)
            try:
                if self._held_out_share and held_out(self._source, number, self._held_out_share):
                    continue
                return square_crop(replace(self._source[number], objects=()), self._image_size)
            except Exception as error:  # noqa: BLE001  # it is counted when the example's shard is made
                first = first or (str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
                continue
        reason = f"the first: {first}" if first else "correct config.data.root"
        raise user_error(f"none of {len(self)} images can be read", "at least one", reason)


def _opener(settings: AnnotatorSettings, segment: str) -> Opener:
    kind = getattr(settings.config, segment).kind
    if (segment, kind) not in OPENERS:
        known = ", ".join(k for s, k in OPENERS if s == segment)
        raise user_error(f"config.annotate.{segment}.kind = {kind!r}", f"one of {known}", "correct it")
    return OPENERS[segment, kind]


# ------------------------------------------------------------------------------------------------ openers
def _labeled_text(settings: AnnotatorSettings) -> Annotator:
    return LabeledText()


def _labeled_boxes(settings: AnnotatorSettings) -> Annotator:
    return LabeledBoxes(settings.config.bbox.max_boxes)


def _labeled_blobs(settings: AnnotatorSettings) -> Annotator:
    return LabeledBlobs(settings.config.bbox.max_boxes)


def _captioner(settings: AnnotatorSettings) -> Annotator:
    from kaleido_jax.annotate.vlm.captioner import open_captioner

    return open_captioner(settings.config)


def _grounder(settings: AnnotatorSettings) -> Annotator:
    from kaleido_jax.annotate.vlm.grounder import open_grounder

    return open_grounder(settings.config)


def _detector(settings: AnnotatorSettings) -> Annotator:
    from kaleido_jax.annotate.vision.detector import open_detector

    return open_detector(settings.config)


def _segmenter(settings: AnnotatorSettings) -> Annotator:
    from kaleido_jax.annotate.vision.segmenter import open_segmenter

    return open_segmenter(settings.config)


def _vokens(settings: AnnotatorSettings, started: bool = True) -> Annotator:
    source, share = settings.source.open(settings.fit_on), settings.held_out_share
    without = {"held_out_share": share} if share else {}
    return open_voken(
        settings.config,
        path=settings.quantizer,
        source={"name": settings.source.name, "examples": source.fingerprint} | without,
        # Other examples of a source that generates them are other settings; a folder has new photos.
        other_examples="refuse" if settings.source.splits else "keep" if started else "fit",
        train=Cropped(source, settings.image_size, share),
        image_size=settings.image_size,
        vokens_per_image=settings.vokens_per_image,
        codebook_size=settings.codebook_size,
    )


OPENERS: dict[tuple[str, str], Opener] = {
    ("text", "labels"): _labeled_text,
    ("text", "openai"): _captioner,
    ("text", "transformers"): _captioner,
    ("bbox", "labels"): _labeled_boxes,
    ("bbox", "openai"): _grounder,
    ("bbox", "transformers"): _grounder,
    ("bbox", "onnx"): _detector,
    ("blob", "labels"): _labeled_blobs,
    ("blob", "sam"): _segmenter,
    ("blob", "onnx"): _segmenter,
    ("voken", "quantizer"): _vokens,
    ("voken", "seed"): _vokens,
}


# ------------------------------------------------------------------------------------------------- checks
def _check_transformers(model: str | None, field: str) -> None:
    from kaleido_jax.annotate.torch_models import read_config

    if model is None:
        raise user_error(f"config.annotate.{field} is not set", "a folder with config.json and weights", "set it")
    read_config(Path(model))
    if not any(Path(model).glob("*.safetensors")):
        do = "download the model as safetensors and name its folder"
        raise user_error(f"no *.safetensors in {model}", "a folder with config.json and weights", do)


def _check_detector(config: Annotate) -> None:
    from kaleido_jax.annotate.vision.detector import open_detector

    open_detector(config)


def _check_segmenter(config: Annotate) -> None:
    from kaleido_jax.annotate.vision.segmenter import open_segmenter

    open_segmenter(config)


def _check_quantizer(config: Annotate) -> None:
    voken = config.voken
    if voken.feature == "transformers":
        _check_transformers(voken.feature_model, "voken.feature_model")
    else:
        open_feature(voken.feature, voken.feature_model)
    if voken.model:
        load_quantizer(Path(voken.model).expanduser())


def _check_seed(config: Annotate) -> None:
    from kaleido_jax.annotate.vokens.seed import seed_file

    seed_file(config)


CHECKS: dict[tuple[str, str], Callable[[Annotate], None]] = {
    ("text", "transformers"): lambda config: _check_transformers(config.text.model, "text.model"),
    ("bbox", "transformers"): lambda config: _check_transformers(config.bbox.model, "bbox.model"),
    ("bbox", "onnx"): _check_detector,
    ("blob", "sam"): lambda config: _check_transformers(config.blob.model, "blob.model"),
    ("blob", "onnx"): _check_segmenter,
    ("voken", "quantizer"): _check_quantizer,
    ("voken", "seed"): _check_seed,
}
