"""Tables and lines for the files in benchmarks/results."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.machine import describe


def table(columns: Sequence[tuple[str, str, str]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table of (heading, key, format) columns; a value that a row does not have is a blank."""
    shown = [[text.format(row[key]) if key in row else "" for _, key, text in columns] for row in rows]
    head = [f"| {' | '.join(name for name, *_ in columns)} |", "|---" * len(columns) + "|"]
    return head + [f"| {' | '.join(cells)} |" for cells in shown]


def described(*packages: str) -> str:
    """`describe` without the options that name files."""
    return re.sub(r" --(out|profile|wait_for)=[^\s`]+", "", describe(*packages))


def first_line(error: Exception) -> str:
    """Of its message, at most 300 characters."""
    return (str(error).splitlines() or [""])[0][:300]
