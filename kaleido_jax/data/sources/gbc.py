"""GBC's region captions: GBC10M and GBC1M (arXiv 2407.06723), which caption CC12M."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kaleido_jax.data.images import read_image, read_photo
from kaleido_jax.data.sources import register
from kaleido_jax.data.sources.base import (
    Example,
    LabeledObject,
    SourceSettings,
    below,
    check_index,
    file_version,
    no_classes,
    row_id,
)
from kaleido_jax.data.sources.rows import JsonLines, TextTable
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents.validity import clean_phrase
from kaleido_jax.runtime.files import fingerprint

_NUMBERED = re.compile(r"_[0-9]+$")  # vertex of one of several objects of the same name: "trees_0"
_NUMBER = re.compile(r" [0-9]+$")  # ... whose edge says "tree 1"


class GbcSource:
    """One image per line of the JSONL files that config.data.labels names, or of all below config.data.root.

    A line is {"vertices": [...], "img_path" or "img_url", "original_caption", "short_caption", "detail_caption"}. The
    caption is the original one or else the short one, the description the detailed one. The objects are the vertices
    labeled "entity", with boxes as fractions of the image; the edge to them gives their name, without the number that
    distinguishes objects of the same name. A vertex that lacks its box or name is left out. There are no masks.

    The data sets contain URLs, not files: images.csv beside them maps each URL to its file, in the columns img_url and
    img_path.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, settings: SourceSettings) -> None:
        """Finds the lines.

        Raises:
          UserError: the files are missing or empty.
        """
        data, root = settings.data, settings.root
        found = (path for path in sorted(root.glob("*.jsonl")) if not path.name.startswith("."))
        self._lines = JsonLines([root / name for name in data.labels] or list(found))
        if not len(self._lines):
            raise user_error(f"no row in *.jsonl of {root}", "at least one", "correct data.root or data.labels")
        self._photos, self._split = root / data.images, data.split
        self._files, table = {}, root / "images.csv"
        parts = ["gbc", data.split, data.images, self._lines.fingerprint]
        if table.exists():
            rows = TextTable([table], ("img_url", "img_path"))
            self._files = dict(_addresses(rows))
            parts.append(rows.fingerprint)
        self.fingerprint = fingerprint("\n".join(parts))

    def __len__(self) -> int:
        return len(self._lines)

    def id(self, index: int) -> str:
        """The id of one example, e.g. "gbc/00000017"."""
        return row_id("gbc", self._split, check_index(index, len(self)), 8)

    def label(self, index: int) -> int:
        """Raises UserError: there are no classes."""
        raise no_classes("a row of GBC")

    def version(self, index: int) -> str:
        """Changes with the line and the size of its file."""
        line = self._lines.version(check_index(index, len(self)))
        try:
            return file_version(self._photo(self._lines[index]), line)
        except UserError:
            return line

    def image_bytes(self, index: int) -> bytes:
        """The file's content."""
        return read_photo(self._photo(self._lines[check_index(index, len(self))]))

    def _photo(self, row: dict[str, Any]) -> Path:
        name = row.get("img_path") or self._files.get(_address(row))
        if not name:
            raise user_error("a row whose image was not fetched", "img_path, or its img_url in images.csv", "fetch it")
        return below(self._photos, name)

    def __getitem__(self, index: int) -> Example:
        row = self._lines[check_index(index, len(self))]
        path = self._photo(row)
        vertices = row.get("vertices")
        if not isinstance(vertices, list):
            raise user_error("a row without GBC's vertices", "a list", "correct the row")
        pixels = read_image(path)
        captions = [row.get(key) for key in ("original_caption", "short_caption")]
        caption = next((c for c in captions if isinstance(c, str) and c.strip()), "")
        detail = row.get("detail_caption")
        return Example(
            id=self.id(index),
            image=pixels,
            caption=caption.strip(),
            description=detail.strip() if isinstance(detail, str) and detail.strip() else None,
            objects=tuple(_entities(vertices, *pixels.shape[:2])),
            credit=_address(row),
        )


def _address(row: Mapping[str, Any]) -> str:
    address = row.get("img_url")
    return address if isinstance(address, str) else ""


def _addresses(rows: TextTable) -> Iterator[tuple[str, str]]:
    for index in range(len(rows)):
        try:
            row = rows[index]
        except UserError:  # the image then counts as not fetched
            continue
        if row.get("img_url") and row.get("img_path"):
            yield row["img_url"], row["img_path"]


def _entities(vertices: list[Any], height: int, width: int) -> Iterator[LabeledObject]:
    for vertex in vertices:
        try:
            if vertex["label"] != "entity":
                continue
            box = vertex["bbox"]
            corners = box["left"] * width, box["top"] * height, box["right"] * width, box["bottom"] * height
            yield LabeledObject(phrase=_entity_name(vertex), box=tuple(float(v) for v in corners))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, UserError):
            continue  # the photo and its caption are still useful without one region


def _entity_name(vertex: Mapping[str, Any]) -> str:
    edges = [edge["text"] for edge in vertex["in_edges"] if edge["text"].strip()]
    name = edges[0] if edges else vertex["vertex_id"]
    return clean_phrase(_NUMBER.sub("", name) if _NUMBERED.search(vertex["vertex_id"]) else name)


register("gbc", GbcSource)
