"""T5 v1.1 as Hugging Face stores it: safetensors in one file, a folder or shards, under transformers' names.

Projections and relative biases are the transpose of t5x's. Nothing here opens a pickle.
"""

import json
import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kaleido_jax.errors import user_error
from kaleido_jax.interop.t5.names import FETCH_AGAIN, HEAD, TABLE, Source, refuse_layer_biases, sizes, some, tensors
from kaleido_jax.models.t5 import EOS, MAX_DISTANCE, NORM_EPS, NUM_BUCKETS, PAD

MODEL, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")
SHARD_BYTES = 4 * 2**30
COPIES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # one table under three names
LEGACY = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"  # never read by any version
SHARED_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"
LAYER_BIAS = re.compile(rf"(en|de)coder\.block\.[1-9]\d*\.{re.escape(SHARED_BIAS)}")
BLOCK = re.compile(r"(encoder|decoder)\.block\.(\d+)\.(.+)")


# ---------------------------------------------------------------------------------------------- names
def _attention(part, sub, module):
    letters = {"query": "q", "key": "k", "value": "v", "out": "o"}
    return {f"{part}/{word}/kernel": f"layer.{sub}.{module}.{letter}.weight" for word, letter in letters.items()}


def _mlp(sub):
    return {f"mlp/{part}/kernel": f"layer.{sub}.DenseReluDense.{part}.weight" for part in ("wi_0", "wi_1", "wo")}


def _norms(*names):
    return {f"pre_{name}_layer_norm/scale": f"layer.{sub}.layer_norm.weight" for sub, name in enumerate(names)}


IN_LAYER = {
    "encoder": _attention("attention", 0, "SelfAttention") | _mlp(1) | _norms("attention", "mlp"),
    "decoder": _attention("self_attention", 0, "SelfAttention")
    | _attention("encoder_decoder_attention", 1, "EncDecAttention")
    | _mlp(2)
    | _norms("self_attention", "cross_attention", "mlp"),
}
OUTSIDE = {
    TABLE: COPIES[0],
    HEAD: "lm_head.weight",
    **{f"{s}/{s}_norm/scale": f"{s}.final_layer_norm.weight" for s in IN_LAYER},
    **{f"{s}/relpos_bias/rel_embedding": f"{s}.block.0.{SHARED_BIAS}" for s in IN_LAYER},
}
FROM_OUTSIDE = {theirs: ours for ours, theirs in OUTSIDE.items()}
FROM_LAYER = {stack: {theirs: ours for ours, theirs in table.items()} for stack, table in IN_LAYER.items()}


def to_hf(name: str) -> str:
    """Hugging Face's name of a t5x tensor."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    stack, layer, part = name.split("/", 2)
    return f"{stack}.block.{layer.removeprefix('layers_')}.{IN_LAYER[stack][part]}"


def from_hf(name: str) -> str:
    """t5x's name of a Hugging Face tensor; a name that T5 v1.1 does not have stays as it is."""
    if name in FROM_OUTSIDE:
        return FROM_OUTSIDE[name]
    found = BLOCK.fullmatch(name)
    part = FROM_LAYER[found[1]].get(found[3]) if found else None
    return f"{found[1]}/layers_{found[2]}/{part}" if part else name


def _transposed(name):
    return name.endswith(("/kernel", "/rel_embedding"))


# ---------------------------------------------------------------------------------------------- files
class Safetensors:
    """The tensors of a safetensors file, of a folder with one, or of an index with its shards."""

    def __init__(self, path: Path):
        """Reads headers only.

        Raises:
          UserError: no such file, a pickle, damage, or shards that lack what the index says.
        """
        self.path = path if path.is_file() else _find(path)
        if self.path.name.endswith(".json"):
            self._stored = self._read_index()
        else:
            self._stored = {name: (self.path, shape) for name, shape in _read_header(self.path).items()}
        self.names = tuple(sorted(self._stored))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape as stored."""
        return self._stored[name][1]

    def read(self, name: str, index=...) -> np.ndarray:
        """One tensor, or one entry of its first axis.

        Raises:
          UserError: the file is no longer what it was.
        """
        # The library maps the file, and pages once read stay in memory for as long as it is open: held open, a
        # checkpoint would be there twice by the time it is loaded. Opening costs what the header takes to parse.
        path = self._stored[name][0]
        with _open(path) as file:
            try:
                return file.get_tensor(name) if index is ... else file.get_slice(name)[index : index + 1][0]
            except SafetensorError as error:
                raise user_error(f"tensor {name} in {path} cannot be read", "a whole file", FETCH_AGAIN) from error

    def _read_index(self):
        try:
            places = json.loads(self.path.read_text())["weight_map"]
            wanted = {str(file): [name for name in places if places[name] == file] for file in set(places.values())}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise user_error(f"{self.path} is damaged", "an index with a weight_map", FETCH_AGAIN) from error
        stored = {}
        for file, names in sorted(wanted.items()):
            if Path(file).name != file:
                raise user_error(f"{self.path} points to {file!r}", "a file beside it", FETCH_AGAIN)
            path = self.path.parent / file
            shapes = _read_header(path)
            if lost := sorted(set(names) - shapes.keys()):
                raise user_error(f"{path} without {some(lost)}", "what the index says", FETCH_AGAIN)
            stored |= {name: (path, shapes[name]) for name in names}
        return stored


def _find(folder):
    for name in (INDEX, MODEL):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES)
    if not found and pickles:
        raise refuse_pickle(folder / pickles[0])
    have = some([f.name for f in found]) if found else "no weights"
    raise user_error(f"{have} in {folder}", f"{MODEL} or {INDEX}", "name one file or fetch what is missing")


def _open(path):
    if not path.is_file():
        raise user_error(f"no file {path}", "a safetensors file", FETCH_AGAIN)
    if is_pickle(path):
        raise refuse_pickle(path)
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise user_error(f"{path} is damaged ({reason})", "a safetensors file", FETCH_AGAIN) from error


def _read_header(path):
    """Name -> shape of what a file holds."""
    with _open(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle by its name or first bytes (a bare one, or the zip that torch writes)."""
    with path.open("rb") as file:
        head = file.read(9)
    # The length of a safetensors header can look like a pickle's first bytes, but then "{" follows.
    bare = head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5" and head[8:] != b"{"
    return path.suffix in PICKLES or head.startswith(b"PK\x03\x04") or bare


def refuse_pickle(path: Path):
    """The error for a file that would run code when loaded."""
    return user_error(
        f"{path} is a pickle, which can run any code when opened",
        "safetensors, or a t5x checkpoint",
        "fetch the model in one of these instead",
    )


class HuggingFaceCheckpoint:
    """A T5 v1.1 model or bare encoder of Hugging Face under t5x's names.

    Whether the head is tied is decided by the tensors, since configs of several versions contradict each other:
    without a head, or with one equal to the table, it is the table, divided by sqrt(d_model) unless
    config.json says otherwise.
    """

    def __init__(self, files: Safetensors):
        """Reads headers only.

        Raises:
          UserError: one relative bias a layer, or a damaged config.json.
        """
        self.path, self._files = files.path, files
        self._config = _read_config(files.path.parent / CONFIG)
        table = next((name for name in COPIES if name in files.names), COPIES[0])
        ignored = {LEGACY, *COPIES} - {table}
        self._stored = {TABLE if n == table else from_hf(n): n for n in files.names if n not in ignored}
        for name in files.names:
            if LAYER_BIAS.fullmatch(name):
                refuse_layer_biases(self.path, name)
        self._tied = HEAD not in self._stored and self._may_be_tied()
        self.names = tuple(sorted([*self._stored, HEAD] if self._tied else self._stored))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in t5x's layout."""
        if name == HEAD and self._tied:
            return self.shape(TABLE)[::-1]
        shape = self._files.shape(self._stored[name])
        return shape[::-1] if _transposed(name) else shape

    def read(self, name: str) -> np.ndarray:
        """One tensor in t5x's layout."""
        if name == HEAD:
            return self._head()
        array = self._files.read(self._stored[name])
        return array.T if _transposed(name) else array

    def _may_be_tied(self):
        # Version 4 writes False for untied models, so there a file without head is one that lost it.
        decoder = any(name.startswith("decoder/") for name in self._stored)
        return decoder and TABLE in self._stored and self._config.get("tie_word_embeddings") is not False

    def _head(self):
        table = self.read(TABLE)
        head = table if self._tied else self._files.read(self._stored[HEAD])
        if not self._tied and not np.array_equal(head, table):
            return head.T
        if self._config.get("scale_decoder_outputs") is False:
            return head.T
        return head.T.astype(np.float32) * np.float32(head.shape[1] ** -0.5)


def _read_config(path):
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise user_error(f"{path} is damaged", "the model's config in JSON", FETCH_AGAIN) from error


# --------------------------------------------------------------------------------------------- writing
def write_huggingface(source: Source, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes config.json and safetensors that transformers and `HuggingFaceCheckpoint` read; types are kept.

    Raises:
      UserError: the two stacks' token tables differ.
    """
    named = ((to_hf(name), array.T if _transposed(name) else array) for name, array in tensors(source))
    write_safetensors(named, folder, shard_bytes)
    (folder / CONFIG).write_text(json.dumps(hf_config(source), indent=2) + "\n")


def write_safetensors(named, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes (name, array) pairs as model.safetensors, or as shards of about `shard_bytes` with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, held, size, total = [], {}, 0, 0

    def flush():
        path = folder / f"shard_{len(shards)}"
        save_file(held, path, metadata={"format": "pt"})  # transformers wants the word, also for numpy's
        path.chmod(0o644)  # the library makes it its owner's alone
        shards.append((path, tuple(held)))
        held.clear()

    for name, array in named:
        if held and size + array.nbytes > shard_bytes:
            flush()
            size = 0
        held[name] = np.ascontiguousarray(array)  # safetensors writes the bytes of a transposed view in wrong order
        size, total = size + array.nbytes, total + array.nbytes
    flush()
    _name_shards(shards, folder, total)


def _name_shards(shards, folder, total_bytes):
    if len(shards) == 1:
        shards[0][0].rename(folder / MODEL)
        return
    places = {}
    for number, (path, names) in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path.rename(folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def hf_config(source: Source) -> dict:
    """transformers' T5Config of a source."""
    config, rows = sizes(source)
    decoder = config.num_decoder_layers
    return {
        "architectures": ["T5ForConditionalGeneration" if decoder else "T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": rows,
        "d_model": config.d_model,
        "d_kv": config.head_dim,
        "d_ff": config.d_ff,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": decoder or config.num_encoder_layers,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": bool(decoder),
        "tie_word_embeddings": False,
        "relative_attention_num_buckets": NUM_BUCKETS,
        "relative_attention_max_distance": MAX_DISTANCE,
        "layer_norm_epsilon": NORM_EPS,
        "decoder_start_token_id": PAD,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
    }
