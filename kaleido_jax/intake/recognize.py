"""Recognizing what a folder of somebody's data is: COCO, GBC, a table, tar shards, or folders of images."""

import codecs
import functools
import itertools
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from kaleido_jax.config.schema import Data, DataTable
from kaleido_jax.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from kaleido_jax.data.sources.base import is_file_below, unreadable
from kaleido_jax.data.sources.coco import file_name
from kaleido_jax.data.sources.rows import JsonLists, read_cells, read_object
from kaleido_jax.data.sources.text_files import is_yolo, text_file
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.files import LFS_POINTER, refuse_lfs_pointer
from kaleido_jax.runtime.text import readable

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
# Cells of a row; an image in one of them is maybe followed by the number of its caption, as in Flickr8k.token.txt.
_CELLS = re.compile(r"[,;\t|]")
_NUMBERED = re.compile(r"#[0-9]+\Z")
_SEPARATORS = (",", ";", "\t", "|")
_ROWS = 50  # of a table that are looked at
_HEAD_BYTES = 1_000_000  # and of its text
_ENOUGH = 0.5  # share of these rows whose cell is an image file
# Names of columns, those that say most first.
_CAPTIONS = ("caption", "text", "prompt", "title", "label", "class", "category", "bildunterschrift", "titel", "legende")
_IMAGE_COLUMNS = ("image", "file_name", "filename", "image_path", "img_path", "path", "file", "img", "photo", "target")
_LONG = ("description", "long_caption", "detailed_caption", "beschreibung")
_OF_SYSTEMS = (".", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
_NOTED = 3  # tables that are not used
_WHOLE_SETS = ("train", "metadata", "captions", "labels")  # of several tables or splits, the one to take
# Folders of data sets that are no classes, by their names in lower case: splits, pictures, and what belongs to these.
_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
_SPLITS += ("train2014", "val2014", "test2014", "train2017", "val2017", "test2017")
_PICTURES = ("images", "image", "imgs", "img", "jpegimages")
_BESIDE = ("labels", "masks", "mask", "annotations", "segmentationclass", "segmentationobject", "thumbnails")
# Share of the photos of class folders from which on their text files, not the folders, say what they are.
_CAPTIONED = 0.9


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a folder is."""

    data: Data  # the fields that open it as a source
    what: str  # for people, e.g. "one folder for each class"
    notes: tuple[str, ...] = ()  # what was chosen among several possibilities


def recognize(root: Path, split: str = "", columns: Sequence[str] = ()) -> Found:
    """What is in a folder.

    Args:
      root: the folder; its path is kept in the config as it is.
      split: the part of it, as the data calls it; "" = the only one, or the one for training.
      columns: of a table: image, caption and, optionally, description; () = recognized.

    Raises:
      UserError: not a folder, nothing that is recognized, or several possibilities between which to choose.
    """
    if not root.is_dir():
        raise user_error(f"--data={root}", "a folder", "name the folder of the pictures")
    kinds: tuple[Callable[[], Found | None], ...] = (
        lambda: _coco(root, split),
        lambda: _gbc(root),
        lambda: _table(root, split, columns),
        lambda: _tar(root, split),
        lambda: _labeled_split(root, split, columns),
        lambda: _photos(root, split),
    )
    for kind in kinds:
        if found := kind():
            return found
    for path in (*_tables(root), *_coco_files(root)):
        raise _why_unused(root, path)
    suffixes = [path.suffix.lower() for path in (root / split).rglob("*") if not path.name.startswith(".")]
    if unread := [suffix for suffix in suffixes if suffix in UNREAD_SUFFIXES]:
        found = f"{len(unread)} photos in {root / split}, whose formats are not read ({', '.join(sorted({*unread}))})"
        raise user_error(found, f"one of {', '.join(IMAGE_SUFFIXES)}", "make JPEGs of them")
    raise user_error(
        f"no pictures recognized in {root / split}",
        "a folder for each class, a folder of photos, a table of captions, COCO's or GBC's JSON, or tar shards",
        "see docs/own-pictures.md",
    )


def _listed(folder: Path, *suffixes: str) -> list[Path]:
    """The visible files of a folder with one of these suffixes."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


def _tables(folder: Path) -> list[Path]:
    """Files that may be tables: of their suffixes, and others that are not of one image.

    These are files of JSON that begin as a list, and of text of which most lines have an image in one of their cells.
    """
    images = {name for path in _listed(folder, *IMAGE_SUFFIXES) for name in (path.stem, path.name)}
    of_json = (path for path in _listed(folder, ".json") if path.stem not in images)
    lists = [path for path in of_json if _head(path).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["]
    texts = [path for path in _listed(folder, ".txt") if path.stem not in images and _has_image_rows(_text(path))]
    return sorted([*_listed(folder, *TABLE_SUFFIXES), *lists, *texts])


def _has_image_rows(text: str) -> bool:
    rows = [_CELLS.split(line) for line in text.splitlines()[1 : _ROWS + 1] if line.strip()]  # behind a header
    named = sum(1 for cells in rows if len(cells) > 1 and any(map(_is_image_name, cells)))
    return named > 0 and named >= _ENOUGH * len(rows)


def _is_image_name(cell: str) -> bool:
    return _NUMBERED.sub("", cell.strip().strip('"')).lower().endswith(IMAGE_SUFFIXES)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(_OF_SYSTEMS))


def _chosen(names: Sequence[str], what: str, flag: str) -> tuple[str, tuple[str, ...]]:
    """(one of several names, a note about the others)."""
    preferred = [name for name in names if name.lower().startswith(_WHOLE_SETS)]
    if len(names) > 1 and len(preferred) != 1:
        raise user_error(f"several {what}: {', '.join(names)}", "one of them", f"name it by {flag}")
    chosen = (preferred or list(names))[0]
    others = ", ".join(name for name in names if name != chosen)
    return chosen, (f"{what}: {chosen}, not {others} ({flag} names another)",) if others else ()


# --------------------------------------------------------------------------------------- COCO, GBC and tar
def _coco(root: Path, split: str) -> Found | None:
    if (root / "annotations.json").is_file():
        images = "" if (root / "images").is_dir() else _image_folder(root, _file_names(root / "annotations.json"))
        return Found(data=Data(source="coco", root=str(root), split=split, images=images or ""), what="COCO's JSON")
    labels = [path for path in root.glob("annotations/*_*.json") if path.name.startswith(("instances_", "captions_"))]
    if labels:
        splits = sorted({path.stem.partition("_")[2] for path in labels})
        here = [name for name in splits if (root / name).is_dir() or (root / "images").is_dir()]
        if not here:
            raise user_error(f"labels of {', '.join(splits)} in {root}", f"photos in {root / splits[0]}", "fetch them")
        chosen, notes = (split, ()) if split else _chosen(here, "splits", "--split=NAME")
        return Found(data=Data(source="coco", root=str(root), split=chosen), what="COCO's JSON", notes=notes)
    for path in _listed(root, ".json"):
        images = _image_folder(root, _file_names(path))
        if images is not None:
            data = Data(source="coco", root=str(root), split=split, labels=(path.name,), images=images or ".")
            return Found(data=data, what=f"COCO's JSON ({path.name})")
    return None


def _coco_files(folder: Path) -> list[Path]:
    """Files of COCO's form; a file that has an image's name is of that image alone, and not read."""
    images = {path.stem for path in _listed(folder, *IMAGE_SUFFIXES)}
    return [path for path in _listed(folder, ".json") if path.stem not in images and _file_names(path)]


def _file_names(path: Path) -> list[str]:
    """Names of images in a file of COCO's form; [] for any other file."""
    try:
        images = json.loads(path.read_bytes())["images"]
        names = [file_name(image) for image in images[:_ROWS] if isinstance(image, Mapping)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str)]


def _gbc(root: Path) -> Found | None:
    files = [path for path in _listed(root, ".jsonl") if any("vertices" in row for row in _json_rows(path))]
    if not files:
        return None
    images = _image_folder(root, [str(row.get("img_path", "")) for row in _json_rows(files[0])]) or ""
    labels = tuple(path.name for path in files)
    return Found(data=Data(source="gbc", root=str(root), labels=labels, images=images), what="GBC's region captions")


def _tar(root: Path, split: str) -> Found | None:
    if _listed(root / split, ".tar") if (root / split).is_dir() else []:
        return Found(data=Data(source="tar", root=str(root), split=split), what="tar shards")
    splits = [folder.name for folder in _subfolders(root) if _listed(folder, ".tar")] if not split else []
    if not splits:
        return None
    chosen, notes = _chosen(splits, "folders of shards", "--split=NAME")
    return Found(data=Data(source="tar", root=str(root), split=chosen), what="tar shards", notes=notes)


# ------------------------------------------------------------------------------------------------- tables
@dataclass(frozen=True, kw_only=True)
class _Table:
    """A table whose columns are known."""

    path: Path
    columns: tuple[str, str, str]
    separator: str
    images: str  # folder below the root
    others: tuple[str, ...]  # further columns of images


def _table(root: Path, split: str, columns: Sequence[str]) -> Found | None:
    paths = [path for path in _tables(root) if split in ("", path.stem)]
    tables = {path.name: table for path in paths if (table := _read_table(root, path, columns))}
    if not tables:
        if columns and paths:
            raise user_error(
                f"no columns {', '.join(columns)} in {', '.join(path.name for path in paths)}",
                "a column of image files below --data, and one of captions",
                "correct --columns",
            )
        return None
    name, notes = _chosen(list(tables), "tables", "--split=NAME (without its suffix)")
    notes += _noted([_why_unused(root, path) for path in paths if path.name not in tables])
    table = tables[name]
    image, caption, description = table.columns
    if table.others:
        notes += (f"images of the column {image}, not {', '.join(table.others)} (--columns names another)",)
    described = f", {description!r} the descriptions" if description else ""
    mark = {"\t": "tabs"}.get(table.separator, f"{table.separator!r}")
    data = Data(
        source="table",
        root=str(root),
        labels=(name,),
        images=table.images,
        table=DataTable(columns=table.columns, separator=table.separator),
    )
    what = f"a table of captions ({name}: {image!r} has the images, {caption!r} the captions{described}"
    return Found(data=data, what=what + (f"; cells are separated by {mark})" if table.separator else ")"), notes=notes)


def _read_table(root: Path, path: Path, columns: Sequence[str]) -> _Table | None:
    """A table with a column of images that are there, and one of captions; None if it is not one."""
    for separator, rows in _readings(path):
        if path.suffix.lower() == ".txt" and any(map(_is_image_name, rows[0])):  # no header: it is told
            continue
        named = dict.fromkeys(name for row in rows for name in row if isinstance(name, str))
        names = [name for name in named if readable(name) == name]  # others, half characters, fit into no config
        cells = {name: [row.get(name) for row in rows] for name in names}
        if columns:
            folders = {columns[0]: _image_folder(root, cells.get(columns[0], ()))}
        else:
            folders = {name: _image_folder(root, cells[name]) for name in names}
        images = [name for name, folder in folders.items() if folder is not None]
        if not images:
            continue
        image = next((name for word in _IMAGE_COLUMNS for name in images if name.strip().lower() == word), images[0])
        rest = {name: cells[name] for name in cells if name not in images}
        caption, description = (*columns[1:], "", "")[:2] if columns else _text_columns(rest)
        if caption in names:
            default = "\t" if path.suffix.lower() == ".tsv" else ","
            mark = "" if separator in ("", default) else separator
            others = tuple(name for name in images if name != image)
            chosen = (image, caption, description)
            return _Table(path=path, columns=chosen, separator=mark, images=folders[image], others=others)
    return None


def _readings(path: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(separator, first rows) of a table for each separator that it may have."""
    if path.suffix.lower() in (".jsonl", ".json"):
        yield "", _json_rows(path)
        return
    text = _head(path).decode("utf-8-sig", "ignore")
    for separator in ("\t",) if path.suffix.lower() == ".tsv" else _SEPARATORS:
        rows = _text_rows(path, text, separator)
        if rows and len(rows[0]) > 1:
            yield separator, rows


def _head(path: Path) -> bytes:
    """The start of a file; b"" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def _text_rows(path: Path, text: str, separator: str) -> list[dict[str, Any]]:
    """The first good rows of a table's start, each with all columns of the header."""
    rows: list[dict[str, Any]] = []
    try:
        good = (cells for cells in read_cells(path, text, separator) if not isinstance(cells, UserError))
        header = next(good, [])
        for cells in itertools.islice(good, _ROWS):
            rows.append(dict.fromkeys(header) | dict(zip(header, cells, strict=False)))
    except UserError:  # a quote without an end, maybe since the text ends here
        pass
    return rows


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """The first objects of a list, or of the lines of .jsonl; a bad one is a bad row of the source too."""
    if path.suffix.lower() == ".json":
        try:
            found = JsonLists([path])
        except UserError:
            return []
        return _good(functools.partial(found.__getitem__, i) for i in range(min(_ROWS, len(found))))
    try:
        with path.open("rb") as file:
            lines = itertools.islice(filter(bytes.strip, file), _ROWS)
            return _good(functools.partial(read_object, line, "a line") for line in lines)
    except OSError:
        return []


def _good(rows: Iterable[Callable[[], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Those that can be read."""
    found = []
    for read in rows:
        try:
            found.append(read())
        except UserError:
            continue
    return found


def _image_folder(root: Path, cells: Sequence[Any]) -> str | None:
    """The folder below root ("" = root itself) in which most cells name an image file; None if there is none."""
    named = [cell for cell in cells if isinstance(cell, str) and PurePosixPath(cell).suffix.lower() in IMAGE_SUFFIXES]
    if not named or len(named) < _ENOUGH * len(cells):
        return None
    for folder in ("", *(path.name for path in _subfolders(root))):
        there = sum(1 for name in named if is_file_below(root / folder, name))
        if there >= _ENOUGH * len(named):
            return folder
    return None


def _text_columns(cells: Mapping[str, Sequence[Any]]) -> tuple[str, str]:
    """(column of captions, column of descriptions) of those without images, each "" if it is not clear which it is."""
    others = [name for name in cells if any(isinstance(cell, str) for cell in cells[name])]
    by_name = [name for word in (*_CAPTIONS, *_LONG) for name in others if name.strip().lower() == word]
    caption = by_name[0] if by_name else others[0] if len(others) == 1 else ""
    longer = [name for name in by_name if name.strip().lower() in _LONG and name != caption]
    return caption, longer[0] if longer else ""


def _why_unused(root: Path, path: Path, split: str = "") -> UserError:
    """Why the captions are not taken from a table or a file of COCO's form."""
    shown = readable(str(path))
    if path.parent != root:
        return user_error(f"{shown} is in a folder of images", "a table in --data itself", "try --data with its folder")
    if names := _file_names(path) if path.suffix.lower() == ".json" else []:
        return user_error(f"{shown} is of photos such as {names[0]!r}", "these below --data", "fetch or move them")
    if split and path.stem != split and _read_table(root, path, ()):
        return user_error(f"{shown} is not of --split={split}", f"the name {split}", "rename it, or leave --split out")
    try:
        refuse_lfs_pointer(path)
    except UserError as error:
        return error
    except OSError as error:
        return unreadable(path, error)
    return _why_unread(path, shown)


def _why_unread(path: Path, shown: str) -> UserError:
    head = _head(path)
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # as in UTF-16
        return user_error(f"{shown} is not UTF-8", "text in UTF-8", "convert it")
    readings = [rows for _, rows in _readings(path) if rows]
    if path.suffix.lower() == ".jsonl" and not readings:
        return user_error(f"{shown} has no JSON object in its first {_ROWS} lines", "one in each line", "correct it")
    if path.suffix.lower() == ".json" and not readings:
        return _why_no_list(path, shown)
    if not readings and len(head) < _HEAD_BYTES and (error := _first_error(path, text)):
        return error
    names = max(([*rows[0]] for rows in readings), key=len, default=[])
    if any(map(_is_image_name, names)):
        do = "add one, and correct names such as 1.jpg#0" if any(map(_NUMBERED.search, names)) else "add one"
        return user_error(f"{shown} without a header", "the names of its columns, e.g. image,caption", do)
    return user_error(
        f"{shown} with the columns {readable(', '.join(names))[:200] or 'nothing'}",
        "a column of image files, as paths below --data, and one of captions",
        "name them by --columns=IMAGE,CAPTION, or put the images beside the table",
    )


def _why_no_list(path: Path, shown: str) -> UserError:
    try:
        JsonLists([path])
    except UserError as error:
        return error
    return user_error(f"{shown} has no JSON object in its first {_ROWS} rows", "[{...}, ...]", "correct it")


def _first_error(path: Path, text: str) -> UserError | None:
    """What is wrong with the first bad row of a CSV table."""
    try:
        rows = read_cells(path, text, "\t" if path.suffix.lower() == ".tsv" else ",")
        return next((UserError(f"{path}: {row}") for row in rows if isinstance(row, UserError)), None)
    except UserError as error:
        return error


def _noted(unused: Sequence[UserError]) -> tuple[str, ...]:
    more = (f"and {len(unused) - _NOTED} more tables are not used",) if len(unused) > _NOTED else ()
    return tuple(f"not used: {error}" for error in unused[:_NOTED]) + more


# ------------------------------------------------------------------------------------------------ folders
def _labeled_split(root: Path, split: str, columns: Sequence[str]) -> Found | None:
    """A split that is a folder with labels of its own, as Roboflow and Hugging Face write them."""
    splits = [folder.name for folder in _subfolders(root) if folder.name.lower() in _SPLITS]
    looked = [folder for folder in ([root / split] if split else map(root.joinpath, splits)) if folder.is_dir()]
    if not any(_tables(folder) or _coco_files(folder) for folder in looked):
        return None
    chosen, notes = (split, ()) if split else _chosen(splits, "splits", "--split=NAME")
    top = root / chosen
    found = _coco(top, "") or _gbc(top) or _table(top, "", columns)
    return found and replace(found, notes=notes + found.notes)


def _part(root: Path, split: str) -> tuple[str, tuple[str, ...]]:
    """(the folder that has the pictures, notes about the others); "" if they are in classes, or not in folders."""
    top = root / split
    with_images = [folder.name for folder in _subfolders(top) if _has_images(folder, 2)]
    if with_images and all(name.lower() in _SPLITS for name in with_images):
        return _chosen(with_images, "splits", f"--split={PurePosixPath(split, 'NAME')}")
    pictures = [name for name in with_images if name.lower() in _PICTURES]
    if len(pictures) != 1 or not all(name.lower() in (*_PICTURES, *_BESIDE) for name in with_images):
        return "", ()
    others = [folder.name for folder in _subfolders(top) if folder.name not in pictures]
    return pictures[0], (f"not used beside {pictures[0]}: {readable(', '.join(others))}",) if others else ()


def _folders(root: Path, split: str) -> Found | None:
    top = root / split
    if not top.is_dir():
        return None
    part, notes = _part(root, split)
    if part:
        found = _folders(root, str(PurePosixPath(split, part)))
        return found and replace(found, notes=notes + found.notes)
    inner = _subfolders(top)
    classes = [folder for folder in inner if _has_images(folder, 0)]
    if classes:
        nested = [folder.name for folder in inner if folder not in classes and _has_images(folder, 1)]
        if nested:
            which = f"folders in {readable(', '.join(nested))} are not used, since those beside them have images"
            notes = (f"{which} (--split={readable(nested[0])} takes them)",)
        images = [image for folder in classes for image in _listed(folder, *IMAGE_SUFFIXES)]
        if found := _with_texts(root, split, images, _CAPTIONED):
            return replace(found, notes=notes + found.notes)
        if (loose := len(_listed(top, *IMAGE_SUFFIXES))) > len(images):  # which the source would ignore
            found_photos = f"{loose} photos in {top} beside folders with {len(images)} ({readable(classes[0].name)})"
            do = "move the photos into folders of their classes, or the folders elsewhere"
            raise user_error(found_photos, "most photos in folders, or all outside", do)
        data = Data(source="folder", root=str(root), split=split)
        return Found(data=data, what="one folder for each class", notes=notes + _texts_unused(images))
    splits = [folder.name for folder in inner if _has_images(folder, 1)]
    if splits:
        chosen, notes = _chosen(splits, "splits", f"--split={PurePosixPath(split, 'NAME')}")
        found = _folders(root, str(PurePosixPath(split, chosen)))
        return found and replace(found, notes=notes + found.notes)
    return _flat(root, split, _listed(top, *IMAGE_SUFFIXES))


def _has_images(folder: Path, depth: int) -> bool:
    """Whether a folder, or one in it at most so deep, has images."""
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    if any(path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() for path in visible):  # the first is enough
        return True
    return depth > 0 and any(_has_images(each, depth - 1) for each in _subfolders(folder))


def _with_texts(root: Path, split: str, images: Sequence[Path], enough: float) -> Found | None:
    """Photos of which that share at least has text files beside them."""
    captioned = _captioned(images)
    if not images or captioned < enough * len(images):
        return None
    without = len(images) - captioned
    notes = (f"{without} of {len(images)} photos have no text file beside them, and are left out",) if without else ()
    data = Data(source="text_files", root=str(root), split=split)
    return Found(data=data, what="photos with captions in .txt files", notes=notes)


def _captioned(images: Sequence[Path]) -> int:
    """How many of the images have a text file that may be a caption."""
    return sum(1 for image in images if (path := text_file(image)) and not is_yolo(_text(path)))


def _text(path: Path) -> str:
    return _head(path).decode("utf-8", "replace")


def _texts_unused(images: Sequence[Path]) -> tuple[str, ...]:
    """What is to be said of text files that are not taken as captions."""
    texts = [path for image in images if (path := text_file(image))]
    of_yolo = sum(1 for path in texts if is_yolo(_text(path)))
    if of_yolo:
        expected = user_error(
            f"{of_yolo} text files of boxes in YOLO's form", "COCO's JSON", "convert them to use them"
        )
        return (f"not used: {expected}",)
    return (f"not used: {len(texts)} text files, since {len(images) - len(texts)} photos have none",) if texts else ()


def _photos(root: Path, split: str) -> Found | None:
    """Folders of images, with notes about the tables beside them, none of which could be used.

    Raises:
      UserError: such a table names images, and without it all of them would have one caption.
    """
    if not (found := _folders(root, split)):
        return None
    top = root / found.data.split
    classes = [folder for folder in _subfolders(top) if _has_images(folder, 0)]
    one_caption = found.data.source == "folder" and len(classes) < 2
    between = [root.joinpath(*top.relative_to(root).parts[:depth]) for depth in range(len(top.parts) - len(root.parts))]
    places = dict.fromkeys((*between, top, *classes))
    paths = [path for look in (_tables, _coco_files) for folder in places for path in look(folder)]
    unused = [(path, _why_unused(root, path, split)) for path in paths]
    stems = {path.stem for folder in (top, *classes) for path in _listed(folder, *IMAGE_SUFFIXES)} if unused else set()
    for path, error in unused if one_caption else ():
        if column := _column_of_stems(path, stems):
            found_ones = f"{readable(str(path))} with images without their suffix in the column {readable(column)!r}"
            error = user_error(found_ones, "file names such as 1.jpg", "write the suffixes")
        if column or _names_images(_head(path)) or (path.suffix.lower() == ".json" and _file_names(path)):
            raise UserError(f"{error}, or take it away to do without its captions")
    return replace(found, notes=found.notes + _noted([error for _, error in unused]))


def _column_of_stems(path: Path, stems: Container[str]) -> str:
    """The column of a table of which most cells are names of images without their suffix, or ""."""
    for _, rows in _readings(path) if path.suffix.lower() in (*TABLE_SUFFIXES, ".json") else ():
        for name in rows[0] if rows else ():
            there = [cell for row in rows if (cell := str(row.get(name)).strip()) in stems]
            if isinstance(name, str) and len({*there}) > 1 and len(there) >= _ENOUGH * len(rows):  # one is by chance
                return name
    return ""


def _names_images(head: bytes) -> bool:
    text = head.replace(b"\0", b"").lower()
    return text.startswith(LFS_POINTER) or any(suffix.encode() in text for suffix in IMAGE_SUFFIXES)


def _flat(root: Path, split: str, images: list[Path]) -> Found | None:
    """Photos in one folder.

    Raises:
      UserError: fewer than half of them have captions, which all would lose.
    """
    if not images:
        return None
    if found := _with_texts(root, split, images, _ENOUGH):
        return found
    if captioned := _captioned(images):
        do = "write the others, or take these away to do without captions"
        raise user_error(f"{captioned} of {len(images)} photos in {root / split} with a text file", "one for each", do)
    note = f"all have the caption {root.resolve().name!r}, the folder's name; a folder for each class says more"
    data = Data(source="folder", root=str(root), split=split)
    return Found(data=data, what="a folder of photos without captions", notes=(note, *_texts_unused(images)))
