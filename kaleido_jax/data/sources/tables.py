"""Sources made of rows: GBC's region captions, tables of captions, and folders by class.

JSONL files may be far larger than the memory: only the place of each line is kept.
"""

import bisect
import csv
import hashlib
import io
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from kaleido_jax.data.sources.base import Example, LabeledObject, below, check_index, read_image
from kaleido_jax.data.sources.imagenet import captions_of_wnids
from kaleido_jax.errors import user_error
from kaleido_jax.latents.validity import clean_phrase

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_NUMBERED = re.compile(r"_[0-9]+$")  # GBC's vertex of one object among several of a name: "trees_0"
_NUMBER = re.compile(r" [0-9]+$")  # ... whose edge says "tree 1"


class _Lines:
    """The lines of JSONL files with random access."""

    def __init__(self, paths: Sequence[Path]):
        self._paths, digest = list(paths), hashlib.sha256()
        starts, counts = array("q"), [0]  # 8 bytes a line, since there may be ten million
        for path in self._paths:
            start = 0
            try:
                with path.open("rb") as file:
                    for line in file:
                        if line.strip():
                            starts.append(start)
                        start += len(line)
                        digest.update(line)
            except OSError as error:
                raise _unreadable(path, error) from error
            counts.append(len(starts))
        self._starts, self._counts = starts, counts
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict:
        with self._paths[bisect.bisect_right(self._counts, index) - 1].open("rb") as file:
            file.seek(self._starts[index])
            line = file.readline()
        try:
            row = json.loads(line)
        except ValueError as error:
            raise user_error("a line that is no JSON", "one JSON object a line", "correct the line") from error
        if not isinstance(row, dict):
            raise user_error("a line that is no JSON object", "{...}", "correct the line")
        return row


# ---------------------------------------------------------------------------------------------------- GBC
class GbcSource:
    """Images with region captions in the form of GBC10M and GBC1M (arXiv 2407.06723), which caption CC12M.

    A line is {"vertices": [...], "img_path" or "img_url", "original_caption", "short_caption", "detail_caption"}. The
    caption is the first of original and short that is there, the description the detailed one. The objects are the
    vertices labeled "entity", whose boxes are shares of the image; their name is what the edge to them says, without
    the number that tells several of a name apart. There are no masks.

    The data sets have addresses of images, no files: images.csv beside the lines says which file each became, in
    columns img_url and img_path.
    """

    class_names = ()

    def __init__(self, root: Path, *, split: str = "", labels: Sequence[str] = (), images: str = ""):
        """Reads where the lines are; `labels` () = all *.jsonl below root, `images` the folder of img_path.

        Raises:
          UserError: files that are missing or empty.
        """
        paths = [root / name for name in labels] or sorted(root.glob("*.jsonl"))
        self._lines = _Lines(paths)
        _check_not_empty(self._lines, root, "*.jsonl")
        self._photos, self._split = root / images, split
        self._files, digest = _url_files(root / "images.csv")
        self.fingerprint = _joined(self._lines.fingerprint, digest)

    def __len__(self) -> int:
        return len(self._lines)

    def id(self, index: int) -> str:
        """The id of one example, e.g. "gbc/00000017"."""
        return _row_id("gbc", self._split, check_index(index, len(self)))

    def label(self, index: int) -> int:
        """Raises UserError: there are no classes."""
        raise _no_classes("GBC")

    def __getitem__(self, index: int) -> Example:
        row = self._lines[check_index(index, len(self))]
        name = row.get("img_path") or self._files.get(row.get("img_url"))
        if not name:
            raise user_error("a row whose image was not fetched", "img_path, or its img_url in images.csv", "fetch it")
        pixels = read_image(below(self._photos, name))
        captions = [row.get(key) for key in ("original_caption", "short_caption")]
        caption = next((c for c in captions if isinstance(c, str) and c.strip()), "")
        detail = row.get("detail_caption")
        return Example(
            id=self.id(index),
            image=pixels,
            caption=caption.strip(),
            description=detail.strip() if isinstance(detail, str) and detail.strip() else None,
            objects=tuple(_entities(row, *pixels.shape[:2])),
            credit=row.get("img_url") or "",
        )


def _entities(row, height, width) -> Iterator[LabeledObject]:
    try:
        for vertex in row["vertices"]:
            if vertex["label"] != "entity":
                continue
            box = vertex["bbox"]
            corners = box["left"] * width, box["top"] * height, box["right"] * width, box["bottom"] * height
            yield LabeledObject(phrase=_entity_name(vertex), box=tuple(float(v) for v in corners))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise user_error("a row whose vertices are not GBC's", "label, bbox and in_edges", "correct the row") from error


def _entity_name(vertex):
    edges = [edge["text"] for edge in vertex["in_edges"] if edge["text"].strip()]
    name = edges[0] if edges else vertex["vertex_id"]
    return clean_phrase(_NUMBER.sub("", name) if _NUMBERED.search(vertex["vertex_id"]) else name)


def _url_files(path):
    if not path.exists():
        return {}, ""
    rows, digest = _read_csv(path, ("img_url", "img_path"))
    return {row["img_url"]: row["img_path"] for row in rows}, digest


# -------------------------------------------------------------------------------------------------- tables
class TableSource:
    """Rows of image file, caption and, where there is one, a long description: CSV, TSV or JSONL."""

    class_names = ()

    def __init__(
        self,
        root: Path,
        *,
        split: str = "",
        labels: Sequence[str] = (),
        images: str = "",
        columns: Sequence[str] = ("image", "caption", "description"),
    ):
        """CSV and TSV are read into memory.

        Args:
          root: folder of the data.
          split: part of the ids; with `labels` () also the table's name: SPLIT.csv, SPLIT.tsv or SPLIT.jsonl.
          labels: the tables below root, all of one form; () = SPLIT.* or else the only table there.
          images: folder below root to which the image column is relative.
          columns: names of the image, caption and description columns.

        Raises:
          UserError: tables that are missing, empty or without the image and caption columns.
        """
        paths = [root / name for name in labels] or _tables(root, split)
        self._columns, self._photos, self._split = tuple(columns), root / images, split
        if {path.suffix for path in paths} == {".jsonl"}:
            self._rows = _Lines(paths)
            self.fingerprint = self._rows.fingerprint
        else:
            read = [_read_csv(path, self._columns[:2]) for path in paths]
            self._rows = [row for rows, _ in read for row in rows]
            self.fingerprint = _joined(*(digest for _, digest in read))
        self.fingerprint = _joined(self.fingerprint, *self._columns)
        _check_not_empty(self._rows, root, ", ".join(path.name for path in paths))

    def __len__(self) -> int:
        return len(self._rows)

    def id(self, index: int) -> str:
        """The id of one example, e.g. "table/train/00000017"."""
        return _row_id("table", self._split, check_index(index, len(self)))

    def label(self, index: int) -> int:
        """Raises UserError: there are no classes."""
        raise _no_classes("a table")

    def __getitem__(self, index: int) -> Example:
        row = self._rows[check_index(index, len(self))]
        image, caption, description = (row.get(column) for column in self._columns)
        if not isinstance(caption, str) or not caption.strip():
            raise user_error("a row without a caption", f"text in the column {self._columns[1]}", "write one")
        return Example(
            id=self.id(index),
            image=read_image(below(self._photos, image)),
            caption=caption.strip(),
            description=description.strip() if isinstance(description, str) and description.strip() else None,
        )


def _tables(root, split):
    kinds = (".csv", ".tsv", ".jsonl")
    found = [root / f"{split}{kind}" for kind in kinds] if split else [p for k in kinds for p in root.glob(f"*{k}")]
    found = [path for path in found if path.exists()]
    if len(found) != 1:
        what = ", ".join(sorted(path.name for path in found)) or "no table"
        raise user_error(f"{what} in {root}", "one .csv, .tsv or .jsonl", "name the table in data.labels")
    return found


def _read_csv(path, needed):
    try:
        content = path.read_bytes()
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise user_error(f"{path} is no UTF-8", "text in UTF-8", "convert it") from error
    reader = csv.DictReader(text, delimiter="\t" if path.suffix == ".tsv" else ",")
    missing = [column for column in needed if column not in (reader.fieldnames or ())]
    if missing:
        have = ", ".join(reader.fieldnames or ()) or "nothing"
        do = "set data.table.columns, or add a header"
        raise user_error(f"{path} has columns {have}", f"a column {missing[0]}", do)
    return list(reader), hashlib.sha256(content).hexdigest()[:16]


# ----------------------------------------------------------------------------------------- folders by class
class FolderSource:
    """root/CLASS/IMAGE (root/SPLIT/CLASS/IMAGE with a split); the class name is the caption.

    A file of two columns, folder and name, in `labels` gives folders other names: underscores become spaces, and of
    several names with commas the first is taken. Without it, ImageNet's folders ("n01440764") have the captions of
    imagenet.py.
    """

    def __init__(self, root: Path, *, split: str = "", labels: Sequence[str] = ()):
        """Lists the files.

        Raises:
          UserError: no folder with images, or a file of names that cannot be read.
        """
        top = root / split
        names, digest = _names(root / labels[0]) if labels else ({}, "")
        folders = sorted(p for p in top.iterdir() if p.is_dir()) if top.is_dir() else []
        self._files = [(p, k) for k, f in enumerate(folders) for p in sorted(f.iterdir()) if _is_image(p)]
        if not self._files:
            raise user_error(f"no image in the folders of {top}", "CLASS/IMAGE.jpg", "correct data.root or data.split")
        known = {} if labels else captions_of_wnids()
        self.class_names = tuple(
            known.get(folder.name) or _first_name(names.get(folder.name, folder.name)) for folder in folders
        )
        self._split = split
        listed = "\n".join(f"{path.parent.name}/{path.name}" for path, _ in self._files)
        self.fingerprint = _joined(digest, listed, *self.class_names)

    def __len__(self) -> int:
        return len(self._files)

    def id(self, index: int) -> str:
        """The id of one example, e.g. "folder/train/tench/0001.jpg"."""
        path, _ = self._files[check_index(index, len(self))]
        return "/".join(["folder", *([self._split] if self._split else []), path.parent.name, path.name])

    def label(self, index: int) -> int:
        """Index into class_names of one example."""
        return self._files[check_index(index, len(self))][1]

    def __getitem__(self, index: int) -> Example:
        path, number = self._files[check_index(index, len(self))]
        return Example(id=self.id(index), image=read_image(path), caption=self.class_names[number])


def _names(path):
    try:
        content = path.read_bytes()
        rows = [re.split(r"[\t]", line, maxsplit=1) for line in content.decode().splitlines() if line.strip()]
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise user_error(f"{path} is no UTF-8", "text in UTF-8", "convert it") from error
    if any(len(row) != 2 for row in rows):
        raise user_error(f"{path} has a line without a tab", "FOLDER<tab>NAME", "correct it")
    return dict(rows), hashlib.sha256(content).hexdigest()[:16]


def _first_name(name):
    return clean_phrase(name.split(",")[0].replace("_", " "))


def _is_image(path):
    return path.suffix.lower() in IMAGE_SUFFIXES


# ------------------------------------------------------------------------------------------------- common
def _row_id(source, split, index):
    return "/".join([source, *([split] if split else []), f"{index:08d}"])


def _joined(*parts):
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _check_not_empty(rows, root, what):
    if not len(rows):
        raise user_error(f"no row in {what} of {root}", "at least one", "correct data.root or data.labels")


def _no_classes(what):
    return user_error(f"the class of a row of {what}", "a source with classes", "use its captions")


def _unreadable(path, error):
    return user_error(f"{path}: {error.strerror}", "a file of labels", "correct data.root or data.labels")
