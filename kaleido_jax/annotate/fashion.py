"""The fixed inference model q(z | x, c) of the fashion source: everything is measured on the pixels.

It knows nothing of how the source drew the image, so it annotates generated images just as well.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.vokens.features import FOREGROUND_FROM, appearance_features
from kaleido_jax.annotate.vokens.quantizer import ResidualQuantizer
from kaleido_jax.data.sources.base import Example
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents import geometry
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.segments.blob import Blob
from kaleido_jax.latents.types import Latents, check_segments, select
from kaleido_jax.latents.validity import clean_phrase

VERSION = "fashion/1"  # stored with every record; raise it when a rule below changes

# Closed sets of words: (upper bound, word), the first bound above the measure wins. Set near the thirds and
# quarters of the training split, so that each word is worth its token.
SIZES = (
    (0.45, "tiny"),
    (0.56, "small"),
    (0.68, "medium"),
    (np.inf, "large"),
)  # side of the box / side of the image
TONES = ((90, "dark"), (130, "grey"), (np.inf, "bright"))  # mean tone of the garment, 0..255
SHAPES = ((0.7, "tall"), (1.4, "square"), (np.inf, "wide"))  # width / height of the box
FILLS = ((0.73, "open"), (0.85, "fitted"), (np.inf, "full"))  # garment's share of its box
SURFACES = (
    (0.29, "plain"),
    (0.38, "shaded"),
    (np.inf, "patterned"),
)  # standard deviation / mean of the tones
COLUMNS = ((430, "left"), (570.001, "center"), (np.inf, "right"))  # x of the box's center, 0..1000
ROWS = ((430, "upper"), (570.001, "middle"), (np.inf, "lower"))  # y of the box's center, 0..1000
TABLES = (SIZES, TONES, SHAPES, FILLS, SURFACES, COLUMNS, ROWS)


class FashionAnnotator:
    """The rules of this module as an annotator; the caption names the garment."""

    needs = ()

    def __init__(self, quantizer: ResidualQuantizer, segments: Sequence[str] = ("text", "bbox", "blob", "voken")):
        """Fills `segments`, each as annotate() does."""
        self.segments = check_segments(segments)
        self.metadata = {"model": "fashion", "version": VERSION}
        if "voken" in self.segments:
            self.metadata |= {"quantizer": quantizer.fingerprint}
        self._quantizer = quantizer

    def __call__(self, examples: Sequence[Example], so_far: Sequence[Latents]) -> list[Latents | Failure]:
        """One answer an example."""
        del so_far
        return [self._one(example) for example in examples]

    def _one(self, example):
        try:
            return select(annotate(example.image, example.caption, self._quantizer), self.segments)
        except UserError as error:
            return Failure(segment=self.segments[0], reason=str(error))


def annotate(image: UInt8[np.ndarray, "s s 3"], caption: str, quantizer: ResidualQuantizer | None = None) -> Latents:
    """All segments of z for one garment on black; no vokens without a quantizer.

    Raises:
      UserError: the image has no foreground, or the caption no readable character.
    """
    grey = image.mean(axis=-1)
    mask = foreground(image)
    phrase = clean_phrase(caption.lower())
    box = geometry.mask_to_box(mask)
    ellipse = geometry.mask_to_ellipse(mask)
    return Latents(
        text=describe(grey, mask, box, phrase),
        bbox=(Box(phrase=phrase, box=box),),
        blob=(Blob(phrase=phrase, blob=geometry.ellipse_to_blob(ellipse)),),
        voken=_vokens(image, quantizer),
    )


def foreground(image: UInt8[np.ndarray, "s s 3"]) -> Bool[np.ndarray, "s s"]:
    """The garment: every pixel whose mean tone reaches FOREGROUND_FROM.

    Raises:
      UserError: there is none.
    """
    mask = image.mean(axis=-1) >= FOREGROUND_FROM
    if not mask.any():
        raise user_error("an image without a garment", f"tones from {FOREGROUND_FROM} of 255", "leave it out")
    return mask


def describe(
    grey: Float[np.ndarray, "s s"], mask: Bool[np.ndarray, "s s"], box: tuple[int, int, int, int], phrase: str
) -> str:
    """The text segment: "a small bright ankle boot at the lower left, wide, full and plain"."""
    x1, y1, x2, y2 = box
    width, height = (x2 - x1) / geometry.MAX_COORDINATE, (y2 - y1) / geometry.MAX_COORDINATE
    tones = grey[mask]
    looks = (
        _word(SHAPES, width / height),
        _word(FILLS, mask.mean() / (width * height)),
        _word(SURFACES, tones.std() / tones.mean()),
    )
    size, tone = _word(SIZES, np.sqrt(width * height)), _word(TONES, tones.mean())
    place = f"{_word(ROWS, (y1 + y2) / 2)} {_word(COLUMNS, (x1 + x2) / 2)}"
    return "a {} {} {} at the {}, {}, {} and {}".format(size, tone, phrase, place, *looks)


def _word(table, measure):
    return next(word for bound, word in table if measure < bound)


def _vokens(image, quantizer):
    if quantizer is None:
        return None
    return tuple(int(code) for code in quantizer.encode(appearance_features(image)[None])[0])
