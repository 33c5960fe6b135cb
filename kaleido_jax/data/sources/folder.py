"""Folders by class: CLASS/IMAGE, whose class name is the caption. A flat folder of images is one class."""

import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from kaleido_jax.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, read_image, read_photo
from kaleido_jax.data.sources import register
from kaleido_jax.data.sources.base import (
    Example,
    SourceSettings,
    check_index,
    file_version,
    lines_of,
    read_labels,
    warn_once,
)
from kaleido_jax.data.sources.imagenet import captions_of_wnids, class_caption, warn_of_shared
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.files import fingerprint
from kaleido_jax.runtime.text import readable_name

# macOS's archives, Synology's thumbnails, bins of the latter and of Windows.
_OF_SYSTEMS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
_LISTED = 10  # folders that a line of the log names


class FolderSource:
    """root/CLASS/IMAGE (root/SPLIT/CLASS/IMAGE with a split), or images alone: all have the root's name as caption.

    Underscores become spaces. A file of two columns, folder and name, in config.data.labels gives folders other names,
    of which, if there are several with commas, the first is used. ImageNet's folders ("n01440764") that get no other
    name have the captions of imagenet.py. Hidden folders and files and those that systems make (_OF_SYSTEMS) are
    ignored.
    """

    def __init__(self, settings: SourceSettings) -> None:
        """Lists the files.

        Raises:
          UserError: no folder with images, or the file of names cannot be read.
        """
        data, top = settings.data, settings.root / settings.data.split
        labels = settings.root / data.labels[0] if data.labels else None
        names = _read_names(labels) if labels else {}
        found = listed(top)
        loose = images_among(found.pop(top, ()))
        folders = {folder: images_among(paths) for folder, paths in found.items()}
        empty = [readable_name(folder.name) for folder, files in folders.items() if not files]
        if empty:
            more = f" and {len(empty) - _LISTED} more" if len(empty) > _LISTED else ""
            which = "folders without an image of their own are ignored, with all in them"
            warn_once(f"{which}: {', '.join(empty[:_LISTED])}{more} in {top}")
        folders = {folder: files for folder, files in folders.items() if files}
        warn_of_deeper(folders, top)
        if loose:
            if folders:
                warn_once(f"{len(loose)} images beside the class folders of {top} are ignored")
            else:
                folders = {settings.root.resolve(): loose}  # a split's name says nothing of its images
        if not folders:
            raise user_error(f"no image in the folders of {top}", "CLASS/IMAGE.jpg", "correct data.root or data.split")
        self._files = [(path, number) for number, files in enumerate(folders.values()) for path in files]
        named = [folder_caption(folder, names) for folder in folders]
        if labels:
            _warn_of_unmatched(names, folders, labels)
        warn_of_shared(((readable_name(f.name), n) for f, n in zip(folders, named, strict=True) if n is not None), top)
        self.class_names = tuple(name or readable_name(f.name) for name, f in zip(named, folders, strict=True))
        self._without_name = frozenset(number for number, name in enumerate(named) if name is None)
        self._split = data.split
        told = (f"{readable_name(path.parent.name)}/{readable_name(path.name)}" for path, _ in self._files)
        self.fingerprint = fingerprint("\n".join(["folder", data.split, *self.class_names, *told]))

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
    return sorted(
        filter(lambda path: _is_visible(path.name), folder.iterdir()), key=lambda path: os.fsencode(path.name)
    )


def images_in(folder: Path) -> list[Path]:
    """The visible images of a folder, by the suffixes of photographs."""
    return images_among(visible(folder))


def images_among(paths: Iterable[Path]) -> list[Path]:
    """Those with a suffix of photographs that are read."""
    return [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]


def listed(top: Path) -> dict[Path, list[Path]]:
    """The visible entries of a folder and of each folder in it; {} if it is none. Tells of photos that are not read."""
    if not top.is_dir():
        return {}
    found = {top: visible(top)}
    found |= {folder: visible(folder) for folder in found[top] if folder.is_dir()}
    unread = [suffix for paths in found.values() for p in paths if (suffix := p.suffix.lower()) in UNREAD_SUFFIXES]
    if unread:
        which = f"{len(unread)} photos in {top} are ignored, whose formats are not read"
        warn_once(f"{which} ({', '.join(sorted({*unread}))}); make JPEGs of them")
    return found


def warn_of_deeper(folders: Iterable[Path], top: Path) -> None:
    """Tells of folders with images inside some folders of images, which are not listed themselves."""
    below = [inner for folder in folders for inner in _folders_in(folder) if images_in(inner)]
    if below:
        named = sorted(readable_name(str(path.relative_to(top))) for path in below)
        warn_once(f"images in {len(below)} deeper folders of {top} are ignored: {_some(named)}; move them up")


def _folders_in(folder: Path) -> list[Path]:
    """The visible folders in a folder that can be listed; asks nothing of the disk for each of its files."""
    with os.scandir(folder) as entries:
        found = [folder / entry.name for entry in entries if _is_visible(entry.name) and entry.is_dir()]
    return [path for path in found if os.access(path, os.R_OK | os.X_OK)]


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in _OF_SYSTEMS


def folder_caption(folder: Path, names: Mapping[str, str] = MappingProxyType({})) -> str | None:
    """The caption of a class folder; None if its name has bytes outside UTF-8 or no word.

    Args:
      folder: of the class.
      names: other names by the folders', as config.data.labels gives them.
    """
    try:
        own = _typed(os.fsencode(folder.name).decode())
        given = names.get(own)
        return class_caption(given) if given else class_caption(own, synonyms=False)
    except (UnicodeDecodeError, UserError):
        return None


def _typed(text: str) -> str:
    """As people type it: macOS takes letters and their accents apart in file names."""
    return unicodedata.normalize("NFC", text)


def _read_names(path: Path) -> dict[str, str]:
    rows = [_typed(line).split("\t", maxsplit=1) for line in lines_of(read_labels(path), path) if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise user_error(f"{path} has a line without a tab", "FOLDER<tab>NAME", "correct it")
    return dict(rows)


def _warn_of_unmatched(names: dict[str, str], folders: Iterable[Path], path: Path) -> None:
    """Tells of rows without a folder, if there are folders without a row: they may be misspelled."""
    found = {_typed(readable_name(folder.name)) for folder in folders}
    rows, others = sorted(names.keys() - found), sorted(found - names.keys() - captions_of_wnids().keys())
    if rows and others:
        told = f"{path} names no folder in {len(rows)} rows ({_some(rows)})"
        warn_once(f"{told}; folders without a row: {_some(others)}")


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_LISTED])) + (" ..." if len(names) > _LISTED else "")


register("folder", FolderSource)
