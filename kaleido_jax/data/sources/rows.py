"""Rows of tables: JSONL with random access; lists in JSON, CSV and TSV read into memory."""

import bisect
import csv
import io
import json
from array import array
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from kaleido_jax.data.sources.base import read_labels, unreadable
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.files import fingerprint, refuse_lfs_pointer

_LONGEST_CELL = 2**30  # characters; csv's own limit is 2**17, which long descriptions reach


class JsonLines:
    """The lines of JSONL files, which may be larger than memory: only the start of each line is kept."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths, digest = list(paths), sha256()
        starts, digests, counts = array("q"), array("Q"), [0]  # 8 bytes per line, since there may be ten million
        for path in self._paths:
            start = 0
            try:
                refuse_lfs_pointer(path)
                with path.open("rb") as file:
                    for line in file:
                        if line.strip():
                            starts.append(start)
                            digests.append(int.from_bytes(sha256(line.strip()).digest()[:8]))
                        start += len(line)
                        digest.update(line)
            except OSError as error:
                raise unreadable(path, error) from error
            counts.append(len(starts))
        self._starts, self._digests, self._counts = starts, digests, counts
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The object of one line.

        Raises:
          UserError: the line does not hold a JSON object.
        """
        with self._paths[bisect.bisect_right(self._counts, index) - 1].open("rb") as file:
            file.seek(self._starts[index])
            line = file.readline()
        return read_object(line, "a line")

    def version(self, index: int) -> str:
        """Changes with the line."""
        return f"{self._digests[index]:016x}"


class JsonLists:
    """The objects in the lists that JSON files hold."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Reads the files.

        Raises:
          UserError: one of them cannot be read, or does not hold a list.
        """
        self._rows, digest = [], sha256()
        for path in paths:
            text = read_labels(path)
            try:
                rows = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise user_error(f"{path} that is not JSON", "a list of objects, [{...}, ...]", "correct it") from error
            if not isinstance(rows, list):
                raise user_error(f"{path} without a list of rows", "[{...}, ...]", "correct it, or data.labels")
            self._rows += rows
            digest.update(text)
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One object.

        Raises:
          UserError: it is something else.
        """
        if not isinstance(row := self._rows[index], dict):
            raise user_error("a row that is not a JSON object", "{...}", "correct it")
        return row

    def version(self, index: int) -> str:
        """Changes with the row."""
        return fingerprint(json.dumps(self._rows[index]))


def read_object(text: bytes, what: str) -> dict[str, Any]:
    """The JSON object in a text; `what` names the text in errors, e.g. "a line".

    Raises:
      UserError: there is none.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise user_error(f"{what} of too many brackets", "one JSON object", "correct it") from error
    except ValueError as error:
        raise user_error(f"{what} that is not JSON", "one JSON object", "correct it") from error
    if not isinstance(found, dict):
        raise user_error(f"{what} that is not a JSON object", "{...}", "correct it")
    return found


class TextTable:
    """The rows of CSV or TSV files with a header."""

    def __init__(self, paths: Sequence[Path], needed: Sequence[str], separator: str = "") -> None:
        """Reads the files, which must have the columns `needed`.

        `separator` is what stands between the cells: one character; "" = a comma, or a tab in .tsv files. Unless it is
        a tab, cells may be quoted, and spaces before a cell are none of it.

        Raises:
          UserError: a file is missing, not UTF-8, lacks a needed column, or has a quote that is never closed.
        """
        self._rows: list[dict[str, str] | UserError] = []
        digests = []
        for path in paths:
            content = read_labels(path)
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise user_error(f"{path} is not UTF-8", "text in UTF-8", "convert it") from error
            mark = separator or ("\t" if path.suffix.lower() == ".tsv" else ",")
            self._add(path, read_cells(path, text, mark), needed, mark)
            digests.append(fingerprint(content))
        self.fingerprint = fingerprint(*digests)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, str]:
        """One row as column -> cell; cells that a short row lacks are absent.

        Raises:
          UserError: the row's cells do not match the header.
        """
        row = self._rows[index]
        if isinstance(row, UserError):
            raise row
        return row

    def version(self, index: int) -> str:
        """Changes with the row."""
        row = self._rows[index]
        return fingerprint(str(row) if isinstance(row, UserError) else json.dumps(row))

    def _add(self, path: Path, lines: Iterator[list[str] | UserError], needed: Sequence[str], separator: str) -> None:
        header = next(lines, [])
        if isinstance(header, UserError):
            raise header
        missing = [column for column in needed if column not in header]
        if missing:
            have = ", ".join(header)[:200] or "nothing"
            split = len(header) == 1 and any(character in header[0] for character in ";,|\t")
            do = "set data.table.separator" if split else "set data.table.columns, or add a header"
            raise user_error(f"{path} has columns {have}", f"a column {missing[0]}", do)
        twice = [column for column in needed if header.count(column) > 1]
        if twice:
            raise user_error(f"{path} has {header.count(twice[0])} columns {twice[0]}", "one", "rename the others")
        do = "remove the tabs inside cells" if separator == "\t" else f"quote cells that hold {separator!r}"
        for cells in lines:
            if isinstance(cells, UserError):
                self._rows.append(cells)
            elif any(cells[len(header) :]):
                # A comma in a caption without quotes: the "caption" cell would be only a part of it.
                found = f"a row of {len(cells)} cells"
                self._rows.append(user_error(found, f"{len(header)} as in the header", do))
            else:
                self._rows.append(dict(zip(header, cells, strict=False)))


def read_cells(path: Path, text: str, separator: str) -> Iterator[list[str] | UserError]:
    """The cells of each row of a table, or what is wrong with the row; `path` names the table in errors.

    Raises:
      UserError: a quoted cell has no end, so it contains all lines after it.
    """
    return _tsv_cells(text) if separator == "\t" else _csv_cells(path, text, separator)


def _tsv_cells(text: str) -> Iterator[list[str]]:
    """TSV files of captions (CC3M, CC12M) have no quoting: a quote is an ordinary character."""
    for line in text.split("\n"):
        if line.strip("\r"):
            yield line.removesuffix("\r").split("\t")


def _csv_cells(path: Path, text: str, separator: str) -> Iterator[list[str] | UserError]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        skipinitialspace=separator != " ",
        strict=True,  # otherwise quotes inside a cell silently end it
    )
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                found = f"{path} line {first} opens a quoted cell that never ends"
                do = "close the quote, or write quotes of the text twice"
                raise user_error(found, "a closing quote", do) from error
            lines = f"line {first} is" if first == reader.line_num else f"lines {first} to {reader.line_num} are"
            yield user_error(
                f"{lines} not a row of CSV ({error})",
                "quotes around a cell, with quotes inside it doubled",
                "correct the lines",
            )
            continue
        if cells:
            yield cells
