"""Records: ArrayRecord shards of images, captions, latents and their tokens, and the manifest beside them.

A file is written under a temporary name and renamed, so a reader gets the old or the new one, never a part of one.
"""

import copy
import hashlib
import io
import json
import logging
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar, get_args, get_origin, get_type_hints

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Int, UInt8
from PIL import Image

from kaleido_jax.config.schema import Config
from kaleido_jax.data.sources import open_source, source_kind
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.tokenizer import vocabulary_name
from kaleido_jax.latents.types import Latents
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.files import BAD_NPZ, fingerprint, refuse_lfs_pointer, replacing, write_atomically
from kaleido_jax.runtime.progress import progress

log = logging.getLogger(__name__)

VERSION = 4  # of the record and manifest layout
MANIFEST = "manifest.json"
_LENGTHS_SEC = 6 * 3600  # for another process to read all records
DEFAULT_CAPTIONS = 8  # rows of a grid of data without classes
_REMAKE = "make the records again with `annotate`"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One stored example."""

    id: str
    image: bytes  # PNG, square RGB
    caption: str
    caption_tokens: list[int]  # without eos
    latents: Latents
    tokens: dict[str, list[int]]  # segment -> ids without separator and eos
    provenance: dict[str, dict[str, str]]  # segment -> who made it: model, version, prompt (a hash), date ...
    credit: str = ""  # whom to name where the image is shown, and its license
    shorter_side_px: int = 0  # of the photo before it was resized; 0 = unknown


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What training reads of a Record; the fields are the same ones."""

    id: str
    image: bytes
    caption_tokens: list[int]
    tokens: dict[str, list[int]]
    shorter_side_px: int


_TRAINING_FIELDS = tuple(f.name for f in fields(TrainingRecord))
_T = TypeVar("_T")
_R = TypeVar("_R", "Record", "TrainingRecord")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One ArrayRecord file as the manifest lists it."""

    file: str  # path relative to the manifest's folder
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of records holds and how it was made."""

    version: int
    source: dict[str, Any]  # name, split, image_size (px) and whatever else selected the examples
    class_names: list[str]  # of the source; empty if images have no class
    provenance: dict[str, dict[str, str]]  # segment -> who made it
    vocabulary: str  # fingerprint of the tokenizer
    codebook_size: int  # voken rows of that tokenizer
    coordinate_step: int  # that boxes and blobs were rounded to
    counts: dict[str, int]  # segment -> records that hold it
    max_tokens: dict[str, int]  # "caption", each segment and "text | bbox | ..." -> longest in tokens, eos included
    left_out: int  # examples without a record, each because of a failure below
    reasons: dict[str, int]  # "segment: reason" -> failures; those that differ in numbers only count as one
    failures: list[dict[str, str]]  # id, segment and reason of the first; all are in the files beside the shards
    agreement: dict[str, float]  # of boxes and ellipses with human labels, if there are any
    shards: list[Shard]
    date: str  # on which the job was first started, UTC
    limits: dict[str, int] = field(default_factory=dict)  # "caption" and "latents" -> most tokens of a record, with eos
    tally: dict[str, Any] = field(default_factory=dict)  # see annotate/job/tally.py; records made before have none
    narrow: list[dict[str, Any]] = field(default_factory=list)  # id, width and height of the first photos that are
    again: int = 0  # of those left out: a server had no answer, and the next run of `annotate` asks it again

    @property
    def num_records(self) -> int:
        """Records in all shards."""
        return sum(shard.records for shard in self.shards)


class Records:
    """Random access to the records of one folder; made by open_records, thread-safe."""

    def __init__(self, folder: Path, manifest: Manifest, image_size: int | None = None) -> None:
        """Opens no file until the first record is asked for; image_size as of open_records, None = the stored one.

        Raises:
          UserError: there are no records.
        """
        if not manifest.num_records:
            raise user_error(f"no records in {folder}", "at least one", _REMAKE)
        self.manifest = manifest
        self.image_size: int = image_size or manifest.source["image_size"]
        self._folder = folder
        self._source = ArrayRecordDataSource([_Instruction.of(folder, s) for s in manifest.shards if s.records])
        self._chosen: Int[np.ndarray, " m"] | None = None  # of `select`

    def __len__(self) -> int:
        return self.manifest.num_records if self._chosen is None else len(self._chosen)

    def select(self, indices: Sequence[int]) -> "Records":
        """These records alone, in this order; `manifest` remains that of all of them."""
        all_of_them, chosen = np.arange(len(self)) if self._chosen is None else self._chosen, copy.copy(self)
        chosen._chosen = all_of_them[list(indices)]
        return chosen

    def __getitem__(self, index: SupportsIndex) -> Record:
        return self._read(index, unpack)

    def training_record(self, index: SupportsIndex) -> TrainingRecord:
        """What training reads of a record: its latents as tokens only, which takes a quarter of the time."""
        return self._read(index, unpack_for_training)

    def _read(self, index: SupportsIndex, unpacked: Callable[[bytes], _T]) -> _T:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        if self._chosen is not None:
            index = int(self._chosen[index])
        try:
            return unpacked(self._source[index])
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise user_error(
                f"record {index} in {self._folder} is damaged", "the shards as annotated", _REMAKE
            ) from error

    def latents_lengths(self, codec: Codec) -> Int[np.ndarray, " n"]:
        """Length of every record's z in tokens, eos included, as `codec` joins it.

        The first call reads all records once and keeps their lengths in a file beside the manifest, unless one of them
        could not be read, which counts as of length 0. All processes of a run must call it: the main one comes first,
        and the others find its file.

        Raises:
          UserError: another process found other lengths, by which batches would differ.
        """
        main = distributed.is_main()
        lengths = self._segment_lengths() if main else {}
        told = distributed.tell("lengths of the latents", lambda: _digest(lengths), _LENGTHS_SEC)
        lengths = lengths if main else self._segment_lengths()
        if not distributed.agree("lengths of the latents", _digest(lengths) == told, _LENGTHS_SEC):
            raise user_error(
                f"records in {self._folder} of which a process could not read all that another could",
                "latents of the same lengths in every process",
                "start again; if it happens again, look for the records that the logs name",
            )
        separators = len(codec.separator) * (len(codec.segments) - 1)
        total = sum(lengths[segment] for segment in codec.segments) + separators + 1
        return total if self._chosen is None else total[self._chosen]

    def _segment_lengths(self) -> dict[str, Int[np.ndarray, " n"]]:
        made_of = fingerprint(*(shard.sha256 for shard in self.manifest.shards))
        path, number = self._folder / f".lengths-{made_of}.npz", self.manifest.num_records
        if path.exists():
            try:
                with np.load(path) as stored:
                    kept = {segment: stored[segment] for segment in self.manifest.counts}
                if all(one.shape == (number,) and one.dtype == np.int64 for one in kept.values()):
                    return kept
                raise ValueError("lengths of other records")
            except BAD_NPZ as error:
                log.warning("%s is damaged (%s) and is made again", path, error)
        lengths, unread = self._read_lengths()
        if unread:  # maybe by an error that will pass, so their lengths must not be kept
            log.warning("%d records could not be read, so the next start reads all records again", unread)
            return lengths
        out = io.BytesIO()
        np.savez(out, **lengths)
        try:
            write_atomically(path, out.getvalue())
        except OSError as error:  # shared folders are often read-only
            log.warning("%s cannot be written (%s), so every start reads all records once", path, error.strerror)
        return lengths

    def _read_lengths(self) -> tuple[dict[str, Int[np.ndarray, " n"]], int]:
        """The lengths of each segment, and the number of records that cannot be read, whose lengths are 0."""
        number, unread = self.manifest.num_records, 0
        lengths = {segment: np.zeros(number, np.int64) for segment in self.manifest.counts}
        every = self if self._chosen is None else Records(self._folder, self.manifest, self.image_size)
        with progress("lengths of the latents", number, "record") as advance:
            for index in range(number):
                try:
                    tokens = every.training_record(index).tokens
                except UserError as error:  # training leaves it out too
                    log.warning("%s", error)
                    tokens, unread = {}, unread + 1
                for segment, ids in tokens.items():
                    lengths[segment][index] = len(ids)
                advance(1)
        return lengths, unread


def _digest(lengths: dict[str, Int[np.ndarray, " n"]]) -> str:
    return fingerprint(*(part for name in sorted(lengths) for part in (name, lengths[name].tobytes())))


# ------------------------------------------------------------------------------------------------ writing
def write_shard(path: Path, records: Iterable[Record | bytes], folder: Path | None = None) -> Shard:
    """Writes one shard; the same records give the same bytes.

    Args:
      path: the file.
      records: its content, maybe packed already; may be generated while the shard is written.
      folder: of the manifest; None = the file's.
    """
    count = 0
    with replacing(path) as temporary:
        writer = ArrayRecordWriter(
            os.fsencode(temporary), "group_size:1"
        )  # groups of one: random access then reads only one record
        try:
            for record in records:
                writer.write(record if isinstance(record, bytes) else pack(record))
                count += 1
        finally:
            writer.close()
        size, digest = temporary.stat().st_size, _sha256(temporary)
    file = path.relative_to(folder or path.parent).as_posix()
    return Shard(file=file, records=count, bytes=size, sha256=digest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes manifest.json, unless it has this content already."""
    path, content = folder / MANIFEST, json.dumps(asdict(manifest), indent=2).encode()
    if not (path.exists() and path.read_bytes() == content):
        write_atomically(path, content)


def pack(record: Record) -> bytes:
    """One record as msgpack."""
    plain = {f.name: getattr(record, f.name) for f in fields(record)}
    return msgpack.packb(plain | {"latents": record.latents.to_json()})


def unpack(payload: bytes) -> Record:
    """The record in a msgpack payload.

    Raises:
      ValueError, TypeError or KeyError: the payload is not a record.
    """
    plain = msgpack.unpackb(payload)
    return _checked(Record(**plain | {"latents": Latents.from_json(plain["latents"])}))


def unpack_for_training(payload: bytes) -> TrainingRecord:
    """What training needs of the record in a msgpack payload.

    Raises:
      ValueError, TypeError or KeyError: the payload is not a record.
    """
    plain = msgpack.unpackb(payload)
    return _checked(TrainingRecord(**{name: plain[name] for name in _TRAINING_FIELDS}))


def _checked(record: _R) -> _R:
    """The record, if training can use it; raises TypeError or ValueError otherwise.

    Quick, since every sample passes here: 5 us for 200 tokens.
    """
    if not (isinstance(record.id, str) and isinstance(record.image, bytes) and isinstance(record.tokens, dict)):
        raise TypeError("an id, an image or tokens of another type")
    if type(record.shorter_side_px) is not int:
        raise TypeError("shorter_side_px of another type")
    for ids in (record.caption_tokens, *record.tokens.values()):
        if not isinstance(ids, list) or not set(map(type, ids)) <= {int}:
            raise TypeError("tokens that are no whole numbers")
        if ids and not 0 <= min(ids) <= max(ids) < 2**31:
            raise ValueError("tokens out of range")
    return record


def encode_image(image: UInt8[np.ndarray, "s s 3"]) -> bytes:
    """PNG bytes, lossless."""
    out = io.BytesIO()
    # 2.5 times as fast as level 6 on photographs, for 2.5 % more bytes.
    Image.fromarray(image).save(out, "png", compress_level=2)
    return out.getvalue()


# What Pillow raises for damaged bytes.
BAD_IMAGE = (OSError, ValueError, SyntaxError, OverflowError, EOFError, Image.DecompressionBombError)


def decode_image(png: bytes, size_px: int | None = None) -> UInt8[np.ndarray, "s s 3"]:
    """The image in PNG bytes.

    Raises:
      one of BAD_IMAGE: damaged, or not of `size_px` if that is given, which is known before any pixel is decoded.
    """
    with Image.open(io.BytesIO(png), formats=("png",)) as image:
        if size_px is not None and image.size != (size_px, size_px):
            raise ValueError(f"{image.width} x {image.height} px")
        return np.asarray(image.convert("RGB"))


# ------------------------------------------------------------------------------------------------ reading
def open_records(
    folder: Path | str,
    *,
    codec: Codec,
    image_size: int,
    verify: str = "full",
) -> Records:
    """The records of one split, after checking that they are complete and made for this use.

    Args:
      folder: holds manifest.json, which names the shards relative to it.
      codec: its vocabulary must be that of the stored tokens, and every record must hold its segments.
      image_size: px, side of the images to train on; that of the stored ones must be a multiple of it.
      verify: "full" compares every shard's sha256, "size" only its length in bytes.

    Raises:
      UserError: a missing folder or file, a damaged shard (named), or records made for another use.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    _check_use(folder, manifest, codec, image_size)
    for shard in manifest.shards:
        _check_shard(folder / shard.file, shard, verify)
    return Records(folder, manifest, image_size)


def records_folder(config: Config, workdir: Path) -> Path:
    """The folder of an experiment's records: config.data.records, or where `annotate` writes them in the workdir.

    config.data.records may name a workdir too.
    """
    if config.data.records:
        folder = Path(config.data.records)
        in_workdir = not (find_records(folder) / MANIFEST).exists() and (find_records(folder / "records") / MANIFEST)
        return folder / "records" if in_workdir and in_workdir.exists() else folder
    return workdir if (workdir / MANIFEST).exists() else workdir / "records"


def class_names(config: Config, workdir: Path) -> list[str]:
    """The class names of an experiment's data, from its records or a generated source; [] if images have no class.

    Raises:
      UserError: the records' manifest is damaged or of another version.
    """
    folder = find_records(records_folder(config, workdir))
    if (folder / MANIFEST).exists():
        return read_manifest(folder).class_names
    splits = () if config.data.source == "records" else source_kind(config.data.source).splits
    return list(open_source(replace(config.data, split=splits[0])).class_names) if splits else []


def default_captions(config: Config, workdir: Path) -> list[str]:
    """Captions to sample where none are named: the class names, or some captions of the records; [] if there are none.

    Captions that are too long for the model and records that cannot be read are left out.

    Raises:
      UserError: the manifest of the records is damaged or of another version.
    """
    if names := class_names(config, workdir):
        return list(dict.fromkeys(names))
    folder = find_records(records_folder(config, workdir))
    if not (folder / MANIFEST).exists():
        return []
    records = Records(folder, read_manifest(folder))
    count = min(len(records), 16 * DEFAULT_CAPTIONS)  # spread, since many sources are sorted
    found: dict[str, None] = {}
    for i in range(count):
        try:
            record = records[i * len(records) // count]
        except UserError as error:
            log.warning("%s", error)
            continue
        if record.caption and len(record.caption_tokens) < config.data.max_caption_tokens:
            found[record.caption] = None
    return spread(list(found), DEFAULT_CAPTIONS)


def spread(items: Sequence[_T], count: int) -> list[_T]:
    """At most `count` of the items, evenly spaced from the first on."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def find_records(folder: Path, split: str = "train") -> Path:
    """The folder of the manifest: `folder` itself, or that of the split inside it."""
    return folder if (folder / MANIFEST).exists() else folder / split


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of records.

    Raises:
      UserError: it is missing, damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.exists():
        splits = ", ".join(sorted(str(p.parent) for p in folder.glob(f"*/{MANIFEST}")))
        do = f"name one of {splits}" if splits else "correct the folder, or make records with `annotate`"
        raise user_error(f"no {MANIFEST} in {folder}", "a folder of records", do)
    try:
        refuse_lfs_pointer(path)
        plain = json.loads(path.read_text("utf-8"))
        version = plain["version"]
        if version == VERSION:
            manifest = Manifest(**plain | {"shards": [Shard(**s) for s in plain["shards"]]})
            _check_manifest(manifest)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise user_error(f"{path} is damaged", "a manifest written by annotate", _REMAKE) from error
    if version != VERSION:
        raise user_error(f"{path} of version {version!r:.20}", f"version {VERSION}", _REMAKE)
    return manifest


def _check_manifest(manifest: Manifest) -> None:
    """Raises TypeError or ValueError for values that `annotate` cannot have written."""
    for group in (manifest, *manifest.shards):
        for name, hint in get_type_hints(type(group)).items():
            if not _is_of(getattr(group, name), hint):
                raise TypeError(name)
    sizes = [manifest.source["image_size"], manifest.codebook_size + 1, manifest.coordinate_step]
    counts = [*manifest.counts.values(), *manifest.max_tokens.values(), manifest.left_out, manifest.again]
    counts += [number for shard in manifest.shards for number in (shard.records, shard.bytes)]
    if not all(type(size) is int and size > 0 for size in sizes) or min(counts) < 0:
        raise ValueError("a number out of range")
    for shard in manifest.shards:
        if Path(shard.file).is_absolute() or ".." in Path(shard.file).parts or "\0" in shard.file:
            raise ValueError(f"a shard outside of the folder: {shard.file!r}")


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a JSON value has a type of Manifest's fields."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind is float:
        return type(value) in (int, float)
    if kind is dict:
        return isinstance(value, dict) and all(_is_of(one, inner[1]) for one in value.values())
    if kind is list:
        return isinstance(value, list) and all(_is_of(one, inner[0]) for one in value)
    return type(value) is kind


@dataclass(frozen=True)
class _Instruction:
    """What ArrayRecordDataSource needs to know about a file, so that it opens none before it is read."""

    filename: bytes  # a str with characters outside the locale would be refused
    skip: int
    take: int
    examples_in_shard: int

    @staticmethod
    def of(folder: Path, shard: Shard) -> "_Instruction":
        return _Instruction(os.fsencode(folder / shard.file), 0, shard.records, shard.records)


def _check_use(folder: Path, manifest: Manifest, codec: Codec, image_size: int) -> None:
    missing = [s for s in codec.segments if manifest.counts.get(s, 0) < manifest.num_records]
    have = ", ".join(s for s, count in manifest.counts.items() if count == manifest.num_records) or "none"
    if missing:
        raise user_error(
            f"records in {folder} without {', '.join(missing)} (they hold {have})",
            f"latents.segments = {codec.segments}",
            "annotate with these segments, or take them out of latents.segments",
        )
    tokenizer = codec.tokenizer
    if manifest.codebook_size != tokenizer.codebook_size:
        raise user_error(
            f"records in {folder} made with a codebook of {manifest.codebook_size} vokens",
            f"latents.codebook_size = {tokenizer.codebook_size}",
            "correct it, or annotate again",
        )
    if manifest.vocabulary != tokenizer.fingerprint:
        raise user_error(
            f"records in {folder} made with {vocabulary_name(manifest.vocabulary, manifest.codebook_size)}",
            vocabulary_name(tokenizer.fingerprint, tokenizer.codebook_size),
            "correct model.t5.vocabulary, or annotate again",
        )
    if manifest.coordinate_step != codec.coordinate_step:
        raise user_error(
            f"records in {folder} with coordinates in steps of {manifest.coordinate_step}",
            f"latents.coordinate_step = {codec.coordinate_step}",
            "change it, or annotate again",
        )
    if manifest.source["image_size"] % image_size:
        raise user_error(
            f"records in {folder} of {manifest.source['image_size']} px",
            f"a multiple of {image_size} px, the outermost denoiser's",
            "annotate at that size, or change the config",
        )


def _check_shard(path: Path, shard: Shard, verify: str) -> None:
    if not os.path.isfile(path):  # nor of a folder, or a name too long for a file
        raise user_error(f"shard {path} is missing", f"{shard.bytes} bytes as in {MANIFEST}", _REMAKE)
    refuse_lfs_pointer(path)
    size = path.stat().st_size
    if size != shard.bytes:
        raise user_error(f"shard {path} is damaged ({size} bytes)", f"{shard.bytes} bytes", _REMAKE)
    if verify == "full" and _sha256(path) != shard.sha256:
        raise user_error(f"shard {path} is damaged", f"the sha256 in {MANIFEST}", f"delete it and {_REMAKE}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def longest(lengths: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The largest value of each key."""
    out: dict[str, int] = {}
    for entry in lengths:
        for key, value in entry.items():
            out[key] = max(value, out.get(key, 0))
    return out
