"""Network for t5x: its minimal T5 with a token table for each stack, as a prior beside a frozen encoder has them.

Only for t5x's own programs (launch/t5x): needs t5x, and nothing in the package imports this module. Its parameters have
the names that `interop.t5.t5x` writes: encoder/shared_embedding/embedding and decoder/shared_embedding/embedding.
"""

import flax.linen as nn
import jax.numpy as jnp
from t5x.examples.t5 import layers, network


class TwoTables(network.Transformer):
    """network.Transformer with an encoder table of `encoder_vocab_size` rows; the decoder's has config.vocab_size."""

    encoder_vocab_size: int = 32128

    def setup(self) -> None:
        """The same stacks; each adopts its own table, so that the table's parameters lie inside it."""
        self.encoder = network.Encoder(config=self.config, shared_embedding=self._table(self.encoder_vocab_size))
        self.decoder = network.Decoder(config=self.config, shared_embedding=self._table(self.config.vocab_size))

    def _table(self, rows: int) -> layers.Embed:
        return layers.Embed(
            num_embeddings=rows,
            features=self.config.emb_dim,
            dtype=self.config.dtype,
            attend_dtype=jnp.float32,
            embedding_init=nn.initializers.normal(stddev=1.0),
            one_hot=True,
            parent=None,  # so that the stack adopts it under the name of its field; otherwise this module would own it
        )
