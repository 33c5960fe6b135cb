"""Fused attention: its kernels compute the plain formula, and run where their platform is the target."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from kaleido_jax.config import default_config, to_config_dict, validate
from kaleido_jax.config.schema import T5, UNet
from kaleido_jax.config.stored import check_workdir, open_workdir
from kaleido_jax.errors import UserError
from kaleido_jax.models import cpu
from kaleido_jax.models.attention import attend
from kaleido_jax.models.fused_attention import cudnn_attend, fused_attend, kernel_for, splash_attend
from kaleido_jax.models.t5 import Decoder
from kaleido_jax.models.unet import AttentionBlock
from kaleido_jax.runtime.mesh import split_over

RNG = np.random.default_rng(0)


def inputs(tokens, head_dim, dtype=jnp.float32):
    return [jnp.asarray(RNG.normal(size=(2, 2, tokens, head_dim)), dtype) for _ in range(4)]


def with_gradients(function):
    def run(q, k, v, dy):
        mixed, backward = jax.vjp(function, q, k, v)
        return mixed, *backward(dy)

    return jax.jit(run)


# 384 tokens: one block; 640: five of 128, so that the running maximum and sum are used.
@pytest.mark.parametrize(("tokens", "head_dim"), [(384, 24), (640, 16)])
def test_splash_attention_computes_the_plain_formula_and_its_gradients(tokens, head_dim):
    given = inputs(tokens, head_dim)
    found = with_gradients(lambda *qkv: splash_attend(*qkv, interpret=True))(*given)
    for mine, wanted in zip(found, with_gradients(attend)(*given), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-4)


def test_splash_attention_in_half_precision_is_as_near_as_the_plain_formula():
    given = inputs(256, 16)
    exact = with_gradients(attend)(*given)
    half = [x.astype(jnp.bfloat16) for x in given]
    fused = with_gradients(lambda *qkv: splash_attend(*qkv, interpret=True))(*half)
    for mine, plain, wanted in zip(fused, with_gradients(attend)(*half), exact, strict=True):
        error, of_plain = (np.abs(np.asarray(x, np.float32) - wanted).max() for x in (mine, plain))
        assert mine.dtype == jnp.bfloat16 and error < 2 * of_plain


def test_the_call_of_cudnn_is_the_plain_formula_in_jax_own_form():
    given = inputs(40, 24)
    found = with_gradients(lambda *qkv: cudnn_attend(*qkv, implementation="xla"))(*given)
    for mine, wanted in zip(found, with_gradients(attend)(*given), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-5)


def test_the_causal_call_of_cudnn_is_the_plain_formula_with_its_bias():
    q, k, v, dy = inputs(40, 24)
    bias = jnp.asarray(RNG.normal(size=(1, 2, 40, 40)), jnp.float32)
    mask = jnp.tril(jnp.ones((40, 40), bool))[None, None]

    def run(attended):
        mixed, backward = jax.vjp(attended, q, k, v, bias)
        return mixed, *backward(dy)

    found = run(lambda q, k, v, bias: cudnn_attend(q, k, v, bias, causal=True, implementation="xla"))
    for mine, wanted in zip(found, run(lambda q, k, v, bias: attend(q, k, v, bias, mask)), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "tokens", "kernel"),
    [("gpu", 256, "cudnn"), ("gpu", 255, None), ("tpu", 256, None), ("cpu", 256, None)],
)
def test_only_cudnn_takes_a_bias(platform, tokens, kernel):
    assert kernel_for(platform, jnp.bfloat16, tokens, 64, biased=True) == kernel


@pytest.mark.parametrize(
    ("platform", "dtype", "tokens", "head_dim", "kernel"),
    [
        ("gpu", jnp.bfloat16, 1024, 64, "cudnn"),
        ("gpu", jnp.float16, 256, 96, "cudnn"),
        ("gpu", jnp.float32, 1024, 64, None),
        ("gpu", jnp.bfloat16, 1024, 60, None),
        ("gpu", jnp.bfloat16, 1024, 136, None),
        ("tpu", jnp.bfloat16, 1024, 64, "splash"),
        ("tpu", jnp.bfloat16, 64, 64, None),
        ("tpu", jnp.float32, 1024, 64, None),
        ("cpu", jnp.bfloat16, 1024, 64, None),
        (None, jnp.bfloat16, 1024, 64, None),
    ],
)
def test_kernels_run_where_they_can(platform, dtype, tokens, head_dim, kernel):
    assert kernel_for(platform, dtype, tokens, head_dim) == kernel


@pytest.mark.parametrize(("tokens", "head_dim"), [(1024, 64), (256, 96)])  # the paper's levels of 32 and 16 px
def test_both_kernels_lower_for_the_paper_models_shapes(tokens, head_dim, monkeypatch):
    given = [jax.ShapeDtypeStruct((2, 8, tokens, head_dim), jnp.bfloat16)] * 4

    def lowered(platform, name):
        with cpu.plain(platform):
            return with_gradients(fused_attend).trace(*given).lower(lowering_platforms=(name,)).as_text()

    tpu = lowered("tpu", "tpu")
    assert tpu.count("tpu_custom_call") == 3 and f"{tokens}x{tokens}" not in tpu  # forward, dq, dk and dv
    as_on_a_gpu(monkeypatch)
    gpu = lowered("gpu", "cuda")
    assert "__cudnn$fmhaSoftmax" in gpu and "__cudnn$fmhaSoftmaxBackward" in gpu and f"{tokens}x{tokens}" not in gpu


def as_on_a_gpu(monkeypatch):
    """What JAX asks a GPU that is not there."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda _: False)


@pytest.mark.parametrize(
    ("attention", "platform", "fused"), [("fused", "gpu", True), ("fused", "cpu", False), ("plain", "gpu", False)]
)
def test_the_decoder_takes_the_kernel_that_its_config_and_platform_name(attention, platform, fused, monkeypatch):
    as_on_a_gpu(monkeypatch)
    config = T5(d_model=32, d_ff=32, num_heads=4, head_dim=8, num_decoder_layers=2, attention=attention)
    decoder, tokens, states = Decoder(config, 20, jnp.bfloat16), jnp.ones((2, 64), int), jnp.zeros((2, 5, 32))
    args = tokens, states, jnp.ones((2, 5), bool)
    params = nn.meta.unbox(jax.eval_shape(lambda: decoder.init(jax.random.key(0), *args)))

    def loss(params):
        return decoder.apply(params, *args)[1].sum()

    with cpu.plain(platform):
        traced = jax.jit(jax.grad(loss)).trace(params)
        text = traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,)).as_text()
    assert ("__cudnn$fmhaScaleBiasSoftmaxBackward" in text) == fused
    assert ("2x4x64x64xf32" not in text) == fused  # the matrix of attention


SPLIT = """
import jax, jax.numpy as jnp, numpy as np
from kaleido_jax.models.attention import attend
from kaleido_jax.models.fused_attention import splash_attend
from kaleido_jax.runtime.mesh import make_mesh, placing, split_over

rng = np.random.default_rng(0)
q, k, v = (jnp.asarray(rng.normal(size=(4, 2, 128, 8)), jnp.float32) for _ in range(3))
shapes = []

def kernel(q, k, v):
    shapes.append(q.shape)
    return splash_attend(q, k, v, interpret=True)

def split(q, k, v):
    with placing(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), (("batch", "data+fsdp"), ("act_heads", "tensor"))):
        return split_over(kernel, "batch", "act_heads")(q, k, v)

def gradients(function):
    return jax.jit(jax.grad(lambda *qkv: (function(*qkv) ** 2).sum(), argnums=(0, 1, 2)))(q, k, v)

for found, wanted in zip(gradients(split), gradients(attend), strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
assert set(shapes) == {(1, 1, 128, 8)}, shapes
print("equal")
"""


def test_on_a_mesh_each_device_runs_the_kernel_on_its_rows_and_heads(eight_devices):
    assert "equal" in eight_devices(SPLIT)


def test_without_a_mesh_a_function_is_not_split():
    assert split_over(attend, "batch", "act_heads") is attend


@pytest.mark.parametrize(
    ("attention", "platform", "fused"), [("fused", "tpu", True), ("fused", "cpu", False), ("plain", "tpu", False)]
)
def test_a_block_takes_the_kernel_that_its_config_and_platform_name(attention, platform, fused):
    config = UNet(emb_channels=16, num_groups=4, attention_ffn=False, attention=attention)
    block = AttentionBlock(64, 8, config, jnp.bfloat16)
    x, text = jnp.zeros((1, 16, 16, 64)), jnp.zeros((1, 3, 8))

    def run(block, x):
        return block(x, block.keys_values(text), None)

    params = nn.meta.unbox(jax.eval_shape(lambda: block.init(jax.random.key(0), x, method=run)))
    with cpu.plain(platform):
        traced = jax.make_jaxpr(lambda params: block.apply(params, x, method=run))(params)
    assert ("pallas_call" in str(traced)) == fused


@pytest.mark.parametrize("part", ["denoiser", "t5"])
def test_fused_attention_wants_half_precision(part):
    config = default_config()
    config.model[part].attention = "fused"
    config.model.precision = "float32"
    with pytest.raises(UserError, match='attention = "fused"; expected half precision'):
        validate(config)


def test_attention_and_remat_may_change_within_a_workdir_at_every_depth(tmp_path):
    def nested(**inner):
        config = default_config()
        inner = UNet(image_size=16, channels=(32,), num_res_blocks=(1,), num_attn_layers=(0,), **inner)
        outer = UNet(image_size=32, channels=(32, 32), num_res_blocks=(1, 1), num_attn_layers=(0, 0), inner=inner)
        config.model.denoiser = to_config_dict(outer)
        return validate(config)

    open_workdir(nested(), tmp_path)
    check_workdir(nested(attention="fused", remat="full"), tmp_path)
    with pytest.raises(UserError, match="belongs to another config"):
        check_workdir(nested(attention_ffn=False), tmp_path)
