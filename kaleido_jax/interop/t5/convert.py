"""Conversion of a T5 checkpoint from any format into another."""

import dataclasses
from pathlib import Path

from kaleido_jax.interop.source import Source
from kaleido_jax.interop.t5.huggingface import write_huggingface
from kaleido_jax.interop.t5.kaleido import write_kaleido
from kaleido_jax.interop.t5.layout import STACKS, check_source, has_decoder, layout, sizes, t5_shapes, table_of
from kaleido_jax.interop.t5.load import open_t5
from kaleido_jax.interop.t5.t5x import write_t5x
from kaleido_jax.runtime.files import new_folder


def convert_t5(source: Path | Source, output: Path, form: str) -> Source:
    """Writes a T5 checkpoint of any format as a new folder in another, keeping types; returns the opened source.

    Args:
      source: an open one, or its path (see `open_t5`).
      output: folder that does not exist or is empty.
      form: "t5x", "huggingface" or "kaleido".

    Raises:
      UserError: see `open_t5`; a tensor is missing or unknown; two tables that the format cannot hold; the
        output exists.
    """
    source = open_t5(source) if isinstance(source, Path) else source
    config, rows = sizes(source)
    config = dataclasses.replace(config, num_decoder_layers=max(config.num_decoder_layers, 1))
    trees = dict(zip(STACKS, t5_shapes(config, rows), strict=True))
    if not has_decoder(source):
        del trees["prior"]
    plan = {part: layout(STACKS[part], tree, table_of(source, STACKS[part])) for part, tree in trees.items()}
    check_source(source, plan)
    with new_folder(output, "--output") as folder:
        if form == "kaleido":
            write_kaleido(source, folder, plan)
        else:
            {"t5x": write_t5x, "huggingface": write_huggingface}[form](source, folder)
    return source
