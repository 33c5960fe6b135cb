"""Hugging Face's T5 v1.1: safetensors under transformers' names.

Projections and relative biases are the transpose of t5x's.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.errors import user_error
from kaleido_jax.interop.files.safetensors import SHARD_BYTES, Safetensors, write_safetensors
from kaleido_jax.interop.source import FETCH_AGAIN, Source
from kaleido_jax.interop.t5.layout import HEAD, TABLE, refuse_layer_biases, sizes, tensors
from kaleido_jax.models.t5 import EOS, MAX_DISTANCE, NORM_EPS, NUM_BUCKETS, PAD
from kaleido_jax.runtime.files import read_json, refuse_lfs_pointer

CONFIG = "config.json"
COPIES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # one table under three names
LEGACY = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"  # never read by any version
SHARED_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"
LAYER_BIAS = re.compile(rf"(en|de)coder\.block\.[1-9]\d*\.{re.escape(SHARED_BIAS)}")
BLOCK = re.compile(r"(encoder|decoder)\.block\.(\d+)\.(.+)")
ACTIVATION = re.compile(r"(gated-)?gelu(_new|_fast|_pytorch_tanh|_accurate|_python)?")  # within 0.001 of each other


# ---------------------------------------------------------------------------------------------- names
def _attention(part: str, sub: int, module: str) -> dict[str, str]:
    letters = {"query": "q", "key": "k", "value": "v", "out": "o"}
    return {f"{part}/{word}/kernel": f"layer.{sub}.{module}.{letter}.weight" for word, letter in letters.items()}


def _mlp(sub: int) -> dict[str, str]:
    return {f"mlp/{part}/kernel": f"layer.{sub}.DenseReluDense.{part}.weight" for part in ("wi_0", "wi_1", "wo")}


def _norms(*names: str) -> dict[str, str]:
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
    """t5x's name of a Hugging Face tensor; a name that T5 v1.1 lacks is returned unchanged."""
    if name in FROM_OUTSIDE:
        return FROM_OUTSIDE[name]
    found = BLOCK.fullmatch(name)
    part = FROM_LAYER[found[1]].get(found[3]) if found else None
    return f"{found[1]}/layers_{found[2]}/{part}" if part else name


def _transposed(name: str) -> bool:
    return name.endswith(("/kernel", "/rel_embedding"))


class HuggingFaceCheckpoint:
    """A T5 v1.1 model or bare encoder of Hugging Face under t5x's names.

    The tensors decide whether the head is tied, since configs of several versions contradict each other: without a
    head, or with one equal to the table, it is the table, divided by sqrt(d_model) unless config.json says otherwise.
    """

    def __init__(self, files: Safetensors) -> None:
        """Reads headers only.

        Raises:
          UserError: a relative bias for each layer, or a config.json that is damaged or of another architecture.
        """
        self.path, self._files = files.path, files
        self._config = _read_config(files.path.parent / CONFIG)
        _check_config(self._config, files.path.parent / CONFIG)
        table = next((name for name in COPIES if name in files.names), COPIES[0])
        ignored = {LEGACY, *COPIES} - {table}
        self._stored = {TABLE if n == table else from_hf(n): n for n in files.names if n not in ignored}
        for name in files.names:
            if LAYER_BIAS.fullmatch(name):
                refuse_layer_biases(self.path, name)
        decoder = any(name.startswith("decoder/") for name in self._stored)
        # Version 4 writes False for untied models, so a file of it without a head has lost it.
        may_be_tied = self._config.get("tie_word_embeddings") is not False
        self._tied = HEAD not in self._stored and decoder and TABLE in self._stored and may_be_tied
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

    def _head(self) -> np.ndarray:
        table = self.read(TABLE)
        head = table if self._tied else self._files.read(self._stored[HEAD])
        if not self._tied and not np.array_equal(head, table):
            return head.T
        if self._config.get("scale_decoder_outputs") is False:
            return head.T
        return head.T.astype(np.float32) * np.float32(head.shape[1] ** -0.5)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    refuse_lfs_pointer(path)
    return read_json(path, "the model's config in JSON", FETCH_AGAIN)


def _check_config(config: dict[str, Any], path: Path) -> None:
    """Checks what the tensors do not show: UL2 and Flan-UL2 have T5 v1.1's, but silu in their MLPs.

    Raises:
      UserError: the config says that the numbers of T5 v1.1 would not be this model's.
    """
    activation = "dense_act_fn" if config.get("dense_act_fn") else "feed_forward_proj"
    exact = {"relative_attention_max_distance": MAX_DISTANCE, "layer_norm_epsilon": NORM_EPS}
    wrong = [(name, value) for name, value in exact.items() if config.get(name, value) != value]
    if activation in config and not ACTIVATION.fullmatch(str(config[activation])):
        wrong.insert(0, (activation, "gated-gelu" if activation == "feed_forward_proj" else "gelu_new"))
    for name, value in wrong:
        found = f"{path} with {name} = {config[name]!r:.40}"
        raise user_error(found, f"{value!r}, as in T5 v1.1, LM-adapted and Flan-T5", "take one of these")


# --------------------------------------------------------------------------------------------- writing
def write_huggingface(source: Source, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes config.json and safetensors that transformers and `HuggingFaceCheckpoint` read, keeping types.

    Raises:
      UserError: the two stacks' token tables differ.
    """
    named = ((to_hf(name), array.T if _transposed(name) else array) for name, array in tensors(source))
    write_safetensors(named, folder, shard_bytes)
    (folder / CONFIG).write_text(json.dumps(hf_config(source), indent=2) + "\n")


def hf_config(source: Source) -> dict[str, Any]:
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
