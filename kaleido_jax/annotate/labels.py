"""Labels of the data as latents: text, boxes and ellipses.

Objects that are partly outside the square crop keep the part inside. The largest come first, by the area of their box,
so that a limit keeps the most visible ones. Those without a readable label are left out; the job's tally counts them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.data.sources.base import Example, LabeledObject
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents import geometry
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.segments.blob import Blob
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.validity import LatentsError, clean_phrase, clean_text

VERSION = "labels/1"  # stored with every record; raise it when a rule below changes what a record holds


class LabeledText:
    """The long description in the data, or the caption if there is none."""

    segments = ("text",)
    needs = ()
    sees = "view"
    metadata = {"model": "labels", "version": VERSION}

    def __call__(self, examples: Sequence[Example], so_far: Sequence[Latents]) -> list[Latents | Failure]:
        """One answer per example."""
        del so_far
        return [_or_failure("text", self._one, example) for example in examples]

    def _one(self, example: Example) -> Latents | Failure:
        words = example.description or example.caption
        if not words:
            return Failure(segment="text", reason="the data has no caption of it")
        return Latents(text=clean_text(words))


class LabeledBoxes:
    """The boxes in the data."""

    segments = ("bbox",)
    needs = ()
    sees = "view"

    def __init__(self, max_objects: int) -> None:
        """Keeps the `max_objects` largest per image."""
        self.metadata = {"model": "labels", "version": VERSION}
        self._max_objects = max_objects

    def __call__(self, examples: Sequence[Example], so_far: Sequence[Latents]) -> list[Latents | Failure]:
        """One answer per example."""
        del so_far
        return [_or_failure("bbox", self._one, example) for example in examples]

    def _one(self, example: Example) -> Latents | Failure:
        size_px = example.image.shape[0]
        boxed = [o for o in example.objects if o.box is not None]
        chosen = largest(_named(boxed), self._max_objects)
        if not chosen:
            return Failure(segment="bbox", reason="the data has no box in the square crop of it")
        return Latents(bbox=tuple(Box(phrase=o.phrase, box=_rounded(o, size_px)) for o in chosen))


class LabeledBlobs:
    """The ellipses with the second moments of the masks in the data."""

    segments = ("blob",)
    needs = ()
    sees = "view"

    def __init__(self, max_objects: int) -> None:
        """Keeps the `max_objects` largest per image."""
        self.metadata = {"model": "labels, second moments", "version": VERSION}
        self._max_objects = max_objects

    def __call__(self, examples: Sequence[Example], so_far: Sequence[Latents]) -> list[Latents | Failure]:
        """One answer per example."""
        del so_far
        return [_or_failure("blob", self._one, example) for example in examples]

    def _one(self, example: Example) -> Latents | Failure:
        masked = [o for o in example.objects if o.mask is not None and o.mask.any()]
        chosen = largest(_named(masked), self._max_objects)
        if not chosen:
            return Failure(segment="blob", reason="the data has no mask in the square crop of it")
        blobs = ((o, geometry.ellipse_to_blob(geometry.mask_to_ellipse(o.mask))) for o in chosen)
        return Latents(blob=tuple(Blob(phrase=o.phrase, blob=blob) for o, blob in blobs))


def phrase_of(labeled: LabeledObject) -> str:
    """The label as a phrase; "" if it has no readable character."""
    try:
        return clean_phrase(labeled.phrase)
    except LatentsError:
        return ""


def largest(objects: Sequence[LabeledObject], count: int) -> list[LabeledObject]:
    """The `count` objects with the largest boxes (or masks, without a box), largest first; ties in the given order."""
    return sorted(objects, key=_area, reverse=True)[:count]


def _named(objects: Sequence[LabeledObject]) -> list[LabeledObject]:
    """The objects of whose label a phrase can be made, with it.

    Raises:
      UserError: there are objects, but none such.
    """
    named = [replace(o, phrase=phrase) for o in objects if (phrase := phrase_of(o))]
    if objects and not named:
        found = f"no label with a readable character ({objects[0].phrase[:60]!r})"
        raise user_error(found, "words", "name the objects")
    return named


def _rounded(labeled: LabeledObject, size_px: int) -> tuple[int, int, int, int]:
    return geometry.round_box(geometry.to_thousandths(labeled.box, size_px))


def _area(labeled: LabeledObject) -> float:
    if labeled.box is None:
        return float(labeled.mask.sum())
    x1, y1, x2, y2 = labeled.box
    return (x2 - x1) * (y2 - y1)


def _or_failure(segment: str, annotate: Callable[[Example], Latents | Failure], example: Example) -> Latents | Failure:
    try:
        return annotate(example)
    except UserError as error:  # words without a readable character
        return Failure(segment=segment, reason=str(error))
