"""Attention by kernels that never hold its matrix: cuDNN's on GPUs, splash attention on TPUs.

Both are flash attention (Dao et al. 2022, arXiv 2205.14135) with a float32 softmax. Between pixels they compute what
`attention.attend` computes without bias and mask; in T5's decoder cuDNN's adds the bias of positions, rounded to the
dtype of the queries as in t5x, and hides later tokens. Attention over text stays plain: its masks are data, and a row
without any valid key must give the plain mean.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from kaleido_jax.array_types import AttentionBias, AttentionMask, PerHead
from kaleido_jax.models import cpu
from kaleido_jax.models.attention import attend
from kaleido_jax.runtime.mesh import split_over

_LANES = 128  # of a TPU's vector registers: splash attention takes blocks of a multiple of them
_LARGEST_BLOCK = 512  # tokens; larger ones do not fit a TPU core's fast memory beside the gradients


def kernel_for(
    platform: str | None, dtype: DTypeLike, num_tokens: int, head_dim: int, biased: bool = False
) -> str | None:
    """The kernel that attention of this shape runs on the platform: "cudnn", "splash" or None, the plain formula.

    Both want half precision; cuDNN's wants a head_dim of a multiple of 8 up to 128, and with a bias an even number of
    tokens; splash attention takes no bias and wants a multiple of 128 tokens.
    """
    if np.dtype(dtype).itemsize != 2:
        return None
    if platform == "gpu" and head_dim % 8 == 0 and head_dim <= 128 and not (biased and num_tokens % 2):
        return "cudnn"
    if platform == "tpu" and num_tokens % _LANES == 0 and not biased:
        return "splash"
    return None


def fused_attend(q: PerHead, k: PerHead, v: PerHead) -> PerHead:
    """softmax(q k^T) v of as many keys as queries by this platform's kernel; it does not scale the logits.

    Where `kernel_for` knows none (a CPU, float32, another number of tokens), `attend` computes it.
    """
    kernel = kernel_for(cpu.traced_for(), q.dtype, *q.shape[2:])
    if kernel == "cudnn":
        return cudnn_attend(q, k, v)
    if kernel == "splash":
        # XLA cannot split a kernel over devices by itself.
        return split_over(splash_attend, "batch", "act_heads")(q, k, v)
    return attend(q, k, v)


def fused_causal_attend(q: PerHead, k: PerHead, v: PerHead, bias: AttentionBias, mask: AttentionMask) -> PerHead:
    """softmax(q k^T + bias) v of each token and those before it, as `fused_attend`; `mask` tells `attend` the same."""
    if kernel_for(cpu.traced_for(), q.dtype, *q.shape[2:], biased=True) == "cudnn":
        return cudnn_attend(q, k, v, bias, causal=True)
    return attend(q, k, v, bias, mask)


def cudnn_attend(
    q: PerHead,
    k: PerHead,
    v: PerHead,
    bias: AttentionBias | None = None,
    *,
    causal: bool = False,
    implementation: str = "cudnn",
) -> PerHead:
    """`attend` by cuDNN, which wants heads behind tokens; "xla" is the same call by JAX's own formula."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    bias = None if bias is None else bias.astype(q.dtype)
    how = {"is_causal": causal, "scale": 1.0, "implementation": implementation}
    return jax.nn.dot_product_attention(q, k, v, bias, **how).transpose(0, 2, 1, 3)


def splash_attend(q: PerHead, k: PerHead, v: PerHead, *, interpret: bool = False) -> PerHead:
    """`attend` by splash attention; `interpret` runs it without a TPU, slowly."""
    _, heads, tokens, _ = q.shape
    return jax.vmap(_splash(heads, tokens, interpret))(q, k, v)


def _splash(heads: int, tokens: int, interpret: bool) -> Callable[[Array, Array, Array], Array]:
    # Imported here: Pallas takes a while.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    largest = max(n for n in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if tokens % n == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    return splash.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((tokens, tokens))] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(**dict.fromkeys((f"block_{name}" for name in names), largest)),
        interpret=interpret,
    )
