"""FLOPs: the count of the traced step and the one written out from the config are the same number."""

import jax
import jax.numpy as jnp
import pytest

from kaleido_jax.config.checks import validate
from kaleido_jax.models import attention, cpu
from kaleido_jax.models.flops import step_flops, sum_parts
from kaleido_jax.plan.flops import count_flops
from kaleido_jax.plan.program import build_program, trace
from tests.tiny import small_nest_config, tiny_config, tiny_config_dict

VOCAB = 300
NO_LATENTS = {"latents__segments": ()}
FULL = {f"model__{part}remat": "full" for part in ("t5__", "denoiser__", "denoiser__inner__")}
DOTS = {name: "dots" for name in FULL}
FROZEN = {"model__t5__encoder__trainable": False}
TOLERANCE = 0.05  # what the plan promises; where both are ours to the last product they are equal


def counted(function, *shapes):
    return count_flops(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(*shape) for shape in shapes)))


def both(config):
    return count_flops(trace(build_program(config, VOCAB))).total(), sum_parts(step_flops(config, VOCAB)).total


# ------------------------------------------------------------------------------------------ known programs
def test_a_product_is_two_flops_for_each_pair():
    assert counted(jnp.matmul, ((3, 5), "float32"), ((5, 7), "float32")) == {"float32": 2 * 3 * 5 * 7}


def test_the_wider_factor_names_the_dtype():
    def product(a, b):
        return jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    assert counted(product, ((3, 5), "bfloat16"), ((5, 7), "float32")) == {"float32": 210}


def test_a_scan_counts_each_iteration_and_a_cond_its_dearest_branch():
    def function(x, w):
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, w)
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w[0] @ w[0], lambda x: x @ w[0], x)

    assert counted(function, ((2, 4), "float32"), ((6, 4, 4), "float32")).total() == (6 + 2) * 2 * 2 * 4 * 4


def test_what_nothing_reads_is_not_counted():
    def function(x):
        return (x @ x, jnp.sum(x))[1]

    assert counted(jax.jit(function), ((4, 4), "float32")).total() == 0


def test_products_that_only_a_cpu_takes_for_sums_are_not_counted():
    def flops():
        return counted(lambda x: attention.sum_last(x), ((2, 8), "float32")).total()  # jax keeps a function's trace

    with cpu.plain():
        assert flops() == 0
    assert flops() == 2 * 2 * 8


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_gradients_cost_three_times_its_forward_pass(stride):
    def forward(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = ((2, 8, 8, 3), "float32"), ((3, 3, 3, 5), "float32")
    once = 2 * 2 * (8 // stride) ** 2 * 9 * 3 * 5
    assert counted(forward, *shapes).total() == once
    grads = jax.grad(lambda x, w: (forward(x, w) ** 2).sum(), (0, 1))
    assert counted(grads, *shapes).total() == 3 * once


# ------------------------------------------------------------------------------------------ the training step
def test_the_tiny_config_counts_the_same_both_ways():
    traced, written = both(tiny_config())
    assert traced == pytest.approx(written, rel=TOLERANCE)


@pytest.mark.parametrize(
    "changes",
    [FROZEN | NO_LATENTS | DOTS, FULL | {"train__scheduled_sampling": 0.5, "train__mixed_ratio": (2, 1)}],
    ids=["frozen_baseline_dots", "full_scheduled_mixed"],
)
def test_remat_a_frozen_encoder_and_options_of_training_count_the_same_both_ways(changes):
    traced, written = both(small_nest_config(**changes))
    assert traced == pytest.approx(written, rel=TOLERANCE)


def test_patches_micro_conditions_and_class_captions_count_the_same_both_ways():
    changes = {"model__denoiser__patch": 2, "model__denoiser__micro": (("scale", 16.0),)}
    changes |= {"model__denoiser__channels": (8,), "model__denoiser__num_res_blocks": (1,)}
    changes |= {"model__denoiser__num_attn_layers": (0,)}
    traced, written = both(small_nest_config(**changes, **FROZEN, data__class_captions=("fruit", "bird")))
    assert traced == pytest.approx(written, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("latents", [("text", "bbox", "voken"), ()], ids=["kaleido", "baseline"])
def test_the_papers_model_cut_down_counts_the_same_both_ways(latents):
    from configs.imagenet_combined import get_config

    config = get_config()
    t5, outer, inner = config.model.t5, config.model.denoiser, config.model.denoiser.inner
    t5.d_model, t5.d_ff, t5.num_heads, t5.num_encoder_layers, t5.num_decoder_layers = 512, 1280, 8, 6, 6
    outer.channels, outer.num_res_blocks, inner.channels = (32, 32, 64), (1, 1, 1), (64, 128, 192)
    inner.num_res_blocks, inner.num_attn_layers = (1, 1, 1), (0, 1, 2)
    config.train.batch_size, config.latents.segments = 8, latents
    traced, written = both(validate(config))
    assert traced == pytest.approx(written, rel=TOLERANCE)


def test_a_point_model_counts_the_same_both_ways():
    config = tiny_config_dict()
    config.model.denoiser = None
    config.model.point_denoiser = {"dim": 2, "width": 16, "num_layers": 2, "emb_channels": 16}
    traced, written = both(validate(config))
    assert traced == pytest.approx(written, rel=TOLERANCE)
