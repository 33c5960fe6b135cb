"""Where images and captions come from: random access by index, the shipped garments, and what others have labeled.

A source keeps its tables in memory and reads an image when it is asked for. Its tables must be whole, or it does not
open; one bad row or image is a UserError of that index alone, which the annotation job counts as a failure.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
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
class LabeledObject:
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
    objects: tuple[LabeledObject, ...] = ()
    credit: str = ""  # whom to name where the image is shown, and its license


class Source(Protocol):
    """What every source offers."""

    class_names: tuple[str, ...]  # of label(); empty where images have no class
    fingerprint: str  # of its tables: another one, other examples

    def __len__(self) -> int: ...

    def id(self, index: int) -> str:
        """The id of one example, without reading it."""
        ...

    def __getitem__(self, index: int) -> Example:
        """One example.

        Raises:
          UserError: its row or its image is bad.
        """
        ...

    def label(self, index: int) -> int:
        """Index into class_names of one example, where there are classes."""
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
    fingerprint = "fashion/1"  # raise it when the drawing below changes

    def __init__(self, split: str, *, num_examples: int, seed: int, image_size: int = 32):
        """Example i shows garment i % n of the split (n = 5000 train, 1000 test), classes taking turns."""
        self._name, self._seed = split, seed
        self._num_examples, self._image_size = num_examples, image_size
        self._garments, self._labels = _load_garments(split)

    def __len__(self) -> int:
        return self._num_examples

    def id(self, index: int) -> str:
        """The id of one example."""
        return f"fashion/{self._name}/{check_index(index, self._num_examples):06d}"

    def __getitem__(self, index: int) -> Example:
        index = check_index(index, self._num_examples)
        garment = self._garments[index % len(self._garments)]
        canvas = _place(garment, self._image_size, _generator(self._seed, self._name, index))
        return Example(
            id=self.id(index),
            image=np.repeat(canvas[..., None], 3, axis=-1),
            caption=self.class_names[self.label(index)],
        )

    def label(self, index: int) -> int:
        """Index into class_names of one example."""
        return int(self._labels[check_index(index, self._num_examples) % len(self._labels)])


# ------------------------------------------------------------------------------------------------ opening
def _fashion(split, num_examples, seed, image_size, **_):
    if split not in SPLITS:
        raise user_error(f"split {split!r}", f"one of {', '.join(SPLITS)}", "correct the name")
    if num_examples < 1 or image_size < 8:
        raise user_error(f"{num_examples} examples of {image_size} px", "at least 1 of 8 px", "raise the number")
    return FashionSource(split, num_examples=num_examples, seed=seed, image_size=image_size)


def _coco(split, root, labels, images, licenses, **_):
    from kaleido_jax.data.sources.coco import CocoSource

    return CocoSource(_folder(root), split=split, labels=labels, images=images, licenses=licenses)


def _gbc(split, root, labels, images, **_):
    from kaleido_jax.data.sources.tables import GbcSource

    return GbcSource(_folder(root), split=split, labels=labels, images=images)


def _table(split, root, labels, images, columns, **_):
    from kaleido_jax.data.sources.tables import TableSource

    return TableSource(_folder(root), split=split, labels=labels, images=images, columns=columns)


def _image_folder(split, root, labels, **_):
    from kaleido_jax.data.sources.tables import FolderSource

    return FolderSource(_folder(root), split=split, labels=labels)


SOURCES: dict[str, Callable[..., Source]] = {
    "fashion": _fashion,
    "coco": _coco,
    "gbc": _gbc,
    "table": _table,
    "folder": _image_folder,
}


def open_source(
    name: str,
    split: str = "",
    *,
    num_examples: int = 0,
    seed: int = 0,
    image_size: int = 32,
    root: str | None = None,
    labels: tuple[str, ...] = (),
    images: str = "",
    columns: tuple[str, str, str] = ("image", "caption", "description"),
    licenses: tuple[int, ...] = (),
) -> Source:
    """A source with random access; what a source has no use for is ignored.

    Args:
      name: key of SOURCES.
      split: fashion: "train" or "test", no garment is in both. Others: what the data calls it; "" = all.
      num_examples: fashion: how many examples it has.
      seed: fashion: chooses scales, places and tones.
      image_size: fashion: px, side of the square images; at least 8. Others keep the size of their files.
      root: folder of the data.
      labels: files of labels below root; () = where the data set has them by custom.
      images: folder of the images below root; "" = where the data set has them by custom.
      columns: table: names of the columns of image file, caption and long description (the last may be absent).
      licenses: coco: ids of the photos' licenses to keep; () = all.

    Raises:
      UserError: unknown name or split, sizes out of range, or tables that are missing or damaged.
    """
    if name not in SOURCES:
        raise user_error(f"data source {name!r}", f"one of {', '.join(SOURCES)}", "correct the name")
    return SOURCES[name](
        split=split,
        num_examples=num_examples,
        seed=seed,
        image_size=image_size,
        root=root,
        labels=tuple(labels),
        images=images,
        columns=tuple(columns),
        licenses=tuple(licenses),
    )


def _folder(root):
    if not root or not Path(root).is_dir():
        raise user_error(f"config.data.root = {root!r}", "a folder", "set it to where the data are")
    return Path(root)


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The photo in a file.

    Raises:
      UserError: it is missing or cannot be decoded. The message has no path, so that equal failures count as one.
    """
    from kaleido_jax.data.crop import decode_photo

    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise user_error(f"image file: {reason}", "a readable file", "fetch it, or leave the row out") from error
    return decode_photo(content)


def below(folder: Path, name) -> Path:
    """The file that a row of a table names.

    Raises:
      UserError: the name is none, or leads out of the folder.
    """
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise user_error("a row whose image is no name of a file", "a path below the folder of images", "correct it")
    return folder / name


def check_index(index: int, length: int) -> int:
    """The index as int; IndexError, which also ends a for loop over a source, if it is not below length."""
    if not 0 <= index < length:
        raise IndexError(f"example {index} of a source with {length}")
    return int(index)


# ------------------------------------------------------------------------------------------------ garments
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
