"""Where images and captions come from: random access, each example a function of (seed, split, index)."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Protocol

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from kaleido_jax.errors import user_error

SPLITS = ("train", "test")
_CANVAS_PX = 32  # the canvas on which the ranges below are given; other sizes scale with it
_GARMENT_PX = (16, 30)  # smallest and largest side of a garment's tile, both included
_BRIGHTNESS = (0.45, 1.0)  # factor on the whole garment
_CLOTH_FROM = 8  # original tones below are scanner noise around the garment, not cloth
_DARKEST_CLOTH = 48  # black cloth is lifted to this, so that thresholding parts it from the black background


@dataclass(frozen=True, kw_only=True)
class LabelledObject:
    """One object that people marked in an image; lengths in px of that image, y down."""

    phrase: str
    box: tuple[float, float, float, float] | None = None  # (x1, y1, x2, y2)
    mask: Bool[np.ndarray, "h w"] | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image with its caption, and what people said about it."""

    id: str  # unique within the source, e.g. "fashion/train/000017"
    image: UInt8[np.ndarray, "h w 3"]  # of any shape as a source gives it; square once it is cropped
    caption: str
    description: str | None = None  # a long text that the data has, for the text segment
    objects: tuple[LabelledObject, ...] = ()


class Source(Protocol):
    """What every source offers."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def label(self, index: int) -> int:
        """Index into class_names of one example."""
        ...


class FashionSource:
    """Fashion-MNIST garments at random scale, place and tone on a black canvas; as many as asked for."""

    class_names = (
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

    def __init__(self, split: str, *, num_examples: int, seed: int, image_size: int = 32):
        """Example i shows garment i % n of the split (n = 5000 train, 1000 test), classes taking turns."""
        self._name, self._seed = split, seed
        self._num_examples, self._image_size = num_examples, image_size
        self._garments, self._labels = _load_garments(split)

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> Example:
        index = _check_index(index, self._num_examples)
        garment = self._garments[index % len(self._garments)]
        canvas = _place(garment, self._image_size, _generator(self._seed, self._name, index))
        return Example(
            id=f"fashion/{self._name}/{index:06d}",
            image=np.repeat(canvas[..., None], 3, axis=-1),
            caption=self.class_names[self.label(index)],
        )

    def label(self, index: int) -> int:
        """Index into class_names of one example."""
        return int(self._labels[_check_index(index, self._num_examples) % len(self._labels)])


SOURCES: dict[str, Callable[..., Source]] = {"fashion": FashionSource}


def open_source(name: str, split: str, *, num_examples: int, seed: int, image_size: int = 32) -> Source:
    """A shipped source with random access.

    Args:
      name: key of SOURCES.
      split: "train" or "test"; no garment is in both.
      num_examples: how many examples it has.
      seed: chooses scales, places and tones.
      image_size: px, side of the square images; at least 8.

    Raises:
      UserError: unknown name or split, or sizes out of range.
    """
    if name not in SOURCES:
        raise user_error(f"data source {name!r}", f"one of {', '.join(SOURCES)}", "correct the name")
    if split not in SPLITS:
        raise user_error(f"split {split!r}", f"one of {', '.join(SPLITS)}", "correct the name")
    if num_examples < 1 or image_size < 8:
        raise user_error(f"{num_examples} examples of {image_size} px", "at least 1 of 8 px", "raise the number")
    return SOURCES[name](split, num_examples=num_examples, seed=seed, image_size=image_size)


def _load_garments(split):
    packed = resources.files("kaleido_jax").joinpath("assets/fashion/fashion_mnist_mini.npz").read_bytes()
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    # The file is sorted by class; taking turns gives every prefix, however short, all the classes.
    turns = np.argsort(labels, kind="stable").reshape(len(FashionSource.class_names), -1).T.ravel()
    return images[turns], labels[turns]


def _generator(seed, split, index):
    # Philox is counter based: nearby (seed, split, index) give unrelated streams, on every machine the same.
    sequence = np.random.SeedSequence((seed, SPLITS.index(split), index))
    return np.random.Generator(np.random.Philox(sequence))


def _place(garment, image_size, rng):
    smallest, largest = (round(side * image_size / _CANVAS_PX) for side in _GARMENT_PX)
    side = int(rng.integers(smallest, largest + 1))
    x, y = rng.integers(0, image_size - side + 1, size=2)
    brightness = rng.uniform(*_BRIGHTNESS)
    # Pillow's bilinear filter averages when it shrinks and, unlike Lanczos, leaves no ringing in the black.
    tile = Image.fromarray(_lift(garment)).resize((side, side), Image.Resampling.BILINEAR)
    canvas = np.zeros((image_size, image_size), np.uint8)
    canvas[y : y + side, x : x + side] = np.rint(np.asarray(tile) * brightness).astype(np.uint8)
    return canvas


def _lift(garment):
    lifted = _DARKEST_CLOTH + garment * ((255 - _DARKEST_CLOTH) / 255)
    return np.where(garment < _CLOTH_FROM, 0, np.rint(lifted)).astype(np.uint8)


def _check_index(index, length):
    if not 0 <= index < length:
        raise IndexError(f"example {index} of a source with {length}")  # also ends a for loop over the source
    return int(index)
