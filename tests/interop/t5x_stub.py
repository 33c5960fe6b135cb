"""What launch/t5x uses of t5x (which is on no registry), with its names and arguments, on our own layers.

`install` puts the modules where Python finds them. The functions return what they are called with.
"""

import sys
import types
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from kaleido_jax.config.schema import T5
from kaleido_jax.models.t5 import DecoderLayer, EncoderLayer, RelativeBias, RMSNorm


@flax.struct.dataclass
class T5Config:
    """Fields of t5x's."""

    vocab_size: int
    dtype: Any = jnp.float32
    emb_dim: int = 512
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    head_dim: int = 64
    mlp_dim: int = 2048
    mlp_activations: Any = ("relu",)
    dropout_rate: float = 0.1
    logits_via_embedding: bool = False
    float32_attention_logits: bool = False


class Embed(nn.Module):
    """A table; `setup` makes it, as t5x does."""

    num_embeddings: int
    features: int
    dtype: Any = jnp.float32
    attend_dtype: Any = None
    embedding_init: Any = None
    one_hot: bool = False

    def setup(self):
        self.embedding = self.param("embedding", self.embedding_init, (self.num_embeddings, self.features))

    def __call__(self, tokens):
        return self.embedding[tokens]


def _sizes(config):
    return T5(d_model=config.emb_dim, d_ff=config.mlp_dim, num_heads=config.num_heads, head_dim=config.head_dim)


class Encoder(nn.Module):
    config: Any
    shared_embedding: nn.Module

    @nn.compact
    def __call__(self, tokens):
        c, length = self.config, tokens.shape[1]
        bias = RelativeBias(c.num_heads, bidirectional=True, name="relpos_bias")(length, length)
        x, mask = self.shared_embedding(tokens), (tokens > 0)[:, None, None, :]
        for i in range(c.num_encoder_layers):
            x, _ = EncoderLayer(_sizes(c), jnp.float32, name=f"layers_{i}")(x, bias, mask)
        return RMSNorm(jnp.float32, name="encoder_norm")(x)


class Decoder(nn.Module):
    config: Any
    shared_embedding: nn.Module

    @nn.compact
    def __call__(self, encoded, tokens, encoder_tokens):
        c, length = self.config, tokens.shape[1]
        bias = RelativeBias(c.num_heads, bidirectional=False, name="relpos_bias")(length, length)
        x, causal = self.shared_embedding(tokens), jnp.tril(jnp.ones((length, length), bool))[None, None]
        for i in range(c.num_decoder_layers):
            layer = DecoderLayer(_sizes(c), jnp.float32, name=f"layers_{i}")
            x, _ = layer(x, encoded, bias, causal, (encoder_tokens > 0)[:, None, None, :])
        x = RMSNorm(jnp.float32, name="decoder_norm")(x)
        return nn.Dense(c.vocab_size, use_bias=False, name="logits_dense")(x)


class Transformer(nn.Module):
    config: Any

    def __call__(self, encoder_tokens, decoder_tokens):
        return self.decoder(self.encoder(encoder_tokens), decoder_tokens, encoder_tokens)


def _record(module, name, *arguments):
    """A function of a module that takes these keyword arguments and returns them."""
    source = f"def {name}({', '.join(f'{a}=None' for a in arguments)}):\n    return dict(locals())\n"
    exec(source, module.__dict__)
    getattr(module, name).__module__ = module.__name__


def install():
    """Modules t5x, t5x.adafactor, ..., and `infer` and `evaluate` in __main__."""
    modules = {
        name: types.ModuleType(f"t5x.{name}" if name else "t5x")
        for name in ("", "adafactor", "decoding", "models", "partitioning", "utils", "examples", "examples.t5")
    }
    modules["examples.t5.network"] = types.ModuleType("t5x.examples.t5.network")
    modules["examples.t5.layers"] = types.ModuleType("t5x.examples.t5.layers")
    for name, module in modules.items():
        sys.modules[module.__name__] = module
        module.__path__ = []
        if name:
            parent, _, last = module.__name__.rpartition(".")
            setattr(sys.modules[parent], last, module)
    network, layers = modules["examples.t5.network"], modules["examples.t5.layers"]
    for cls in (T5Config, Encoder, Decoder, Transformer):
        cls.__module__ = network.__name__
        setattr(network, cls.__name__, cls)
    layers.Embed = Embed
    _record(modules["adafactor"], "standard_logical_factor_rules", "rules")
    _record(modules["adafactor"], "Adafactor", "learning_rate", "decay_rate", "step_offset", "logical_factor_rules")
    _record(modules["decoding"], "temperature_sample", "inputs", "eos_id", "num_decodes", "temperature", "topk", "topp")
    _record(modules["partitioning"], "PjitPartitioner", "num_partitions", "logical_axis_rules")
    _record(modules["partitioning"], "standard_logical_axis_rules", "rules")
    config = ("mixture_or_task_name", "task_feature_lengths", "split", "batch_size", "shuffle", "seed", "use_cached")
    _record(modules["utils"], "DatasetConfig", *config, "pack")
    _record(modules["utils"], "RestoreCheckpointConfig", "path", "mode", "dtype", "strict")
    modules["models"].EncoderDecoderModel = EncoderDecoderModel
    EncoderDecoderModel.__module__ = "t5x.models"
    main = sys.modules["__main__"]
    common = ("model", "dataset_cfg", "restore_checkpoint_cfg", "partitioner", "output_dir")
    _record(main, "infer", "mode", *common, "checkpoint_period", "checkpoint_ds_iter", "shard_id", "num_shards")
    _record(main, "evaluate", *common, "inference_evaluator_cls")


class EncoderDecoderModel:
    def __init__(self, module, input_vocabulary, output_vocabulary, optimizer_def, decode_fn):
        self.module, self.decode_fn, self.optimizer_def = module, decode_fn, optimizer_def
        self.input_vocabulary, self.output_vocabulary = input_vocabulary, output_vocabulary
