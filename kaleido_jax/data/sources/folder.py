"""Folders by class: CLASS/IMAGE, whose class name is the caption. A flat folder of images is one class."""

import functools
import logging
import os
import unicodedata
from pathlib import Path

from kaleido_jax.data.images import IMAGE_SUFFIXES, read_image, read_photo
from kaleido_jax.data.sources import register
from kaleido_jax.data.sources.base import Example, SourceSettings, check_index, file_version, read_labels
from kaleido_jax.data.sources.imagenet import class_caption
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.files import fingerprint
from kaleido_jax.runtime.text import readable_name

log = logging.getLogger(__name__)

# macOS's archives, Synology's thumbnails, bins of the latter and of Windows.
_OF_SYSTEMS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
_LISTED = 10  # folders that a line of the log names


class FolderSource:
    """root/CLASS/IMAGE (root/SPLIT/CLASS/IMAGE with a split), or root/IMAGE, which all have the root's name as caption.

    A file of two columns, folder and name, in config.data.labels gives folders other names: underscores become spaces,
    and of several names with commas the first is used. ImageNet's folders ("n01440764") that get no other name have the
    captions of imagenet.py. Hidden folders and files and those that systems make (_OF_SYSTEMS) are ignored.
    """

    def __init__(self, settings: SourceSettings) -> None:
        """Lists the files.

        Raises:
          UserError: no folder with images, or the file of names cannot be read.
        """
        data, top = settings.data, settings.root / settings.data.split
        names = _read_names(settings.root / data.labels[0]) if data.labels else None
        folders = {f: images_in(f) for f in visible(top) if f.is_dir()} if top.is_dir() else {}
        empty = [readable_name(folder.name) for folder, files in folders.items() if not files]
        if empty:
            more = f" and {len(empty) - _LISTED} more" if len(empty) > _LISTED else ""
            _warn_once(f"folders without an image are ignored: {', '.join(empty[:_LISTED])}{more} in {top}")
        folders = {folder: files for folder, files in folders.items() if files}
        if loose := images_in(top) if top.is_dir() else []:
            if folders:
                _warn_once(f"{len(loose)} images beside the class folders of {top} are ignored")
            else:
                folders = {top.resolve(): loose}
        if not folders:
            raise user_error(f"no image in the folders of {top}", "CLASS/IMAGE.jpg", "correct data.root or data.split")
        self._files = [(path, number) for number, files in enumerate(folders.values()) for path in files]
        named = [_class_name(folder, names) for folder in folders]
        self.class_names = tuple(name or readable_name(f.name) for name, f in zip(named, folders, strict=True))
        self._without_name = frozenset(number for number, name in enumerate(named) if name is None)
        self._split = data.split
        listed = (f"{readable_name(path.parent.name)}/{readable_name(path.name)}" for path, _ in self._files)
        self.fingerprint = fingerprint("\n".join(["folder", data.split, *self.class_names, *listed]))

    def __len__(self) -> int:
        return len(self._files)

    def id(self, index: int) -> str:
        """The id of one example, e.g. "folder/train/tench/0001.jpg"; bytes outside UTF-8 are written as "\\xNN"."""
        path, _ = self._files[check_index(index, len(self))]
        parts = (readable_name(path.parent.name), readable_name(path.name))
        return "/".join(["folder", *([self._split] if self._split else []), *parts])

    def label(self, index: int) -> int:
        """Index into class_names of one example."""
        return self._files[check_index(index, len(self))][1]

    def version(self, index: int) -> str:
        """Changes with the class's name and the size of the file."""
        path, number = self._files[check_index(index, len(self))]
        return file_version(path, self.class_names[number])

    def image_bytes(self, index: int) -> bytes:
        """The file's content."""
        return read_photo(self._files[check_index(index, len(self))][0])

    def __getitem__(self, index: int) -> Example:
        path, number = self._files[check_index(index, len(self))]
        if number in self._without_name:
            do = "rename the folder, or name it in data.labels"
            raise user_error("a class folder whose name is not a caption", "words in UTF-8", do)
        return Example(id=self.id(index), image=read_image(path), caption=self.class_names[number])


def visible(folder: Path) -> list[Path]:
    """The visible entries of a folder, in the order of their names' bytes, which is the same in every locale."""
    found = (path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in _OF_SYSTEMS)
    return sorted(found, key=lambda path: os.fsencode(path.name))


def images_in(folder: Path) -> list[Path]:
    """The visible images of a folder itself, in that order."""
    return [path for path in visible(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def _class_name(folder: Path, names: dict[str, str] | None) -> str | None:
    """The caption of a class; None if the folder's name has bytes outside UTF-8 or no word."""
    try:
        own = os.fsencode(folder.name).decode()
        # macOS takes letters and their accents apart in file names; a typed caption has them as one.
        return class_caption((names or {}).get(own) or unicodedata.normalize("NFC", own))
    except (UnicodeDecodeError, UserError):
        return None


@functools.cache
def _warn_once(text: str) -> None:
    """A warning: one verb opens a source several times, for each part of the data."""
    log.warning(text)


def _read_names(path: Path) -> dict[str, str]:
    try:
        lines = read_labels(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise user_error(f"{path} is not UTF-8", "text in UTF-8", "convert it") from error
    rows = [line.split("\t", maxsplit=1) for line in lines if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise user_error(f"{path} has a line without a tab", "FOLDER<tab>NAME", "correct it")
    return dict(rows)


register("folder", FolderSource)
