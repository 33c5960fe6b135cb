"""Loading of T5 weights: a file of any format is recognized, opened, and read into our sharded parameters.

The formats are t5x's (t5x.py), Hugging Face's (huggingface.py) and our own (kaleido.py).
"""

import functools
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding, SingleDeviceSharding
from jaxtyping import Float

from kaleido_jax.config.schema import Config
from kaleido_jax.errors import user_error
from kaleido_jax.interop.files.safetensors import INDEX, PICKLES, Safetensors, is_pickle, is_safetensors, pickle_error
from kaleido_jax.interop.source import Source, read_weight
from kaleido_jax.interop.t5.huggingface import HuggingFaceCheckpoint
from kaleido_jax.interop.t5.kaleido import KaleidoCheckpoint
from kaleido_jax.interop.t5.layout import HEAD, STACKS, TABLE, check_source, layout, table_of
from kaleido_jax.interop.t5.t5x import T5xCheckpoint
from kaleido_jax.latents.tokenizer import Tokenizer, load_tokenizer
from kaleido_jax.runtime.files import LFS_POINTER
from kaleido_jax.runtime.randomness import sample_keys
from kaleido_jax.runtime.workdir import VOCABULARY

log = logging.getLogger(__name__)

PATH = "correct config.model.t5.checkpoint, or --input of convert"
NEW_ROW_STD = 0.02  # in standard deviations of the old rows, so that new ids start similar and near the mean


# --------------------------------------------------------------------------------------------- opening
def open_t5(path: str | Path) -> Source:
    """The T5 checkpoint at a path, in any format; reads headers only.

    Raises:
      UserError: nothing there, an unknown format, a pickle, or a damaged file.
    """
    path = Path(path)
    if not path.exists():
        raise user_error(f"no T5 checkpoint at {path}", "a file or folder", PATH)
    if path.is_file():
        if is_pickle(path):
            raise pickle_error(path)
        shards = path.suffix == ".json"
        return _open_safetensors(path) if shards or is_safetensors(path) else T5xCheckpoint(path)
    if (path / "checkpoint").is_file() or any(path.glob("checkpoint_*/checkpoint")):
        return T5xCheckpoint(path)
    if any(path.glob("*.safetensors")) or (path / INDEX).is_file() or any(f.suffix in PICKLES for f in path.iterdir()):
        return _open_safetensors(path)
    raise user_error(
        f"{path} holds no T5 checkpoint",
        "checkpoint_<step>/checkpoint (t5x) or *.safetensors (Hugging Face, kaleido)",
        PATH,
    )


def _open_safetensors(path: Path) -> Source:
    files = Safetensors(path)
    ours = any(name.startswith("encoder/layers/") for name in files.names)
    return KaleidoCheckpoint(files) if ours else HuggingFaceCheckpoint(files)


# --------------------------------------------------------------------------------------------- loading
def load_t5(path: str | Path, targets: dict, *, num_pieces: int, base_vocab_size: int, seed: int) -> dict:
    """Parameters from a checkpoint, leaf by leaf: the host never holds more than one stacked leaf.

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
    plan = {part: layout(STACKS[part], tree, table_of(source, STACKS[part])) for part, tree in targets.items()}
    check_source(source, plan)
    for name in source.names:
        if name.endswith(TABLE) and source.shape(name)[0] < num_pieces:
            raise user_error(
                f"{source.path}: {name} has {source.shape(name)[0]} rows",
                f"one for each of the tokenizer's {num_pieces} pieces",
                "take the weights that belong to config.model.t5.vocabulary",
            )
    fit = functools.partial(fit_rows, base_vocab_size=base_vocab_size, seed=seed)

    def fill(part: str, leaf_path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        names, _ = plan[part][leaf_path]
        if names[0].endswith(TABLE):
            value = fit(read_weight(source, names[0]), leaf.shape[0], purpose="t5_table")
        elif names[0] == HEAD:
            value = fit(read_weight(source, HEAD).T, leaf.shape[1], purpose="t5_head").T
        elif leaf_path[0] == "layers":
            value = np.empty(leaf.shape, leaf.dtype)  # filled layer by layer, so only one tensor is held beside it
            for layer, name in zip(value, names, strict=True):
                layer[...] = read_weight(source, name)
        else:
            value = read_weight(source, names[0])
        return put_leaf(value, leaf)

    loaded = {
        part: unflatten_dict({p: fill(part, p, leaf) for p, leaf in flatten_dict(tree).items()})
        for part, tree in targets.items()
    }
    log.info("%s start from %s", " and ".join(loaded), source.path)
    return loaded


def load_pretrained(config: Config, shapes: dict, shardings: dict) -> dict:
    """The encoder and prior of config.model.t5.checkpoint, as far as `shapes` has them; {} without a checkpoint.

    A frozen encoder that computes in bfloat16 is also stored in it, except for its norm scales and relative bias, which
    are tiny and used in float32.

    Raises:
      UserError: the checkpoint is missing, damaged, or of another size or vocabulary.
    """
    t5, parts = config.model.t5, [part for part in STACKS if part in shapes]
    if t5.checkpoint is None or not parts:
        return {}

    def target(path: tuple, shape: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, stored_dtype(config, path), sharding=sharding)

    wanted, where = ({part: tree[part] for part in parts} for tree in (shapes, shardings))
    tokenizer = load_tokenizer(t5.vocabulary, config.latents.codebook_size)
    check_vocabulary(Path(t5.checkpoint), tokenizer)
    return load_t5(
        t5.checkpoint,
        jax.tree_util.tree_map_with_path(target, wanted, where),
        num_pieces=tokenizer.num_pieces,
        base_vocab_size=tokenizer.base_vocab_size,
        seed=config.seed,
    )


def check_vocabulary(weights: Path, tokenizer: Tokenizer) -> None:
    """Checks that the vocabulary beside the weights, as in Hugging Face's folders, has the tokenizer's pieces.

    The sizes of mT5 are those of T5 v1.1, and its table has rows enough for T5's vocabulary.

    Raises:
      UserError: it has others.
    """
    beside = (weights if weights.is_dir() else weights.parent) / VOCABULARY
    if not beside.is_file() or beside.read_bytes().startswith(LFS_POINTER):
        return
    theirs = Tokenizer(beside)
    common = range(min(theirs.num_pieces, tokenizer.num_pieces))  # one may be the other with more pieces
    other = next((i for i in common if theirs.piece(i) != tokenizer.piece(i)), None)
    if other is not None:
        raise user_error(
            f"the weights of config.model.t5.checkpoint = {str(weights)!r} with a vocabulary of {theirs.num_pieces} "
            f"pieces ({beside.name}), of which {other} is {theirs.piece(other)!r}",
            f"config.model.t5.vocabulary, of {tokenizer.num_pieces} pieces, of which it is {tokenizer.piece(other)!r}",
            f"set config.model.t5.vocabulary to {str(beside)!r}, or take the weights that belong to it",
        )


def stored_dtype(config: Config, path: tuple) -> jnp.dtype:
    """The dtype in which training holds the loaded parameter at `path`, a key path that begins with its part."""
    frozen = path[0].key == "encoder" and not config.model.t5.encoder.trainable
    half = frozen and config.model.precision == "bfloat16" and path[-1].key not in ("scale", "rel_embedding")
    return jnp.dtype(jnp.bfloat16 if half else jnp.float32)


def put_leaf(value: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """An array of the leaf's dtype and sharding (None = the first device)."""
    value = np.ascontiguousarray(value, leaf.dtype)
    sharding = leaf.sharding or SingleDeviceSharding(jax.devices()[0])
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: value[index])


def fit_rows(
    old: np.ndarray, vocab_size: int, base_vocab_size: int, *, seed: int, purpose: str
) -> Float[np.ndarray, "v d"]:
    """A table of `vocab_size` rows from an old one (V, d), float32.

    A table that already has `vocab_size` rows is one of ours and kept whole. Of another one the first `base_vocab_size`
    rows are kept: the rows after them are padding there and vokens here. A new row is the mean of the kept ones plus
    N(0, (0.02 of their standard deviation, dimension by dimension)^2), a function of (seed, purpose, row).
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
