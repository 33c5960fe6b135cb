"""Our own T5: safetensors of our stacked leaves, "encoder/layers/mlp/wo/kernel" and "prior/...".

The only format that can hold a token table for each stack.
"""

from collections.abc import Iterator
from pathlib import Path
from types import EllipsisType
from typing import Protocol, runtime_checkable

import numpy as np

from kaleido_jax.interop.files.safetensors import write_safetensors
from kaleido_jax.interop.source import Source, read_weight
from kaleido_jax.interop.t5.layout import STACKS, TABLE, Layout, t5x_names


@runtime_checkable
class Leaves(Protocol):
    """Our leaves by name, "encoder/layers/mlp/wo/kernel", in safetensors or in memory."""

    path: Path
    names: tuple[str, ...]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a leaf."""

    def read(self, name: str, index: int | EllipsisType = ...) -> np.ndarray:
        """A leaf, or one layer of it."""


class KaleidoCheckpoint:
    """Our own leaves, layers stacked, under t5x's names; of an exported model without its denoiser."""

    def __init__(self, files: Leaves) -> None:
        """Reads headers only."""
        self.path, self._files, self._stored = files.path, files, {}
        for name in files.names:
            part, *path = name.split("/")
            if part == "denoiser":
                continue
            stack, stacked = STACKS.get(part, part), path[:1] == ["layers"] and files.shape(name) != ()
            length = files.shape(name)[0] if stacked else 1
            names = t5x_names(stack, path, length, f"{stack}/{TABLE}") if path else [name]
            self._stored |= {n: (name, i if stacked else ...) for i, n in enumerate(names)}
        self.names = tuple(sorted(self._stored))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one layer's tensor."""
        stored, index = self._stored[name]
        return self._files.shape(stored)[0 if index is ... else 1 :]

    def read(self, name: str) -> np.ndarray:
        """One layer's tensor."""
        return self._files.read(*self._stored[name])


def write_kaleido(source: Source, folder: Path, plan: dict[str, Layout]) -> None:
    """Writes model.safetensors of our leaves; `plan` is part -> path of a leaf -> (t5x names, shape)."""

    def leaves() -> Iterator[tuple[str, np.ndarray]]:
        for part, paths in plan.items():
            for path, (names, _) in paths.items():
                arrays = [read_weight(source, name) for name in names]
                yield "/".join((part, *path)), np.stack(arrays) if path[0] == "layers" else arrays[0]

    write_safetensors(leaves(), folder)
