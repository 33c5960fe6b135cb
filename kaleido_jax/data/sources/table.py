"""Tables of captions: rows of image file, caption and perhaps a long description; CSV, TSV, JSONL or a list in JSON."""

from pathlib import Path

from kaleido_jax.data.images import read_image, read_photo
from kaleido_jax.data.sources import register
from kaleido_jax.data.sources.base import (
    Example,
    SourceSettings,
    below,
    check_index,
    file_version,
    no_classes,
    row_id,
)
from kaleido_jax.data.sources.rows import JsonLines, JsonLists, TextTable
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.files import fingerprint
from kaleido_jax.runtime.text import readable

_SUFFIXES = (".csv", ".tsv", ".jsonl")
_LIST = ".json"  # may be many other things, so a table of another form comes first


class TableSource:
    """One image per row; config.data.labels names tables of one format, otherwise it is SPLIT.* or the only table."""

    class_names: tuple[str, ...] = ()

    def __init__(self, settings: SourceSettings) -> None:
        """Opens the tables.

        Raises:
          UserError: a table is missing, empty or without the image and caption columns.
        """
        data, root = settings.data, settings.root
        paths = [root / name for name in data.labels] or [_find_table(root, data.split)]
        self._columns, self._photos, self._split = data.table.columns, root / data.images, data.split
        separator, kinds = data.table.separator, {path.suffix.lower() for path in paths}
        if len(separator) > 1 or separator in ('"', "\n", "\r"):
            do = "correct it, or leave it empty"
            raise user_error(f"config.data.table.separator = {separator!r}", "one character such as ';'", do)
        if len(kinds) > 1:
            found = ", ".join(path.name for path in paths)
            raise user_error(f"tables {found}", "all .csv, all .tsv, all .jsonl or all .json", "correct data.labels")
        of_json = {".jsonl": JsonLines, _LIST: JsonLists}.get(*kinds)
        self._rows = of_json(paths) if of_json else TextTable(paths, self._columns[:2], separator)
        if not len(self._rows):
            what = ", ".join(path.name for path in paths)
            raise user_error(f"no row in {what} of {root}", "at least one", "correct data.root or data.labels")
        parts = ("table", data.split, data.images, *self._columns, *filter(None, [separator]), self._rows.fingerprint)
        self.fingerprint = fingerprint(readable("\n".join(parts)))

    def __len__(self) -> int:
        return len(self._rows)

    def id(self, index: int) -> str:
        """The id of one example, e.g. "table/train/00000017"."""
        return row_id("table", self._split, check_index(index, len(self)), 8)

    def label(self, index: int) -> int:
        """Raises UserError: there are no classes."""
        raise no_classes("a row of a table")

    def version(self, index: int) -> str:
        """Changes with the row and the size of its file."""
        row = self._rows.version(check_index(index, len(self)))
        try:
            return file_version(self._photo(index), row)
        except UserError:
            return row

    def image_bytes(self, index: int) -> bytes:
        """The file's content."""
        return read_photo(self._photo(index))

    def _photo(self, index: int) -> Path:
        return below(self._photos, self._rows[check_index(index, len(self))].get(self._columns[0]))

    def __getitem__(self, index: int) -> Example:
        row = self._rows[check_index(index, len(self))]
        image, caption, description = (row.get(column) for column in self._columns)
        absent = [column for column in self._columns[:2] if column not in row]
        if absent:  # of a short row, or of lines of JSON with other names
            found = f"a row without {absent[0]} (it has {', '.join(row)[:100] or 'nothing'})"
            raise user_error(found, f"a column {absent[0]}", "set data.table.columns, or correct the row")
        if not isinstance(caption, str) or not caption.strip():
            raise user_error("a row without a caption", f"text in the column {self._columns[1]}", "write one")
        return Example(
            id=self.id(index),
            image=read_image(below(self._photos, image)),
            caption=caption.strip(),
            description=description.strip() if isinstance(description, str) and description.strip() else None,
        )


def _find_table(root: Path, split: str) -> Path:
    folder, stem = (root / split).parent if split else root, Path(split).name
    there = sorted(folder.iterdir()) if folder.is_dir() else ()
    named = [path for path in there if not path.name.startswith(".") and (not split or path.stem == stem)]
    found = [path for path in named if path.suffix.lower() in _SUFFIXES]
    found = found or [path for path in named if path.suffix.lower() == _LIST]
    if len(found) != 1:
        what = ", ".join(path.name for path in found) or "no table"
        raise user_error(f"{what} in {root}", "one .csv, .tsv, .jsonl or .json", "name the table in data.labels")
    return found[0]


register("table", TableSource)
