"""Layout of T5 v1.1 under t5x's names: its tensors, their shapes, and which of them make up our parameters.

A source with a table for each stack names them "encoder/" + TABLE and "decoder/" + TABLE.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from kaleido_jax.config.schema import T5
from kaleido_jax.errors import user_error
from kaleido_jax.interop.source import FETCH_AGAIN, Source, check_tensors, read_weight
from kaleido_jax.models.kaleido import eval_init
from kaleido_jax.models.t5 import Decoder, Encoder

TABLE, HEAD = "token_embedder/embedding", "decoder/logits_dense/kernel"
LAYER = re.compile(r"/layers_(\d+)/")
Layout = dict[tuple[str, ...], tuple[list[str], tuple[int, ...]]]  # path of our leaf -> (t5x names, shape of each)
STACKS = {"encoder": "encoder", "prior": "decoder"}  # our part -> T5's stack
SIZED = ("relpos_bias/rel_embedding", "layers_0/attention/query/kernel", "layers_0/mlp/wi_0/kernel")


# ----------------------------------------------------------------------------------- names and shapes
def t5x_names(stack: str, path: Sequence[str], num_layers: int, table: str = TABLE) -> list[str]:
    """Names of the tensors that make up one of our leaves: one, or one for each layer."""
    if path[0] == "token_embedder":
        return [table]
    if path[0] != "layers":
        return ["/".join((stack, *path))]
    return ["/".join((stack, f"layers_{i}", *path[1:])) for i in range(num_layers)]


def layout(stack: str, tree: dict, table: str = TABLE) -> Layout:
    """The layout of our `tree` (arrays or shapes)."""
    part = {}
    for path, leaf in flatten_dict(tree).items():
        names = t5x_names(stack, path, leaf.shape[0], table)
        part[path] = (names, leaf.shape[1:] if path[0] == "layers" else leaf.shape)
    return part


def layouts(config: T5, rows: int) -> dict[str, Layout]:
    """`layout` of {"encoder": ..., "decoder": ...} for a model's sizes."""
    trees = zip(("encoder", "decoder"), t5_shapes(config, rows), strict=True)
    return {stack: layout(stack, tree) for stack, tree in trees}


def expected_shapes(parts: Mapping[str, Layout]) -> dict[str, tuple[int, ...]]:
    """t5x name -> shape of all tensors in `layouts`."""
    return {n: tuple(shape) for part in parts.values() for names, shape in part.values() for n in names}


def t5_shapes(config: T5, rows: int) -> tuple[dict, dict]:
    """Shapes of (encoder, decoder) parameters, without making any."""
    tokens, states = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, config.d_model))
    encoder = eval_init(Encoder(config, rows).init, tokens)
    decoder = eval_init(Decoder(config, rows).init, tokens, states, tokens == 0)
    return encoder["params"], decoder["params"]


def check_t5(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """`check_tensors` of a T5.

    Raises:
      UserError: missing or unknown names, or another shape; it starts with `what`.
    """
    do = "correct the sizes in config.model.t5; v1.1 has gated MLPs and one relative bias a stack"
    check_tensors(found, expected, what, "T5 v1.1 of this size", do)


def table_of(source: Source, stack: str) -> str:
    """Name of the token table that a stack reads."""
    return TABLE if TABLE in source.names else f"{stack}/{TABLE}"


def check_source(source: Source, plan: Mapping[str, Layout]) -> None:
    """Checks names and shapes of the parts of `plan`; tables may have any number of rows.

    Raises:
      UserError: missing or unknown names, or another shape; the head must have as many rows as the table.
    """
    stacks = {STACKS[part] for part in plan}
    if "decoder" in stacks and not has_decoder(source):
        raise user_error(f"{source.path} holds only an encoder", "a decoder too, for the prior", "take the whole T5")
    absent = {"encoder", "decoder"} - stacks
    found = {name: source.shape(name) for name in source.names if name.split("/")[0] not in absent}
    expected = expected_shapes(plan)
    rows = {name: found.get(name, shape)[:1] for name, shape in expected.items() if name.endswith(TABLE)}
    expected |= {name: (*rows[name], *expected[name][1:]) for name in rows}
    if HEAD in expected:
        expected[HEAD] = (*expected[HEAD][:1], *rows[table_of(source, "decoder")])
    check_t5(found, expected, str(source.path))


def has_decoder(source: Source) -> bool:
    """Whether it is more than a bare encoder."""
    return any(name.startswith("decoder/") for name in source.names)


def refuse_layer_biases(path: Path, name: str) -> NoReturn:
    """Refuses a T5 with a relative bias for each layer, which is another model.

    Raises:
      UserError: always.
    """
    raise user_error(
        f"{path} holds a T5 with a relative bias for each layer ({name}), as in t5x's scanned layers and umT5",
        "one relative bias for each stack (T5 v1.1, LM-adapted, Flan-T5)",
        "take a checkpoint whose layers are not scanned",
    )


def sizes(source: Source) -> tuple[T5, int]:
    """(config, table rows) of a source, from its shapes; the decoder's layers are 0 for a bare encoder.

    Raises:
      UserError: a tensor that shows a size is missing.
    """
    table = next((name for name in source.names if name.endswith(TABLE)), TABLE)
    names = [table, *(f"encoder/{part}" for part in SIZED)]
    for name in names:
        if name not in source.names or len(source.shape(name)) != 2:
            raise user_error(f"{source.path} without a matrix {name}", "a T5 v1.1 model", FETCH_AGAIN)
    (rows, d_model), (heads, _), (_, inner), (_, d_ff) = map(source.shape, names)
    layers = {"encoder": 0, "decoder": 0}
    for name in source.names:
        if found := LAYER.search(name):
            stack = name.split("/")[0]
            layers[stack] = max(layers[stack], int(found[1]) + 1)
    return T5(
        d_model=d_model,
        d_ff=d_ff,
        num_heads=heads,
        head_dim=inner // heads,
        num_encoder_layers=layers["encoder"],
        num_decoder_layers=layers["decoder"],
    ), rows


# -------------------------------------------------------------------------------------- the one table
def one_table(encoder: np.ndarray, decoder: np.ndarray) -> np.ndarray:
    """The decoder's table (rows, d) if its first rows are the encoder's.

    Raises:
      UserError: they are not.
    """
    if not _begins_with(decoder, encoder):
        raise user_error(
            f"token tables of encoder {encoder.shape} and decoder {decoder.shape} that differ in the rows of both",
            "one table: the models of Hugging Face and t5x read captions and latents with the same rows",
            "take the kaleido format, or t5x's for launch/t5x; a prior that was trained has a table of its own",
        )
    return decoder


def _begins_with(longer: np.ndarray, shorter: np.ndarray) -> bool:
    return len(shorter) <= len(longer) and np.array_equal(shorter, longer[: len(shorter)])


def tensors(source: Source, two_tables: bool = False) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a source, with one table instead of two; with `two_tables`, two different tables are kept.

    Raises:
      UserError: two different tables without `two_tables`.
    """
    tables = [f"{stack}/{TABLE}" for stack in ("encoder", "decoder") if f"{stack}/{TABLE}" in source.names]
    if tables:
        encoder, decoder = (read_weight(source, name) for name in (tables * 2)[:2])
        if two_tables and not _begins_with(decoder, encoder):
            yield from zip(tables, (encoder, decoder), strict=True)
        else:
            yield TABLE, one_table(encoder, decoder)
    for name in source.names:
        if name not in tables:
            yield name, read_weight(source, name)
