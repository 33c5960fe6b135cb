"""T5 v1.1 parameters under t5x's names ("encoder/layers_0/attention/query/kernel") to and from ours.

Names and layouts are the same but for two things: our layers are stacked on a leading axis, and the token
table that t5x shares between both stacks is a copy in each of ours.
"""

import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from kaleido_jax.config import T5
from kaleido_jax.errors import user_error
from kaleido_jax.models.t5 import Decoder, Encoder

TABLE = "token_embedder/embedding"
LAYER = re.compile(r"/layers_(\d+)/")


def from_flat(flat: Mapping[str, np.ndarray], config: T5) -> tuple[dict, dict]:
    """(encoder, decoder) parameters, float32 numpy, from t5x's.

    Args:
      flat: t5x name -> array, parts joined by "/" and without "target/"; TABLE is (rows, d_model).
      config: sizes of the model.

    Raises:
      UserError: names that are missing or unknown, or an array of another shape.
    """
    rows = flat[TABLE].shape[0] if TABLE in flat else 1
    expected = _names(config, rows)
    _check(flat, expected)
    return tuple(
        unflatten_dict({path: _gather(flat, names) for path, (names, _) in part.items()})
        for part in _parts(config, rows)
    )


def to_flat(encoder: dict, decoder: dict) -> dict[str, np.ndarray]:
    """Inverse of `from_flat`.

    Raises:
      UserError: the two stacks' token tables differ, which t5x's model cannot hold.
    """
    tables = [np.asarray(part["token_embedder"]["embedding"]) for part in (encoder, decoder)]
    if not np.array_equal(*tables):
        raise user_error(
            f"token tables of encoder {tables[0].shape} and decoder {tables[1].shape} that differ",
            "one table, which t5x shares between both",
            "give the encoder the decoder's table if its captions may be read with it",
        )
    flat = {}
    for stack, params in (("encoder", encoder), ("decoder", decoder)):
        for path, leaf in flatten_dict(params).items():
            names = _t5x_names(stack, path, len(leaf))
            rows = leaf if path[0] == "layers" else [leaf]
            flat |= {name: np.asarray(row) for name, row in zip(names, rows, strict=True)}
    return flat


def _t5x_names(stack, path, num_layers):
    """Names of one of our leaves: one, or one a layer."""
    if path[0] == "token_embedder":
        return [TABLE]
    if path[0] != "layers":
        return ["/".join((stack, *path))]
    return ["/".join((stack, f"layers_{i}", *path[1:])) for i in range(num_layers)]


def _parts(config, rows):
    """For encoder and decoder: path of our leaf -> (its t5x names, shape of each)."""
    for stack, shapes in zip(("encoder", "decoder"), abstract_params(config, rows), strict=True):
        part = {}
        for path, leaf in flatten_dict(shapes).items():
            stacked = path[0] == "layers"
            names = _t5x_names(stack, path, leaf.shape[0])
            part[path] = (names, leaf.shape[1:] if stacked else leaf.shape)
        yield part


def _names(config, rows):
    return {n: shape for part in _parts(config, rows) for names, shape in part.values() for n in names}


def _gather(flat, names):
    arrays = [np.asarray(flat[name], np.float32) for name in names]
    return np.stack(arrays) if LAYER.search(names[0]) else arrays[0]


def abstract_params(config: T5, rows: int) -> tuple[dict, dict]:
    """Shapes of (encoder, decoder) parameters, without making any."""
    tokens, states = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, config.d_model))
    calls = (Encoder(config, rows), (tokens,)), (Decoder(config, rows), (tokens, states, tokens == 0))
    return tuple(
        nn.meta.unbox(jax.eval_shape(lambda m=model, a=args: m.init(jax.random.key(0), *a)))["params"]
        for model, args in calls
    )


def _check(flat, expected):
    missing, unknown = sorted(expected.keys() - flat.keys()), sorted(flat.keys() - expected.keys())
    for kind, names in (("missing", missing), ("unknown", unknown)):
        if names:
            raise user_error(
                f"T5 weights with {len(names)} {kind} names ({', '.join(names[:3])})",
                f"the {len(expected)} tensors of T5 v1.1 with config.model.t5's sizes",
                "check the layer counts; v1.1 has gated MLPs, an untied head and one relative bias a stack",
            )
    for name, shape in expected.items():
        if tuple(flat[name].shape) != shape:
            found = tuple(flat[name].shape)
            raise user_error(f"{name} has shape {found}", f"{shape}", "correct config.model.t5")
