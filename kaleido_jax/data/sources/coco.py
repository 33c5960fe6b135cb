"""COCO's JSON: captions, boxes and masks by people.

Either COCO's own layout (annotations/instances_SPLIT.json, annotations/captions_SPLIT.json, SPLIT/*.jpg) or files named
by config.data.labels; images, annotations and captions of several files are joined by image id. A file may also have
its captions as a list in each image ("captions").
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from kaleido_jax import array_types as at
from kaleido_jax.data.images import read_image, read_photo
from kaleido_jax.data.sources import register
from kaleido_jax.data.sources.base import (
    Example,
    LabeledObject,
    SourceSettings,
    below,
    check_index,
    file_version,
    is_file_below,
    no_classes,
    read_labels,
    row_id,
)
from kaleido_jax.data.sources.masks import decode_segmentation
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.files import fingerprint

Entry = Mapping[str, Any]  # an object of the JSON
_TRIED = 50  # images by which the folder of photos is known


class CocoSource:
    """Images in the order of their ids; crowds are left out, since they have no single box or ellipse.

    The caption is the shortest one of an image and the description the longest, so that the text segment says more than
    the condition. Without captions the caption is "" and there is no description. A mask that cannot be read or
    has no pixel is left out, and a box without area in the image; an object with neither or of an unknown category is
    left out too, and the photo stays.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, settings: SourceSettings) -> None:
        """Reads all labels into memory.

        Raises:
          UserError: a file is missing or damaged (the message names file, entry and field), or no image is left.
        """
        data, root = settings.data, settings.root
        files = _label_files(root, data.split, data.labels)
        self._split = data.split
        self._images: dict[int, Entry] = {}
        self._objects: dict[int, list[Entry]] = {}
        self._captions: dict[int, list[str]] = {}
        self._names: dict[int, str] = {}
        self._licenses: dict[int, str] = {}
        parts = ["coco", data.split, data.images, repr(data.coco.licenses)]
        for path in files:  # one after the other, since each may be half a gigabyte
            content = read_labels(path)
            parts.append(fingerprint(content))
            self._add(_Table(path, content))
        self.fingerprint = fingerprint("\n".join(parts))
        chosen = [i for i in self._images.values() if not self._split or i.get("split", self._split) == self._split]
        licenses = data.coco.licenses
        if licenses:
            chosen = [i for i in chosen if _whole(i.get("license")) in licenses]
        if not chosen:
            what = f"split {self._split!r}" + (f" under licenses {tuple(licenses)}" if licenses else "")
            do = "change data.split or data.coco.licenses"
            raise user_error(f"no image of {what} in {files[0]}", "at least one", do)
        self._order = sorted(chosen, key=lambda image: image["id"])
        self._photos = _photo_folder(root, data.split, data.images, self._order)

    def __len__(self) -> int:
        return len(self._order)

    def id(self, index: int) -> str:
        """The id of one example, e.g. "coco/val2017/000000000139"."""
        image = self._order[check_index(index, len(self))]
        return row_id("coco", str(image.get("split", self._split)), image["id"], 12)

    def label(self, index: int) -> int:
        """Raises UserError: a photo of many things has no single class."""
        raise no_classes("a COCO photo")

    def version(self, index: int) -> str:
        """Changes with the labels and the size of the file."""
        image = self._order[check_index(index, len(self))]
        objects = self._objects.get(image["id"], [])
        names = [self._names.get(number) for number in _categories(objects)]
        labels = json.dumps([image, self._captions.get(image["id"]), objects, names, self._credit(image)])
        try:
            return file_version(below(self._photos, file_name(image)), labels)
        except UserError:
            return fingerprint(labels)

    def image_bytes(self, index: int) -> bytes:
        """The file's content."""
        return read_photo(below(self._photos, file_name(self._order[check_index(index, len(self))])))

    def __getitem__(self, index: int) -> Example:
        image = self._order[check_index(index, len(self))]
        pixels = read_image(below(self._photos, file_name(image)))
        height, width = pixels.shape[:2]
        size = {"width": width, "height": height}
        labeled_size = {field: image[field] for field in size if image.get(field) not in (None, 0)}
        for field, value in labeled_size.items():
            if not isinstance(value, int | float):  # some writers make 40 to 40.0
                raise user_error(f"an image whose {field} is {value!r}", "a whole number", "correct the labels")
        if size | labeled_size != size:
            labels = size | labeled_size
            turned = labels == {"width": height, "height": width}
            raise user_error(
                f"a photo of {width}x{height} px whose labels are for {labels['width']}x{labels['height']}",
                "equal sizes, the photo's as turned upright by its EXIF orientation" if turned else "equal sizes",
                f"{'turn the labels too, or ' * turned}fetch the photos that belong to these labels",
            )
        captions = sorted((c.strip() for c in self._captions.get(image["id"], ())), key=len)
        labeled = (self._object(a, height, width) for a in self._objects.get(image["id"], ()))
        return Example(
            id=self.id(index),
            image=pixels,
            caption=captions[0] if captions else "",
            description=captions[-1] if captions else None,
            objects=tuple(found for found in labeled if found is not None),
            credit=self._credit(image),
        )

    def _add(self, table: "_Table") -> None:
        for where, category in table.entries("categories"):
            number, name = table.whole(where, category, "id"), table.text(where, category, "name")
            if self._names.setdefault(number, name) != name:
                raise table.ambiguous(where, number, (self._names[number], name))
        for _, entry in table.entries("licenses", needed=False):
            number = _whole(entry.get("id"))
            if number is not None and isinstance(entry.get("name"), str):
                self._licenses[number] = entry["name"]
        for where, image in table.entries("images"):
            number = table.whole(where, image, "id")
            if not file_name(image):
                found = f"{table.path}: {where} has no file_name"
                raise user_error(found, "the photo's name, or a coco_url that ends in it", "correct the file")
            if number in self._images and file_name(self._images[number]) != file_name(image):
                raise table.ambiguous(where, number, (file_name(self._images[number]), file_name(image)))
            self._images[number] = {**image, "id": number}
            captions = image.get("captions")
            self._add_captions(number, [captions] if isinstance(captions, str) else captions or ())
        for where, annotation in table.entries("annotations"):
            number = table.whole(where, annotation, "image_id")
            if "caption" in annotation:
                self._add_captions(number, [annotation["caption"]])
            elif annotation.get("iscrowd") not in (1, "1"):
                self._objects.setdefault(number, []).append(annotation)

    def _add_captions(self, number: int, captions: Any) -> None:
        found = captions if isinstance(captions, Iterable) else ()
        self._captions.setdefault(number, []).extend(c for c in found if isinstance(c, str) and c.strip())

    def _object(self, annotation: Entry, height: int, width: int) -> LabeledObject | None:
        category = _whole(annotation.get("category_id"))
        if category not in self._names:
            return None
        mask = None
        try:
            if annotation.get("segmentation"):
                mask = decode_segmentation(annotation["segmentation"], height, width)
        except UserError:
            pass
        mask = mask if mask is not None and mask.any() else None
        box = _corners(annotation.get("bbox"), height, width) or (None if mask is None else _extent(mask))
        return None if box is None else LabeledObject(phrase=self._names[category], box=box, mask=mask)

    def _credit(self, image: Entry) -> str:
        number = _whole(image.get("license"))
        license_name = None if number is None else self._licenses.get(number)
        address = image.get("flickr_url") or image.get("coco_url")
        return ", ".join(part for part in (address, license_name) if isinstance(part, str) and part)


class _Table:
    """One label file; its errors name the entry and the field."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        try:
            self._table = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise user_error(f"{path} is damaged ({error})", "JSON", "fetch it again") from error
        if not isinstance(self._table, dict) or not isinstance(self._table.get("images"), list):
            found = f"{path} is not a COCO table (it has no list images)"
            raise user_error(found, "images, annotations and categories", "correct the file")

    def entries(self, name: str, needed: bool = True) -> Iterable[tuple[str, Entry]]:
        """("images[3]", entry) of one of the table's lists; errors in a list that is not needed are ignored."""
        listed = self._table.get(name) or ()
        if not isinstance(listed, list | tuple):
            if needed:
                raise user_error(f"{self.path}: {name} is not a list", "a list of objects", "correct the file")
            listed = ()
        for number, entry in enumerate(listed):
            if isinstance(entry, dict):
                yield f"{name}[{number}]", entry
            elif needed:
                raise user_error(f"{self.path}: {name}[{number}] is not an object", "{...}", "correct the file")

    def whole(self, where: str, entry: Entry, field: str) -> int:
        """A field that must be a whole number."""
        value = _whole(entry.get(field))
        if value is None:
            raise self._wrong(where, entry, field, "a whole number")
        return value

    def text(self, where: str, entry: Entry, field: str) -> str:
        """A field that must be text."""
        value = entry.get(field)
        if isinstance(value, str) and value.strip():
            return value
        raise self._wrong(where, entry, field, "text")

    def ambiguous(self, where: str, number: int, names: tuple[Any, Any]) -> UserError:
        """The error for an id that stands for two things."""
        found = f"{self.path}: {where}.id = {number} is the id of {names[0]} and of {names[1]}"
        return user_error(found, "an id for each", "correct the file, or name files of one data set in data.labels")

    def _wrong(self, where: str, entry: Entry, field: str, expected: str) -> UserError:
        value = entry.get(field)
        found = f"{where}.{field} = {str(value)[:40]!r} ({type(value).__name__})"
        if field not in entry:
            found = f"{where} has no {field}"
        return user_error(f"{self.path}: {found}", expected, "correct the file")


def _whole(value: Any) -> int | None:
    """A number of JSON as int, since some programs write 1 as 1.0 or "1"; None if it is no whole number."""
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    return int(value) if whole else None


def _categories(objects: Sequence[Entry]) -> list[int]:
    found = (_whole(annotation.get("category_id")) for annotation in objects)
    return sorted({number for number in found if number is not None})


def file_name(image: Entry) -> Any:
    """The photo's name; LVIS has only its URL, which ends in the name."""
    if image.get("file_name"):
        return image["file_name"]
    address = image.get("coco_url")
    try:
        return PurePosixPath(urlsplit(address).path).name if isinstance(address, str) else None
    except ValueError:  # brackets that hold no address of IPv6
        return None


def _corners(bbox: Any, height: int, width: int) -> tuple[float, float, float, float] | None:
    """The box [x, y, w, h], drawn in any direction; None if no area of it lies in the image, or it is of fractions."""
    try:
        x, y, w, h = map(float, bbox)
    except (TypeError, ValueError, OverflowError):
        return None
    (x1, x2), (y1, y2) = sorted((x, x + w)), sorted((y, y + h))
    visible = np.isfinite((x, y, w, h)).all() and x2 > 0 and x1 < min(x2, width) and y2 > 0 and y1 < min(y2, height)
    return (x1, y1, x2, y2) if visible and max(x2, y2) > 1 else None


def _extent(mask: at.ImageMask) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _label_files(root: Path, split: str, labels: Sequence[str]) -> list[Path]:
    if labels:
        return [root / name for name in labels]
    if (root / "annotations.json").exists():
        return [root / "annotations.json"]
    found = [root / "annotations" / f"{kind}_{split}.json" for kind in ("instances", "captions")]
    if not split or not any(path.exists() for path in found):
        have = sorted(p.stem.removeprefix("instances_") for p in root.glob("annotations/instances_*.json"))
        do = f"set data.split to one of {', '.join(have)}" if have else "correct data.root or set data.labels"
        raise user_error(f"no labels of split {split!r} in {root}", "annotations.json or annotations/*.json", do)
    return [path for path in found if path.exists()]


def _photo_folder(root: Path, split: str, images: str, entries: Sequence[Entry]) -> Path:
    """Where the photos lie: of the usual folders the one that has some of them, else the first that is there."""
    usual = ("images", split, f"images/{split}", ".")  # COCO's; Ultralytics's and CVAT's; names with their folder
    folders = [folder for folder in map(root.joinpath, (images,) if images else usual) if folder.is_dir()]
    for folder in folders:
        if any(is_file_below(folder, file_name(image)) for image in entries[:_TRIED]):
            return folder
    if not folders or (split and not images and {*folders} == {root}):
        expected = images or f"images or {split or 'the split'}"
        raise user_error(f"no folder of photos in {root}", expected, "set data.images")
    return folders[0]


register("coco", CocoSource)
