"""Kaleido on scenes of Noto emoji, 32 px: the quickstart.

Command:  python -m kaleido_jax.main --config=configs/emoji_combined.py --workdir=runs/emoji
Hardware: two CPU cores.
"""

from ml_collections import ConfigDict

from kaleido_jax.config import UNet, default_config, to_config_dict


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "emoji_combined"

    # The paper's combined latents plus the blob, so that the grid can show the ellipse too.
    config.latents.segments = ("text", "bbox", "blob", "voken")
    config.latents.codebook_size = 64  # codebook of the fitted residual quantizer
    config.latents.vokens_per_image = 8
    config.latents.coordinate_step = 10  # the vocabulary has these numbers as pieces
    config.latents.max_latents_tokens = 112  # holds the longest z

    # Two orders of magnitude below T5-small; no pretrained T5 of this size exists, so the encoder trains.
    t5 = config.model.t5
    t5.vocabulary = "emoji"
    t5.d_model, t5.d_ff, t5.num_heads, t5.head_dim = 96, 192, 4, 24
    t5.num_encoder_layers, t5.num_decoder_layers = 1, 2
    t5.encoder.trainable = True

    # 32 px outside, 16 px inside, as 256 around 64 in the paper.
    inner = UNet(
        image_size=16,
        channels=(32, 64, 64),  # 16, 8, 4 px; at 4 px every pixel is near the border and so knows its place
        num_res_blocks=(1, 1, 1),
        num_attn_layers=(0, 1, 1),
        emb_channels=128,
        num_groups=8,
        text_proj_channels=64,
        num_text_layers=1,
    )
    outer = UNet(
        image_size=32,
        channels=(16, 16),  # 32, 16 px
        num_res_blocks=(1, 1),
        num_attn_layers=(0, 0),
        attention_ffn=False,
        mid_blocks=False,
        emb_channels=128,
        num_groups=8,
        inner=inner,
    )
    config.model.denoiser = to_config_dict(outer)
    config.model.precision = "float32"  # bfloat16 brings nothing on CPU

    # The paper takes the loss on eps, which hardly counts the noisy steps where place and shape are decided; in the few
    # steps of a quickstart such a model never learned to follow z. v weighs all steps, x0 the noisy ones most.
    config.diffusion.loss_space = "x0"

    config.data.source = "emoji"
    config.annotate.voken.feature = "pixels"
    config.data.max_caption_tokens = 8
    config.data.emoji.num_train = 20_000
    config.data.emoji.num_test = 2_000

    train = config.train
    train.batch_size = 16  # batches of 32 make too few steps in the time, batches of 8 keep two cores less busy
    train.num_steps = 3_000
    train.learning_rate = 2e-3
    train.lr_schedule = "cosine"
    train.warmup_steps = 100
    train.ema_decay = 0.99
    train.log_every_steps = 50
    train.checkpoint_every_steps = 500

    # Ancestral as in the paper: its fresh noise also corrects errors of a briefly trained net on the way.
    config.sample.num_steps = 50
    config.sample.gamma = 2.0
    config.sample.top_p = 0.95
    config.eval.protocol = "emoji"
    config.eval.num_samples = 300
    config.eval.num_steps = 50
    return config
