"""Fashion-MNIST garments at random scale, position and tone on a black canvas, in any number, with exact labels.

Text, box and mask are measured on the pixels, not taken from the drawing. The text segment uses only the closed sets of
words below.
"""

import io
from importlib import resources

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from kaleido_jax import array_types as at
from kaleido_jax.data.sources import register
from kaleido_jax.data.sources.base import Example, LabeledObject, SourceSettings, check_index
from kaleido_jax.errors import user_error
from kaleido_jax.latents import geometry
from kaleido_jax.latents.validity import clean_phrase
from kaleido_jax.runtime.files import fingerprint

VERSION = "fashion/2"  # raise it when the drawing or the words change
SPLITS = ("train", "test")
CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
FOREGROUND_FROM = 16  # a pixel of at least this tone (0..255) belongs to the garment; the background is black

_CANVAS_PX = 32  # the canvas on which the ranges below are given; other sizes scale with it
_SMALLEST_CANVAS_PX = 8
_GARMENT_PX = (16, 30)  # smallest and largest side of a garment's tile, inclusive
_BRIGHTNESS = (0.45, 1.0)  # factor on the whole garment
_CLOTH_FROM = 8  # original tones below are scanner noise around the garment, not cloth
_DARKEST_CLOTH = 48  # black cloth is raised to this tone, so that a threshold separates it from the background

# Closed sets of words: (upper bound, word); the first bound above the measure counts. Bounds are near the thirds and
# quarters of the training split, so that each word carries information.
Words = tuple[tuple[float, str], ...]
SIZES: Words = ((0.45, "tiny"), (0.56, "small"), (0.68, "medium"), (np.inf, "large"))  # box's side / image's side
TONES: Words = ((90.0, "dark"), (130.0, "grey"), (np.inf, "bright"))  # mean tone of the garment, 0..255
SHAPES: Words = ((0.7, "tall"), (1.4, "square"), (np.inf, "wide"))  # width / height of the box
FILLS: Words = ((0.73, "open"), (0.85, "fitted"), (np.inf, "full"))  # garment's share of its box
SURFACES: Words = ((0.29, "plain"), (0.38, "shaded"), (np.inf, "patterned"))  # standard deviation / mean of the tones
COLUMNS: Words = ((430.0, "left"), (570.001, "center"), (np.inf, "right"))  # x of the box's center, 0..1000
ROWS: Words = ((430.0, "upper"), (570.001, "middle"), (np.inf, "lower"))  # y of the box's center, 0..1000
TABLES = (SIZES, TONES, SHAPES, FILLS, SURFACES, COLUMNS, ROWS)


class FashionSource:
    """Example i shows garment i % n of its split (n = 5000 train, 1000 test), cycling through the classes."""

    class_names: tuple[str, ...] = CLASS_NAMES

    def __init__(self, settings: SourceSettings) -> None:
        """No garment is in both splits.

        Raises:
          UserError: unknown split, or images too small for a garment.
        """
        data, size = settings.data, settings.image_size
        if data.split not in SPLITS:
            raise user_error(f"split {data.split!r}", f"one of {', '.join(SPLITS)}", "correct config.data.split")
        if size < _SMALLEST_CANVAS_PX:
            do = "raise config.annotate.image_size or the denoiser's"
            raise user_error(f"garments of {size} px", f"at least {_SMALLEST_CANVAS_PX} px", do)
        self._split, self._seed, self._image_size = data.split, settings.seed, size
        self._num_examples = data.fashion.num_train if data.split == "train" else data.fashion.num_test
        self._garments, self._labels = _load_garments(data.split)
        self.fingerprint = fingerprint(f"{VERSION} {data.split} {settings.seed} {size}")

    def __len__(self) -> int:
        return self._num_examples

    def id(self, index: int) -> str:
        """The id of one example, e.g. "fashion/train/000017"."""
        return f"fashion/{self._split}/{check_index(index, self._num_examples):06d}"

    def label(self, index: int) -> int:
        """Index into class_names of one example."""
        return int(self._labels[check_index(index, self._num_examples) % len(self._labels)])

    def __getitem__(self, index: int) -> Example:
        index = check_index(index, self._num_examples)
        garment = self._garments[index % len(self._garments)]
        # Philox is counter-based: nearby (seed, split, index) give unrelated streams, the same on every machine.
        sequence = np.random.SeedSequence((self._seed, SPLITS.index(self._split), index))
        canvas = _draw(garment, self._image_size, np.random.Generator(np.random.Philox(sequence)))
        return labeled(self.id(index), np.repeat(canvas[..., None], 3, axis=-1), CLASS_NAMES[self.label(index)])


# --------------------------------------------------------------------------------------------- the labels
def labeled(example_id: str, image: at.SquareImage, caption: str) -> Example:
    """One garment on black, with the labels measured on its pixels.

    Raises:
      UserError: the image has no foreground.
    """
    grey = image.mean(axis=-1)
    mask = grey >= FOREGROUND_FROM
    if not mask.any():
        raise user_error("an image without a garment", f"tones from {FOREGROUND_FROM} of 255", "leave it out")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Example(
        id=example_id,
        image=image,
        caption=caption,
        description=describe(grey, mask, clean_phrase(caption.lower())),
        objects=(LabeledObject(phrase=clean_phrase(caption.lower()), box=box, mask=mask),),
    )


def describe(grey: Float[np.ndarray, "s s"], mask: at.ImageMask, phrase: str) -> str:
    """The text segment: "a small bright ankle boot at the lower left, wide, full and plain"."""
    x1, y1, x2, y2 = geometry.mask_to_box(mask)
    width, height = (x2 - x1) / geometry.MAX_COORDINATE, (y2 - y1) / geometry.MAX_COORDINATE
    tones = grey[mask]
    looks = (
        _word(SHAPES, width / height),
        _word(FILLS, mask.mean() / (width * height)),
        _word(SURFACES, tones.std() / tones.mean()),
    )
    size, tone = _word(SIZES, np.sqrt(width * height)), _word(TONES, tones.mean())
    position = f"{_word(ROWS, (y1 + y2) / 2)} {_word(COLUMNS, (x1 + x2) / 2)}"
    return "a {} {} {} at the {}, {}, {} and {}".format(size, tone, phrase, position, *looks)


def _word(table: Words, measure: float) -> str:
    return next(word for bound, word in table if measure < bound)


# -------------------------------------------------------------------------------------------- the drawing
def _load_garments(split: str) -> tuple[UInt8[np.ndarray, "n h w"], Int[np.ndarray, "n"] | UInt8[np.ndarray, "n"]]:
    packed = resources.files("kaleido_jax").joinpath("assets/fashion/fashion_mnist_mini.npz").read_bytes()
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    # The file is sorted by class; cycling gives all classes even to a short prefix.
    turns = np.argsort(labels, kind="stable").reshape(len(CLASS_NAMES), -1).T.ravel()
    return images[turns], labels[turns]


def _draw(garment: UInt8[np.ndarray, "h w"], image_size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "s s"]:
    smallest, largest = (round(side * image_size / _CANVAS_PX) for side in _GARMENT_PX)
    side = int(rng.integers(smallest, largest + 1))
    x, y = rng.integers(0, image_size - side + 1, size=2)
    brightness = rng.uniform(*_BRIGHTNESS)
    lifted = _DARKEST_CLOTH + garment * ((255 - _DARKEST_CLOTH) / 255)
    cloth = np.where(garment < _CLOTH_FROM, 0, np.rint(lifted)).astype(np.uint8)
    # Pillow's bilinear filter averages when it shrinks and, unlike Lanczos, does not ring in the black.
    tile = Image.fromarray(cloth).resize((side, side), Image.Resampling.BILINEAR)
    canvas = np.zeros((image_size, image_size), np.uint8)
    canvas[y : y + side, x : x + side] = np.rint(np.asarray(tile) * brightness).astype(np.uint8)
    return canvas


register("fashion", FashionSource, splits=SPLITS)
