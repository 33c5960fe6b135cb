"""Which annotators a config names, and how they are opened.

An opener imports what it needs itself, so that a job on labels loads no model's library.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kaleido_jax.annotate.annotator import Annotator
from kaleido_jax.annotate.fashion import FashionAnnotator
from kaleido_jax.annotate.labels import LabeledBlobs, LabeledBoxes, LabeledText
from kaleido_jax.annotate.vokens.annotator import fit_or_load, open_voken
from kaleido_jax.annotate.vokens.quantizer import load_quantizer
from kaleido_jax.config.schema import Annotate
from kaleido_jax.data.crop import square_crop
from kaleido_jax.data.sources.base import Example, Source
from kaleido_jax.errors import UserError, user_error

LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class AnnotatorSettings:
    """What annotators are opened with."""

    config: Annotate
    source: str  # key of SOURCES; the shipped garments are measured, not looked up
    quantizer: Path  # file of the vokens' quantizer
    vokens_per_image: int
    codebook_size: int  # entries of a voken's codebook
    image_size: int  # px

    def told(self, segments: Sequence[str]) -> dict[str, Any]:
        """What of it decides the latents, as JSON; no paths."""
        groups = {s: dataclasses.asdict(getattr(self.config, s)) for s in segments}
        kept = {s: {k: v for k, v in group.items() if not _changes_nothing(k)} for s, group in groups.items()}
        return kept | {"max_boxes": self.config.bbox.max_boxes, "vokens": (self.vokens_per_image, self.codebook_size)}


def open_annotators(settings: AnnotatorSettings, segments: Sequence[str], source: Source) -> list[Annotator]:
    """The annotators that fill `segments`, in an order in which each finds what it needs.

    Args:
      settings: what to open.
      segments: what to fill.
      source: the data.

    Raises:
      UserError: weights or a server that are not there, or an annotator that needs a segment nobody makes.
    """
    measured = _measured(settings, segments)
    annotators = [_open_fashion(settings, measured)] if measured else []
    for segment in segments:
        if segment not in measured:
            annotators.append(_opener(settings, segment)(settings, source))
    return _in_order(annotators)


def fit_vokens(settings: AnnotatorSettings, segments: Sequence[str], source: Source) -> None:
    """Fits the vokens' quantizer and stores it, once before any worker asks for it; nothing where there is none.

    Raises:
      UserError: too few images, or the stored one was fitted for something else.
    """
    if "voken" not in segments or settings.config.voken.kind != "quantizer":
        return
    if "voken" in _measured(settings, segments):
        fit_or_load(
            settings.quantizer,
            source=settings.source,
            image_size=settings.image_size,
            vokens_per_image=settings.vokens_per_image,
            codebook_size=settings.codebook_size,
            fit_examples=settings.config.voken.fit_examples,
        )
    else:
        _vokens(settings, source)


class Cropped:
    """The images of a source as they are annotated, without their objects; a bad one is replaced by the next."""

    def __init__(self, source: Source, image_size: int):
        """`image_size` px."""
        self.class_names, self.fingerprint = source.class_names, source.fingerprint
        self._source, self._image_size = source, image_size

    def __len__(self) -> int:
        return len(self._source)

    def id(self, index: int) -> str:
        """The id of one example."""
        return self._source.id(index)

    def label(self, index: int) -> int:
        """Index into class_names."""
        return self._source.label(index)

    def __getitem__(self, index: int) -> Example:
        for step in range(len(self)):
            try:
                example = self._source[(index + step) % len(self)]
                return square_crop(replace(example, objects=()), self._image_size)
            except UserError:  # counted when its shard is made
                continue
        raise user_error(f"none of {len(self)} images can be read", "at least one", "correct config.data.root")


def _measured(settings, segments):
    kinds = {segment: getattr(settings.config, segment).kind for segment in segments}
    return tuple(s for s in segments if settings.source == "fashion" and kinds[s] in (LABELS, "quantizer"))


def _opener(settings, segment):
    kind = getattr(settings.config, segment).kind
    if (segment, kind) not in OPENERS:
        known = ", ".join(k for s, k in OPENERS if s == segment)
        raise user_error(f"config.annotate.{segment}.kind = {kind!r}", f"one of {known}", "correct it")
    return OPENERS[segment, kind]


def _in_order(annotators):
    ordered, made, waiting = [], set(), list(annotators)
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


def _changes_nothing(name):
    # What is at a path is in the annotator's metadata, and no answer depends on the batch.
    return name in ("model", "feature_model", "batch_size")


# ------------------------------------------------------------------------------------------------ openers
def _open_fashion(settings, segments):
    quantizer = load_quantizer(settings.quantizer)[0] if "voken" in segments else None
    return FashionAnnotator(quantizer, segments)


def _labeled_text(settings, source):
    return LabeledText()


def _labeled_boxes(settings, source):
    return LabeledBoxes(settings.config.bbox.max_boxes)


def _labeled_blobs(settings, source):
    return LabeledBlobs(settings.config.bbox.max_boxes)


def _captioner(settings, source):
    from kaleido_jax.annotate.vlm.captioner import open_captioner

    return open_captioner(settings.config)


def _grounder(settings, source):
    from kaleido_jax.annotate.vlm.grounder import open_grounder

    return open_grounder(settings.config)


def _detector(settings, source):
    from kaleido_jax.annotate.vision.detector import open_detector

    return open_detector(settings.config)


def _segmenter(settings, source):
    from kaleido_jax.annotate.vision.segmenter import open_segmenter

    return open_segmenter(settings.config)


def _vokens(settings, source):
    return open_voken(
        settings.config,
        path=settings.quantizer,
        source={"name": settings.source, "examples": source.fingerprint},
        train=Cropped(source, settings.image_size),
        image_size=settings.image_size,
        vokens_per_image=settings.vokens_per_image,
        codebook_size=settings.codebook_size,
    )


Opener = Callable[[AnnotatorSettings, Source], Annotator]
OPENERS: dict[tuple[str, str], Opener] = {
    ("text", LABELS): _labeled_text,
    ("text", "openai"): _captioner,
    ("text", "transformers"): _captioner,
    ("bbox", LABELS): _labeled_boxes,
    ("bbox", "openai"): _grounder,
    ("bbox", "transformers"): _grounder,
    ("bbox", "onnx"): _detector,
    ("blob", LABELS): _labeled_blobs,
    ("blob", "sam"): _segmenter,
    ("blob", "onnx"): _segmenter,
    ("voken", "quantizer"): _vokens,
    ("voken", "seed"): _vokens,
}
