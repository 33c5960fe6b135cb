"""Photos with their captions in text files beside them: FOLDER/1.jpg and FOLDER/1.txt or FOLDER/1.jpg.txt."""

import itertools
import re
from pathlib import Path

from kaleido_jax.data.images import read_image, read_photo
from kaleido_jax.data.sources import register
from kaleido_jax.data.sources.base import Example, SourceSettings, check_index, file_version, no_classes
from kaleido_jax.data.sources.folder import images_among, listed, warn_of_deeper
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.files import fingerprint
from kaleido_jax.runtime.text import readable_name

# As written, tried one after the other: a folder of a million photos is not listed for each of them.
TEXT_SUFFIXES = (".txt", ".caption", ".TXT", ".CAPTION", ".Txt", ".Caption")
# A line of YOLO's labels: the number of a class, then a box or a polygon in fractions of the image.
_YOLO = re.compile(r"\s*\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}\s*", re.IGNORECASE)


class TextFilesSource:
    """root/IMAGE and root/FOLDER/IMAGE (root/SPLIT/... with a split), each with a text file of its name beside it.

    Files that come or change later are examples of the next run; a photo without a text file is a bad example.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, settings: SourceSettings) -> None:
        """Lists the photos.

        Raises:
          UserError: there are none.
        """
        self._root, self._split = settings.root, settings.data.split
        top = self._root / self._split
        found = listed(top)
        self._files = images_among(itertools.chain.from_iterable(found.values()))
        if not self._files:
            raise user_error(f"no image in {top} or its folders", "IMAGE.jpg and IMAGE.txt", "correct data.root")
        warn_of_deeper(list(found)[1:], top)
        told = (readable_name(str(path.relative_to(self._root))) for path in self._files)
        self.fingerprint = fingerprint("\n".join(["text_files", self._split, *told]))

    def __len__(self) -> int:
        return len(self._files)

    def id(self, index: int) -> str:
        """The id of one example, e.g. "text_files/train/00000/000017.jpg"; bytes outside UTF-8 are "\\xNN"."""
        path = self._files[check_index(index, len(self))]
        return f"text_files/{readable_name(path.relative_to(self._root).as_posix())}"

    def label(self, index: int) -> int:
        """Raises UserError: there are no classes."""
        raise no_classes("a photo with a text file")

    def version(self, index: int) -> str:
        """Changes with the text and the size of the image's file."""
        path = self._files[check_index(index, len(self))]
        try:
            return file_version(path, read_text(path))
        except UserError as error:
            return file_version(path, str(error))

    def image_bytes(self, index: int) -> bytes:
        """The file's content."""
        return read_photo(self._files[check_index(index, len(self))])

    def __getitem__(self, index: int) -> Example:
        path = self._files[check_index(index, len(self))]
        return Example(id=self.id(index), image=read_image(path), caption=read_text(path))


def text_file(image: Path) -> Path | None:
    """The text file beside an image, NAME.txt or NAME.jpg.txt; None if there is none."""
    named = (image.with_name(stem + suffix) for stem in (image.stem, image.name) for suffix in TEXT_SUFFIXES)
    return next((path for path in named if path.is_file()), None)


def read_text(image: Path) -> str:
    """The text beside an image, with single spaces.

    Raises:
      UserError: there is none, it cannot be read, or is no caption. The message names no file, so that equal failures
        count as one.
    """
    if (path := text_file(image)) is None:
        raise user_error("a photo without a text file", "NAME.txt beside NAME.jpg", "write one, or leave the photo out")
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise user_error(f"text file: {error.strerror}", "a readable file", "correct it") from error
    except UnicodeDecodeError as error:
        raise user_error("a text file that is not UTF-8", "text in UTF-8", "convert it") from error
    if "\0" in content:  # as in UTF-16 without a mark
        raise user_error("a text file that is not UTF-8 (it has zeros)", "text in UTF-8", "convert it")
    if not content.strip():
        raise user_error("a text file without a caption", "words", "write some")
    if is_yolo(content):
        raise user_error("a text file of YOLO's boxes", "a caption", "write one, or move the boxes elsewhere")
    return " ".join(content.split())


def is_yolo(content: str) -> bool:
    """Whether a text is YOLO's labels of an image and no caption."""
    lines = [line for line in content.splitlines() if line.strip()]
    return bool(lines) and all(_YOLO.fullmatch(line) for line in lines)


register("text_files", TextFilesSource)
