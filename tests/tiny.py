"""The smallest configs that still have every part, shared by all tests that train."""

import numpy as np

from kaleido_jax.config.checks import validate
from kaleido_jax.config.schema import UNet, to_config_dict
from kaleido_jax.models.decode import shift_right

EMOJI = "configs/emoji_combined.py"


def tiny_config_dict():
    """The quickstart's config with every size cut down."""
    from configs.emoji_combined import get_config

    config = get_config()
    t5 = config.model.t5
    t5.d_model, t5.d_ff, t5.num_heads, t5.head_dim = 16, 32, 2, 8
    t5.num_encoder_layers, t5.num_decoder_layers = 1, 1
    inner = UNet(
        image_size=8,
        channels=(8, 32),
        num_res_blocks=(1, 1),
        num_attn_layers=(0, 1),
        emb_channels=16,
        num_groups=4,
        text_proj_channels=16,
        num_text_layers=1,
    )
    outer = UNet(
        image_size=16,
        channels=(4, 8),
        num_res_blocks=(1, 1),
        num_attn_layers=(0, 0),
        attention_ffn=False,
        mid_blocks=False,
        emb_channels=16,
        num_groups=4,
        inner=inner,
    )
    config.model.denoiser = to_config_dict(outer)
    config.diffusion.prediction = "v"  # MDM's own; after a few steps a net that predicts x0 hardly sees the noise
    config.data.emoji.num_train, config.data.emoji.num_test = 128, 16
    config.data.emoji.two_share, config.latents.max_latents_tokens = 0.0, 64  # one sprite needs half of the tokens
    config.annotate.image_size = 16  # the smallest scenes, which smaller nets read too
    config.train.batch_size, config.train.num_steps, config.train.warmup_steps = 8, 4, 1
    config.train.log_every_steps, config.train.checkpoint_every_steps = 2, 2
    config.sample.num_steps = config.eval.num_steps = 2
    config.sample.captions = ("fruit", "bird")
    config.sample.images_per_caption = 2
    config.train.lr_schedule = "constant"
    config.eval.protocol = "none"
    config.eval.num_samples, config.eval.real_scenes, config.eval.reader_steps = 4, 8, 2
    return config


def tiny_config(**changes):
    """Validated; changes are dotted keys with "__" for the dot, e.g. train__num_steps=2."""
    return _changed(tiny_config_dict(), changes)


def _changed(config, changes):
    for key, value in changes.items():
        *path, last = key.split("__")
        group = config
        for part in path:
            group = group[part]
        group[last] = value
    return validate(config)


def tiny_batch(config, rows=8, seed=0):
    """Random numbers in a batch's form."""
    rng = np.random.default_rng(seed)
    size, length = config.model.denoiser.image_size, config.latents.max_latents_tokens
    target = rng.integers(3, 300, (rows, length)).astype(np.int32)
    weights = (np.arange(length) < rng.integers(5, length, (rows, 1))).astype(np.float32)
    target = np.where(weights > 0, target, 0)
    return {
        "image": rng.uniform(-1, 1, (rows, size, size, 3)).astype(np.float32),
        "encoder_input_tokens": rng.integers(3, 100, (rows, config.data.max_caption_tokens)).astype(np.int32),
        "decoder_target_tokens": target,
        "decoder_input_tokens": shift_right(target),
        "decoder_loss_weights": weights,
        "sample_id": np.arange(rows),
    }


def small_nest(size=8):
    """Two nets of one and two levels, the outer one of `size` px."""
    common = {"attention_ffn": False, "mid_blocks": False, "emb_channels": 16, "num_groups": 4}
    inner = UNet(image_size=size // 2, channels=(32,), num_res_blocks=(1,), num_attn_layers=(1,), **common)
    return UNet(image_size=size, channels=(8, 8), num_res_blocks=(1, 1), num_attn_layers=(0, 0), inner=inner, **common)


def small_nest_config(**changes):
    """`tiny_config` with `small_nest` of 16 px: compiles faster where any nest will do."""
    config = tiny_config_dict()
    config.model.denoiser = to_config_dict(small_nest(16))
    return _changed(config, changes)


def single_net_config(**changes):
    """One net of one level instead of a nest: compiles in a fraction of the time."""
    config = tiny_config_dict()
    config.model.denoiser = to_config_dict(
        UNet(
            image_size=8,
            channels=(32,),
            num_res_blocks=(1,),
            num_attn_layers=(1,),
            attention_ffn=False,
            mid_blocks=False,
            emb_channels=16,
            num_groups=4,
        )
    )
    return _changed(config, changes)
