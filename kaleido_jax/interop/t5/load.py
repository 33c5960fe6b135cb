"""T5 weights from any file we know: opened by one function, loaded into our sharded parameters, converted.

The formats are t5x's (t5x.py), Hugging Face's (huggingface.py) and our own: safetensors with our stacked leaves,
"encoder/layers/mlp/wo/kernel" and "prior/...", the only one that can hold a table for each stack.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding
from jaxtyping import Float

from kaleido_jax.config.schema import Config
from kaleido_jax.errors import user_error
from kaleido_jax.interop.t5.huggingface import (
    INDEX,
    PICKLES,
    HuggingFaceCheckpoint,
    Safetensors,
    is_pickle,
    refuse_pickle,
    write_huggingface,
    write_safetensors,
)
from kaleido_jax.interop.t5.names import (
    HEAD,
    TABLE,
    Source,
    check,
    expected_shapes,
    layout,
    sizes,
    t5_shapes,
    t5x_names,
)
from kaleido_jax.interop.t5.t5x import T5xCheckpoint, write_t5x
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.runtime.files import new_folder
from kaleido_jax.runtime.randomness import sample_keys

log = logging.getLogger(__name__)

STACKS = {"encoder": "encoder", "prior": "decoder"}  # our part -> T5's stack
NEW_ROW_STD = 0.02  # of the old rows' own standard deviation, so that new ids start alike and near the mean


# --------------------------------------------------------------------------------------------- opening
def open_t5(path: str | Path) -> Source:
    """The T5 checkpoint at a path, of whatever format; only headers are read.

    Raises:
      UserError: nothing there, nothing that we know, a pickle, or damage.
    """
    path = Path(path)
    if not path.exists():
        raise user_error(f"no T5 checkpoint at {path}", "a file or folder", "correct config.model.t5.checkpoint")
    if path.is_file():
        return _open_file(path)
    if (path / "checkpoint").is_file() or any(path.glob("checkpoint_*/checkpoint")):
        return T5xCheckpoint(path)
    if any(path.glob("*.safetensors")) or (path / INDEX).is_file() or any(f.suffix in PICKLES for f in path.iterdir()):
        return _open_safetensors(path)
    raise user_error(
        f"{path} holds no T5 checkpoint",
        "checkpoint_<step>/checkpoint (t5x) or *.safetensors (Hugging Face, kaleido)",
        "correct config.model.t5.checkpoint",
    )


def _open_file(path):
    if is_pickle(path):
        raise refuse_pickle(path)
    return _open_safetensors(path) if path.suffix in (".safetensors", ".json") else T5xCheckpoint(path)


def _open_safetensors(path):
    files = Safetensors(path)
    ours = any(name.startswith("encoder/layers/") for name in files.names)
    return KaleidoCheckpoint(files) if ours else HuggingFaceCheckpoint(files)


class Leaves(Protocol):
    """Our leaves by name, "encoder/layers/mlp/wo/kernel", in safetensors or in memory."""

    path: Path
    names: tuple[str, ...]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a leaf."""

    def read(self, name: str, index=...) -> np.ndarray:
        """A leaf, or one layer of it."""


class KaleidoCheckpoint:
    """Our own leaves, layers stacked, under t5x's names."""

    def __init__(self, files: Leaves):
        """Reads headers only."""
        self.path, self._files, self._places = files.path, files, {}
        for name in files.names:
            part, *path = name.split("/")
            stack, stacked = STACKS.get(part, part), path[:1] == ["layers"]
            length = files.shape(name)[0] if stacked else 1
            names = t5x_names(stack, path, length, f"{stack}/{TABLE}") if path else [name]
            self._places |= {n: (name, i if stacked else ...) for i, n in enumerate(names)}
        self.names = tuple(sorted(self._places))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one layer's tensor."""
        stored, index = self._places[name]
        return self._files.shape(stored)[0 if index is ... else 1 :]

    def read(self, name: str) -> np.ndarray:
        """One layer's tensor."""
        return self._files.read(*self._places[name])


# --------------------------------------------------------------------------------------------- loading
def load_t5(path: str | Path, targets: dict, *, num_pieces: int, base_vocab_size: int, seed: int) -> dict:
    """Parameters from a checkpoint, made leaf by leaf: the host never holds more than one stacked leaf.

    Args:
      path: see `open_t5`.
      targets: {"encoder": tree, "prior": tree} or one of them; leaves are jax.ShapeDtypeStruct, whose dtype and
        sharding (None = the first device) the arrays get.
      num_pieces: pieces of the tokenizer; a table with fewer rows belongs to another one.
      base_vocab_size: table rows before the vokens; a row beyond, or beyond the file's, is new (see `fit_rows`).
      seed: for the new rows.

    Returns:
      Trees like `targets`, of arrays.

    Raises:
      UserError: see `open_t5`; names that are missing or unknown, another shape, too few rows.
    """
    source = open_t5(path)
    plan = {part: layout(STACKS[part], tree, _table(source, STACKS[part])) for part, tree in targets.items()}
    _check_source(source, plan)
    _check_rows(source, num_pieces)

    def fill(part, leaf_path, leaf):
        names, _ = plan[part][leaf_path]
        if names[0].endswith(TABLE):
            value = fit_rows(source.read(names[0]), leaf.shape[0], base_vocab_size, seed=seed, purpose="t5_table")
        elif names[0] == HEAD:
            value = fit_rows(source.read(HEAD).T, leaf.shape[1], base_vocab_size, seed=seed, purpose="t5_head").T
        else:
            value = _stack(source, names, leaf) if leaf_path[0] == "layers" else source.read(names[0])
        return place(value, leaf)

    loaded = {
        part: unflatten_dict({p: fill(part, p, leaf) for p, leaf in flatten_dict(tree).items()})
        for part, tree in targets.items()
    }
    log.info("%s start from %s", " and ".join(loaded), source.path)
    return loaded


def load_pretrained(config: Config, shapes: dict, shardings: dict) -> dict:
    """The encoder and prior of config.model.t5.checkpoint, as far as `shapes` has them; {} where none is set.

    A frozen encoder computed with in bfloat16 is stored so, but for its norm scales and relative bias: they are
    tiny and read in float32.

    Raises:
      UserError: the checkpoint is missing, damaged or of another size.
    """
    t5, parts = config.model.t5, [part for part in STACKS if part in shapes]
    if t5.checkpoint is None or not parts:
        return {}

    def target(path, shape, sharding):
        frozen = path[0].key == "encoder" and not t5.encoder.trainable
        half = frozen and config.model.precision == "bfloat16" and path[-1].key not in ("scale", "rel_embedding")
        return jax.ShapeDtypeStruct(shape.shape, jnp.bfloat16 if half else jnp.float32, sharding=sharding)

    wanted, places = ({part: tree[part] for part in parts} for tree in (shapes, shardings))
    tokenizer = load_tokenizer(t5.vocabulary, config.latents.codebook_size)
    return load_t5(
        t5.checkpoint,
        jax.tree_util.tree_map_with_path(target, wanted, places),
        num_pieces=tokenizer.num_pieces,
        base_vocab_size=tokenizer.base_vocab_size,
        seed=config.seed,
    )


def _table(source, stack):
    return TABLE if TABLE in source.names else f"{stack}/{TABLE}"


def _check_source(source, plan):
    """Names and shapes; how many rows the tables have is the file's own affair, and the head has as many."""
    stacks = {STACKS[part] for part in plan}
    if "decoder" in stacks and not _has_decoder(source):
        raise user_error(f"{source.path} holds an encoder alone", "a decoder too, for the prior", "take the whole T5")
    absent = {"encoder", "decoder"} - stacks
    found = {name: source.shape(name) for name in source.names if name.split("/")[0] not in absent}
    expected = expected_shapes(plan)
    rows = {name: found.get(name, shape)[:1] for name, shape in expected.items() if name.endswith(TABLE)}
    expected |= {name: (*rows[name], *expected[name][1:]) for name in rows}
    if HEAD in expected:
        expected[HEAD] = (*expected[HEAD][:1], *rows[_table(source, "decoder")])
    check(found, expected, str(source.path))


def _has_decoder(source):
    return any(name.startswith("decoder/") for name in source.names)


def _check_rows(source, num_pieces):
    for name in source.names:
        if name.endswith(TABLE) and source.shape(name)[0] < num_pieces:
            raise user_error(
                f"{source.path}: {name} has {source.shape(name)[0]} rows",
                f"one for each of the tokenizer's {num_pieces} pieces",
                "take the weights that belong to config.model.t5.vocabulary",
            )


def _stack(source, names, leaf):
    stacked = np.empty(leaf.shape, leaf.dtype)
    for index, name in enumerate(names):
        stacked[index] = source.read(name)
    return stacked


def place(value: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """An array of the leaf's dtype and sharding (None = the first device)."""
    value = np.ascontiguousarray(value, leaf.dtype)
    sharding = leaf.sharding or SingleDeviceSharding(jax.devices()[0])
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: value[index])


def fit_rows(
    old: np.ndarray, vocab_size: int, base_vocab_size: int, *, seed: int, purpose: str
) -> Float[np.ndarray, "v d"]:
    """A table of `vocab_size` rows from an old one (V, d), float32.

    A table that has `vocab_size` rows already is kept whole (it is one of ours). Of another the first
    `base_vocab_size` are kept: what lies behind them is padding there and vokens here. A new row is the mean of the
    kept ones plus N(0, (0.02 of their standard deviation, dimension by dimension)^2), a function of (seed, purpose,
    row).
    """
    kept = old if len(old) == vocab_size else old[: min(base_vocab_size, vocab_size)]
    kept = kept.astype(np.float32, copy=False)
    if len(kept) == vocab_size:
        return kept
    mean = kept.mean(0, dtype=np.float64)
    std = np.sqrt(np.square(kept - mean.astype(np.float32)).mean(0, dtype=np.float64))
    keys = sample_keys(seed, purpose, 0, jnp.arange(len(kept), vocab_size))
    noise = np.asarray(jax.vmap(lambda key: jax.random.normal(key, kept.shape[1:]))(keys))
    return np.concatenate([kept, (mean + NEW_ROW_STD * std * noise).astype(np.float32)])


# ------------------------------------------------------------------------------------------ converting
def convert(source: Path | Source, output: Path, form: str) -> Source:
    """Writes a T5 checkpoint of any format as a new folder in another, types kept; returns what was read.

    Args:
      source: an open one, or its path (see `open_t5`).
      output: folder that does not exist or is empty.
      form: "t5x", "huggingface" or "kaleido".

    Raises:
      UserError: see `open_t5`; a tensor is missing or unknown; two tables that the format cannot hold; the
        output exists.
    """
    source = open_t5(source) if isinstance(source, Path) else source
    plan = _whole(source)
    _check_source(source, plan)
    with new_folder(output, "--output") as folder:
        if form == "kaleido":
            write_kaleido(source, folder, plan)
        else:
            {"t5x": write_t5x, "huggingface": write_huggingface}[form](source, folder)
    return source


def write_kaleido(source: Source, folder: Path, plan: dict) -> None:
    """Writes model.safetensors of our leaves; `plan` is part -> path of a leaf -> (t5x names, shape)."""

    def leaves():
        for part, paths in plan.items():
            for path, (names, _) in paths.items():
                arrays = [source.read(name) for name in names]
                yield "/".join((part, *path)), np.stack(arrays) if path[0] == "layers" else arrays[0]

    write_safetensors(leaves(), folder)


def _whole(source):
    """What a source holds, as the layouts of our parts; sizes are read from its shapes."""
    config, rows = sizes(source)
    config = dataclasses.replace(config, num_decoder_layers=max(config.num_decoder_layers, 1))
    trees = dict(zip(STACKS, t5_shapes(config, rows), strict=True))
    if not _has_decoder(source):
        del trees["prior"]
    return {part: layout(STACKS[part], tree, _table(source, STACKS[part])) for part, tree in trees.items()}
