"""Source, the protocol of images with captions: what it gives, what it is opened with, how it becomes records.

A source has random access by index. It keeps its tables in memory and reads each image on request. It does not open if
a table is damaged; a bad row or image is a UserError of that index alone, which the annotation job counts as a failure.
"""

import functools
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kaleido_jax import array_types as at
from kaleido_jax.config.schema import Data
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.files import fingerprint, refuse_lfs_pointer
from kaleido_jax.runtime.text import readable, uniform

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabeledObject:
    """One labeled object in an image; lengths in px of that image, y down."""

    phrase: str
    box: tuple[float, float, float, float] | None = None  # (x1, y1, x2, y2)
    mask: at.ImageMask | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image with its caption and labels."""

    id: str  # unique within the source, e.g. "emoji/train/000017"
    image: at.Image  # of any shape from a source; square after the crop
    caption: str
    description: str | None = None  # a long text in the data, for the text segment
    objects: tuple[LabeledObject, ...] = ()
    credit: str = ""  # attribution and license, for showing the image
    shorter_side_px: int = 0  # of the image before it was cropped and resized; 0 = it is not cropped yet


@runtime_checkable
class Source(Protocol):
    """What every source offers."""

    class_names: tuple[str, ...]  # of label(); empty if images have no class
    fingerprint: str  # changes with everything that decides its examples, except their number

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
        """Index into class_names of one example.

        Raises:
          UserError: there are no classes.
        """
        ...


@runtime_checkable
class GrowingSource(Source, Protocol):
    """A source that knows its examples one by one: records of it can be extended, and a share of it held out."""

    def version(self, index: int) -> str:
        """Changes with what decides one example: its labels, and the size of its image file. Decodes no image."""
        ...

    def image_bytes(self, index: int) -> bytes:
        """The encoded image of one example.

        Raises:
          UserError: its row is bad or its file cannot be read.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """What a source is opened with; can be sent to another process."""

    data: Data  # config.data; its `split` is one of the kind's, if the kind has any
    seed: int  # of generated examples
    image_size: int  # px of generated examples; other sources keep the size of their files

    @property
    def root(self) -> Path:
        """The folder config.data.root.

        Raises:
          UserError: it is not set, or is not a folder.
        """
        root = self.data.root
        if not root or not Path(root).is_dir():
            raise user_error(f"config.data.root = {root!r}", "a folder", "set it to the folder of the data")
        return Path(root)


Opener = Callable[[SourceSettings], Source]


@dataclass(frozen=True, kw_only=True)
class SourceKind:
    """A registered kind of source, and how it becomes records."""

    name: str  # config.data.source
    open: Opener  # at the top level of a module, so that worker processes can import it
    # Splits that each become a folder of records. A kind with splits is generated: it needs no config.data.root, and
    # `train` makes missing records. () = `annotate` makes the records of config.data.split.
    splits: tuple[str, ...] = ()


def with_uniform_words(example: Example) -> Example:
    """The example with caption, description and labels as records hold them."""
    return replace(
        example,
        caption=uniform(readable(example.caption)),
        description=example.description and uniform(example.description),
        objects=tuple(replace(labeled, phrase=uniform(labeled.phrase)) for labeled in example.objects),
    )


# ------------------------------------------------------------------------------------------ for all sources
def below(folder: Path, name: Any) -> Path:
    """The file that a row of a table names; backslashes are Windows's separators where no file has them in its name.

    Raises:
      UserError: it is not a file name, or leads out of the folder.
    """
    possible = isinstance(name, str) and name and "\0" not in name
    if possible and "\\" in name and not os.path.lexists(folder / name):
        name = name.replace("\\", "/")
    if not possible or Path(name).is_absolute() or ".." in Path(name).parts:
        raise user_error("a row whose image is not a file name", "a path below the folder of images", "correct it")
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise user_error("a row whose image is not a file name (half a character)", "text", "correct it") from error
    return folder / name


def is_file_below(folder: Path, name: Any) -> bool:
    """Whether a row of a table names a file that is there."""
    try:
        return os.path.isfile(below(folder, name))  # unlike Path's, False where a name is too long for a file
    except UserError:
        return False


def file_version(path: Path, *labels: str) -> str:
    """The version of an example with these labels whose image is a file of its own."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        size = -1
    return fingerprint("\n".join([*labels, str(size)]))


def check_index(index: int, length: int) -> int:
    """The index as int; raises IndexError, which also ends a for loop over a source, if it is not below length."""
    if not 0 <= index < length:
        raise IndexError(f"example {index} of a source with {length}")
    return int(index)


def read_labels(path: Path) -> bytes:
    """The content of a file of labels.

    Raises:
      UserError: it cannot be read, or is a git-LFS pointer.
    """
    try:
        refuse_lfs_pointer(path)
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def lines_of(content: bytes, path: Path) -> list[str]:
    """The lines of a file that people edit: any ends of lines, a byte order mark or none; none is blank at the end.

    Only ends of lines end a line, not the other characters at which str.splitlines splits. `path` is for messages.

    Raises:
      UserError: it is not UTF-8.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise user_error(f"{path} is not UTF-8", "text in UTF-8", "convert it") from error
    lines = re.split("\r\n|\r|\n", text)
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def class_lines(content: bytes, path: Path) -> list[str]:
    """The lines of a file with one class a line, whose numbers are the classes'.

    Raises:
      UserError: it is not UTF-8, or has a blank line before its end, which may be a class without a name or none.
    """
    lines = lines_of(content, path)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            do = "write a name there, or remove the line if it stands for no class"
            raise user_error(f"{path} with nothing in line {number}", "one class a line", do)
    return lines


@functools.cache
def warn_once(text: str) -> None:
    """A warning: one verb opens a source several times, for each part of the data."""
    log.warning(text)


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file of labels that cannot be read."""
    return user_error(f"{path}: {error.strerror}", "a file of labels", "correct data.root or data.labels")


def row_id(source: str, split: str, number: int, digits: int) -> str:
    """The id of an example that has a number, e.g. "gbc/train/00000017"; a split of "" is left out."""
    return "/".join([source, *([split] if split else []), f"{number:0{digits}d}"])


def no_classes(what: str) -> UserError:
    """The error of label() if images have no class."""
    return user_error(f"the class of {what}", "a source with classes", "use its captions")
