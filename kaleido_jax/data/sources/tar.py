"""Tar shards of img2dataset and webdataset, such as CC12M's: random access without unpacking them.

Finding the examples of a shard means reading the header of each file in it, so their places are kept in an index file
for each shard: 8 bytes an example. Indexing takes a minute for each 0.6 million examples on one core, more where the
disk is slow; afterwards a source opens in a moment.
"""

import bisect
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from kaleido_jax.data.images import IMAGE_SUFFIXES, decode_photo
from kaleido_jax.data.sources import register
from kaleido_jax.data.sources.base import (
    Example,
    SourceSettings,
    check_index,
    class_lines,
    no_classes,
    read_labels,
    warn_once,
)
from kaleido_jax.data.sources.imagenet import captions_of_wnids, class_caption, warn_of_shared
from kaleido_jax.data.sources.rows import read_object
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.files import fingerprint, make_folder, refuse_lfs_pointer, write_atomically
from kaleido_jax.runtime.progress import progress
from kaleido_jax.runtime.text import readable_name

log = logging.getLogger(__name__)

_VERSION = 2  # of the index files; those of 1 knew of no holes
_BLOCK = 512  # bytes; a tar is a sequence of these
_LONGEST_PADDING = 2**24  # bytes of zeros that may end a tar: most have 10 KB
# How compressed files begin, after which kinds of them tars are named.
_COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"BZh")
_COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".tar.bz2")


class TarSource:
    """One image for each key in root/*.tar (root/SPLIT/*.tar with a split), or in the tars named in config.data.labels.

    A file's key is its name up to the first dot; files of one key stand side by side. KEY.jpg (or another of
    IMAGE_SUFFIXES) is the image. The caption is KEY.txt or else a field of KEY.json; with config.data.tar.classes it is
    the class whose number is KEY.cls. Description and credit ("url") are fields of KEY.json; a bad one costs only these
    where the caption is elsewhere. Other files are ignored, and so are hidden ones.

    What is left of a shard behind a broken header, a cut end, or zeros that are not the tar's end, is one bad example.
    """

    def __init__(self, settings: SourceSettings) -> None:
        """Finds the examples: reads the index files, and makes those that are missing or older than their shard.

        Raises:
          UserError: no shard, no example, a shard that is compressed or whose keys are scattered, or the classes or the
            index folder are bad.
        """
        data, self._keys = settings.data, settings.data.tar
        top = settings.root / data.split
        listed = sorted(path for path in top.glob("*.tar") if not path.name.startswith("."))
        self._paths = [settings.root / name for name in data.labels] or listed
        packed = [] if data.labels else [path for path in top.glob("*.t*") if path.name.endswith(_COMPRESSED_SUFFIXES)]
        if packed and listed:
            warn_once(f"{len(packed)} compressed shards of {top}, such as {packed[0].name}, are ignored; unpack them")
        names = [os.path.relpath(path, settings.root if data.labels else top) for path in self._paths]
        self._shards, self._split = [readable_name(name.removesuffix(".tar")) for name in names], data.split
        self.class_names = _classes(settings.root, data.tar.classes) if data.tar.classes else ()
        indexes = _open_indexes(self._paths, data.tar.index)
        self._starts = np.concatenate([index.starts for index in indexes] or [np.zeros(0, np.int64)])
        self._counts = np.cumsum([0, *(len(index.starts) for index in indexes)]).tolist()
        if not len(self._starts):
            do = f"unpack {packed[0].name} and so on" if packed else "correct data.root or data.split"
            raise user_error(f"no example in *.tar of {top}", "KEY.jpg and so on", do)
        told = ("tar", data.split, data.tar.caption, data.tar.description, *self.class_names)
        shards = [f"{shard} {index.digest}" for shard, index in zip(self._shards, indexes, strict=True)]
        self._versions = [fingerprint("\n".join([*told, shard])) for shard in shards]
        self.fingerprint = fingerprint("\n".join([*told, *shards]))

    def __len__(self) -> int:
        return len(self._starts)

    def id(self, index: int) -> str:
        """The id of one example: its shard and its number there, e.g. "tar/train/00003/000017"."""
        shard = bisect.bisect_right(self._counts, check_index(index, len(self))) - 1
        parts = (self._shards[shard], f"{index - self._counts[shard]:06d}")
        return "/".join(["tar", *([self._split] if self._split else []), *parts])

    def label(self, index: int) -> int:
        """Index into class_names of one example.

        Raises:
          UserError: config.data.tar.classes is not set, or the example has no class.
        """
        if not self.class_names:
            raise no_classes("an example with captions")
        return self._class(self._files(index))

    def version(self, index: int) -> str:
        """Changes with its shard."""
        return self._versions[bisect.bisect_right(self._counts, check_index(index, len(self))) - 1]

    def image_bytes(self, index: int) -> bytes:
        """The content of the image in the shard."""
        return _image(self._files(index))

    def __getitem__(self, index: int) -> Example:
        files = self._files(index)
        image = _image(files)
        fields = self._fields(files)
        caption = self.class_names[self._class(files)] if self.class_names else self._caption(files, fields)
        description, credit = fields.get(self._keys.description), fields.get("url")
        return Example(
            id=self.id(index),
            image=decode_photo(image),
            caption=caption,
            description=description.strip() if isinstance(description, str) and description.strip() else None,
            credit=credit if isinstance(credit, str) else "",
        )

    def _files(self, index: int) -> dict[str, bytes]:
        """What follows the key -> content, of the files of one example that are of use here."""
        index = check_index(index, len(self))
        path = self._paths[bisect.bisect_right(self._counts, index) - 1]
        try:
            with path.open("rb") as file:
                return _read_example(file, int(self._starts[index]))
        except OSError as error:
            do = "fetch the shard again"
            raise user_error(f"a tar shard: {error.strerror or 'cannot be read'}", "a readable file", do) from error

    def _fields(self, files: dict[str, bytes]) -> dict[str, Any]:
        """The fields of KEY.json; {} without it, and if it is bad but the caption is elsewhere."""
        if "json" not in files:
            return {}
        try:
            return read_object(files["json"], "a .json file")
        except UserError:
            if not self.class_names and not files.get("txt", b"").strip():
                raise
            return {}

    def _caption(self, files: dict[str, bytes], fields: dict[str, Any]) -> str:
        try:
            caption = files.get("txt", b"").decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise user_error("a .txt file that is not UTF-8", "text in UTF-8", "convert it") from error
        told = fields.get(self._keys.caption)
        caption = caption or (told.strip() if isinstance(told, str) else "")
        if not caption:
            do = "set data.tar.classes" if "cls" in files else "set data.tar.caption, or leave the example out"
            expected = f"text in KEY.txt or in {self._keys.caption!r} of KEY.json"
            raise user_error("an example without a caption", expected, do)
        return caption

    def _class(self, files: dict[str, bytes]) -> int:
        told = files.get("cls", b"").strip()[:20]
        if not (told.isdigit() and int(told) < len(self.class_names)):
            found = f"an example whose class is {told.decode(errors='replace')!r}"
            raise user_error(found, f"a number below {len(self.class_names)} in KEY.cls", "correct data.tar.classes")
        return int(told)


def _image(files: dict[str, bytes]) -> bytes:
    images = [name for name in files if f".{name}" in IMAGE_SUFFIXES]
    if len(images) != 1:
        found = f"{len(images)} images in an example (it has {', '.join(files)[:100] or 'nothing'})"
        raise user_error(found, "KEY.jpg, KEY.png or KEY.webp", "write the shard again, or leave it out")
    return files[images[0]]


def _classes(root: Path, name: str) -> tuple[str, ...]:
    """The captions of the classes, in the order of their numbers."""
    if name == "imagenet":
        return tuple(captions_of_wnids().values())
    lines = class_lines(read_labels(root / name), root / name)
    captions = tuple(map(class_caption, lines))
    warn_of_shared(zip(lines, captions, strict=True), root / name)
    return captions


# ------------------------------------------------------------------------------------------ inside a shard
def _members(file: BinaryIO, start: int) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, what follows it, and header of each file from a place on; hidden files and other entries are left out.

    Raises:
      _Broken: a header is damaged, or the tar ends without the block of zeros that ends a tar.
    """
    file.seek(start)
    offset = start
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                offset = tar.offset  # of the header that follows
                folder, name = os.path.split(member.name)
                stem, _, extension = name.partition(".")
                if member.size < 0:
                    raise _Broken(member.offset)
                if member.isreg() and not member.issparse() and stem and extension:
                    yield f"{folder}/{stem}", extension.lower(), member
            offset = tar.offset
        if not _is_end(file, offset):  # tarfile takes what is not a header for the end
            raise _Broken(offset)
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the last two: of damaged numbers in pax headers
        raise _Broken(offset) from error


def _is_end(file: BinaryIO, offset: int) -> bool:
    """Whether a tar ends at a byte: only zeros follow.

    Downloads that were never finished have zeros where parts are missing, some of them up to the end.
    """
    left = os.fstat(file.fileno()).st_size - offset
    file.seek(offset)
    return _BLOCK <= left <= _LONGEST_PADDING and not file.read().strip(b"\0")


class _Broken(Exception):
    """A tar that cannot be read from a byte on."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


def _read_example(file: BinaryIO, start: int) -> dict[str, bytes]:
    """What follows the key -> content, of the files that begin with the one at `start`."""
    found: dict[str, bytes] = {}
    first, size = None, os.fstat(file.fileno()).st_size
    try:
        for key, extension, member in _members(file, start):
            if key != first and first is not None:
                break
            first = key
            if member.offset_data + member.size > size:  # also before memory is taken for a size that is not true
                raise user_error("an example that is cut off", "a whole tar shard", "fetch the shard again")
            if extension in found:
                raise user_error(f"an example with two files .{extension}", "one", "write the shard again")
            if extension in ("txt", "json", "cls") or f".{extension}" in IMAGE_SUFFIXES:
                file.seek(member.offset_data)
                found[extension] = file.read(member.size)
    except _Broken as error:
        if first is None:
            do = "fetch the shard again, or do without the rest of it"
            raise user_error("a tar shard that is broken or cut off from here on", "a whole tar", do) from error
    return found


# ------------------------------------------------------------------------------------------ indexes of shards
@dataclass(frozen=True)
class _Index:
    """Where the examples of one shard begin."""

    starts: np.ndarray  # int64 (examples,), bytes; the last one is where the shard breaks, if it does
    digest: str  # of names, sizes, times and checksums in the headers


def _open_indexes(paths: Sequence[Path], folder: str) -> list[_Index]:
    """The index of each shard, from its index file if that is of this shard, otherwise made and kept.

    Raises:
      UserError: a shard cannot be opened, is a git-LFS pointer or compressed, its keys are scattered, or the index
        folder that the user named cannot be written.
    """
    if folder:
        make_folder(Path(folder), "config.data.tar.index")
    try:
        for path in paths:
            refuse_lfs_pointer(path)
            _refuse_compressed(path)
        kept = {path: _read_index(path, folder) for path in paths}
        found = {path: index for path, index in kept.items() if index is not None}
        missing = [path for path in kept if path not in found]
        with progress("index of the tar shards", len(missing), "shard") as advance:
            for path in missing:
                found[path] = _make_index(path)
                _keep_index(path, folder, found[path], warn=path == missing[0])
                advance(1)
    except OSError as error:
        do = "correct data.root or data.labels"
        raise user_error(f"{error.filename}: {error.strerror}", "a tar shard", do) from error
    return [found[path] for path in paths]


def _refuse_compressed(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(_BLOCK)
    if head.startswith(_COMPRESSED) and head[257:262] != b"ustar":  # where a tar says that it is one
        raise user_error(f"{path} is compressed", "a plain tar, any example of which can be read alone", "unpack it")


def _index_path(path: Path, folder: str) -> Path:
    if not folder:
        return path.with_name(f".{path.name}.index")
    return Path(folder) / f"{path.stem}-{fingerprint(str(path.resolve()))}.index"  # shards of two folders share names


def _state(path: Path) -> list[int]:
    """What an index file must agree with."""
    stat = path.stat()
    return [_VERSION, stat.st_size, stat.st_mtime_ns]


def _read_index(path: Path, folder: str) -> _Index | None:
    """The shard's index; None if there is none, or it is of another state of the shard, or damaged."""
    state = _state(path)
    try:
        kept = msgpack.unpackb(_index_path(path, folder).read_bytes())
        whole = fingerprint(kept["starts"], kept["digest"]) == kept["check"]
        if kept["state"] != state or not whole:
            return None
        return _Index(np.frombuffer(kept["starts"], "<i8").astype(np.int64), kept["digest"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _keep_index(path: Path, folder: str, index: _Index, warn: bool) -> None:
    """Writes the index file; where that cannot be, the index is made anew in each process."""
    starts = index.starts.astype("<i8").tobytes()
    kept = {"state": _state(path), "starts": starts, "digest": index.digest}
    try:
        write_atomically(_index_path(path, folder), msgpack.packb(kept | {"check": fingerprint(starts, index.digest)}))
    except OSError as error:
        if warn:
            where = _index_path(path, folder).parent
            log.warning("no index is kept in %s (%s); set data.tar.index to another folder", where, error.strerror)


def _make_index(path: Path) -> _Index:
    """Reads all headers of a shard.

    Raises:
      UserError: files of one key do not stand side by side, so that they would become several examples.
    """
    starts: list[int] = []
    keys: set[str] = set()
    last, digest = None, sha256()
    with path.open("rb") as file:
        try:
            for key, _, member in _members(file, 0):
                digest.update(repr((member.name, member.size, member.mtime, member.chksum)).encode())
                if key == last:
                    continue
                if key in keys:
                    do = "write it again, by `tar --sort=name` for instance"
                    raise user_error(f"{path} has files of {key!r} in two places", "them side by side", do)
                starts.append(member.offset)
                keys.add(key)
                last = key
        except _Broken as error:
            starts.append(error.offset)
            digest.update(b"broken")
    return _Index(np.asarray(starts, np.int64), digest.hexdigest()[:16])


register("tar", TarSource)
