"""Files written whole or not at all, and fingerprints of contents."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it becomes `path` at the end and is removed after an error.

    The name is unique, so several processes may write the same file at once; the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a whole file in one step, making its folder if need be."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def fingerprint(*parts: bytes | str) -> str:
    """16 hex digits that change with any byte of the parts (joined as they are; str as UTF-8)."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part)
    return digest.hexdigest()[:16]
