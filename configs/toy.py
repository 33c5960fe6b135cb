"""Figure 3 of the paper: guidance collapses a class-conditional model to one mode, latents keep them all.

Command:  python -m kaleido_jax.main --config=configs/toy.py --workdir=runs/toy
Hardware: two CPU cores; about 100 s with everything to compile.
"""

from ml_collections import ConfigDict

from kaleido_jax.config import PointNet, default_config, to_config_dict


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "toy"
    config.recipe = "figure3"

    config.latents.segments = ("voken",)  # z = the mode, found by k-means on the points
    config.latents.codebook_size = 4
    config.latents.vokens_per_image = 1
    config.latents.max_latents_tokens = 2  # the voken and eos

    t5 = config.model.t5
    t5.vocabulary = "fashion"
    t5.d_model, t5.d_ff, t5.num_heads, t5.head_dim = 32, 64, 2, 16
    t5.num_encoder_layers, t5.num_decoder_layers = 1, 1
    t5.encoder.trainable = True
    config.model.denoiser = None
    config.model.point_denoiser = to_config_dict(PointNet())
    config.model.precision = "float32"

    config.data.max_caption_tokens = 4

    config.diffusion.p_uncond = 0.2  # guidance needs a good unconditional model

    train = config.train
    train.batch_size = 256
    train.num_steps = 1_500
    train.learning_rate = 2e-3
    train.lr_schedule = "cosine"
    train.warmup_steps = 100
    train.ema_decay = 0.995
    train.log_every_steps = 250

    config.sample.sampler = "ddim"
    config.sample.num_steps = 100
    config.eval.num_samples = 2_000  # points a panel of the figure
    return config
