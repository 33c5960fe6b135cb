"""Kaleido on scenes of Noto emoji, 32 px: the quickstart, and longer runs.

Command:  python -m kaleido_jax.main --config=configs/emoji_combined.py --workdir=runs/emoji
          python -m kaleido_jax.main --config=configs/emoji_combined.py:long --workdir=runs/emoji_long
          python -m kaleido_jax.main --config=configs/emoji_combined.py:baseline --workdir=runs/emoji_baseline
          python -m kaleido_jax.main --config=configs/emoji_combined.py:accelerator --workdir=runs/emoji_tiny
          ":long" trains the quickstart's model for longer, ":baseline" the same net without latents. ":accelerator" and
          ":accelerator-baseline" made the package's emoji-tiny and emoji-tiny-baseline. ":64" is a nested net of 64 px
          around the quickstart's, which may start from a long run and takes its vokens then:
          python -m kaleido_jax.main --config=configs/emoji_combined.py:64 --workdir=runs/emoji_64
            --config.init.inner=runs/emoji_long
            --config.annotate.voken.model=runs/emoji_long/records/quantizer.safetensors
Hardware: two CPU cores; 1,000 steps without a colon, 150,000 with one. ":accelerator": one H200 and 16 CPU cores, where
          it and its baseline took six and a half minutes beside each other, 3.6 million images each.
"""

from ml_collections import ConfigDict

from kaleido_jax.config import UNet, default_config, to_config_dict
from kaleido_jax.errors import user_error

VARIANTS = ("short", "long", "baseline", "accelerator", "accelerator-baseline", "64")


def get_config(variant: str = "short") -> ConfigDict:
    if variant not in VARIANTS:
        raise user_error(f"emoji_combined.py:{variant}", f"one of {', '.join(VARIANTS)}", "choose one")
    config = default_config()
    accelerator, baseline = variant.startswith("accelerator"), variant.endswith("baseline")
    config.name = {"short": "emoji_combined", "64": "emoji-64"}.get(variant, f"emoji-tiny{'-baseline' * baseline}")

    # The paper's combined latents plus the blob, which tells the tilt.
    config.latents.segments = () if baseline else ("text", "bbox", "blob", "voken")
    config.latents.codebook_size = 64  # codebook of the fitted residual quantizer
    config.latents.vokens_per_image = 4
    config.latents.coordinate_step = 10  # the vocabulary has these numbers as pieces
    config.latents.max_latents_tokens = 96  # holds the longest z but for one in 25,000
    if variant in ("long", "64"):  # 1.2 times as fast; each bucket compiles, which a short run does not get back
        config.data.length_buckets = (48, 80)

    # Two orders of magnitude below T5-small; no pretrained T5 of this size exists, so the encoder trains.
    t5 = config.model.t5
    t5.vocabulary = "emoji"
    t5.d_model, t5.d_ff, t5.num_heads, t5.head_dim = 128, 256, 4, 32
    t5.num_encoder_layers, t5.num_decoder_layers = 1, 2
    t5.encoder.trainable = True

    # Patches of 4 px: the net sees 8 x 8 positions, and at each of them all of z.
    net = UNet(
        image_size=32,
        patch=4,
        channels=(128,),
        num_res_blocks=(1,),
        num_attn_layers=(1,),
        attention_ffn=False,
        emb_channels=96,
        num_groups=8,
        text_proj_channels=64,
        num_text_layers=1,
    )
    if variant == "64":  # around it 16 x 16 positions; its 8 x 8 are the inner net's
        net = UNet(
            image_size=64,
            patch=4,
            channels=(64, 128),
            num_res_blocks=(1, 1),
            num_attn_layers=(0, 0),
            attention_ffn=False,
            emb_channels=96,
            num_groups=8,
            mid_blocks=False,
            inner=net,
        )
    config.model.denoiser = to_config_dict(net)
    config.model.precision = "float32"  # bfloat16 brings nothing on CPU

    # A patch has 48 numbers. To predict v the net must carry all of their noise through its 128 channels; to predict x0
    # it need not (Li and He 2025, arXiv 2511.13720), and it follows z several times sooner. The paper's loss on eps
    # hardly counts the noisy steps, where place and shape are decided; on x0 these count most.
    config.diffusion.prediction = "x0"
    config.diffusion.loss_space = "x0"

    config.data.source = "emoji"
    config.annotate.voken.feature = "pixels"
    config.data.max_caption_tokens = 8
    config.data.emoji.num_train = 10_000 if variant == "short" else 100_000
    config.data.emoji.num_test = 2_000

    train = config.train
    train.batch_size = 16  # of 4 and 16 for the same time, 16 follows z sooner
    train.num_steps = 1_000 if variant == "short" else 150_000
    train.learning_rate = 2e-3  # 3e-3 follows z sooner still, at a worse loss of the prior
    train.lr_schedule = "cosine"
    train.warmup_steps = 200
    train.ema_decay = 0.99 if variant == "short" else 0.9995
    train.log_every_steps = 50 if variant == "short" else 200
    train.checkpoint_every_steps = 500 if variant == "short" else 2_000

    # Ancestral as in the paper: its fresh noise also corrects errors of a briefly trained net on the way. After a long
    # run 20 steps of a solver will do.
    config.sample.sampler = "ddpm" if variant == "short" else "dpmpp_2m"
    config.sample.num_steps = 50 if variant == "short" else 20 if baseline else 10  # with z, 10 are as good as 20
    config.sample.gamma = 2.0 if variant == "short" else 4.0
    # Of emoji-tiny 99.2 % of z parse with all of the prior's tokens, 99.6 % with 98 %, in the same shares of modes.
    config.sample.top_p = 0.95 if variant == "short" else 0.98
    if variant != "short":  # from there on guidance only adds noise: 98 % of kinds are right instead of 92 %
        config.sample.guidance_interval = (0.8, 1e9)
        # Patches of 48 numbers through 128 channels: a nearly clean image comes out worse. 250 ancestral steps to the
        # end draw 96.5 % of kinds right, to here 98.5 %; the last of 20 steps of a solver is at 0.087.
        config.sample.sigma_min = 0.085
    config.eval.protocol = "emoji"
    config.eval.num_samples = 200 if variant == "short" else 1_200
    config.eval.num_steps = 50 if variant == "short" else 20
    config.eval.gamma = 2.0 if variant == "short" else 4.0
    if accelerator:  # batches of 16 would leave it idle; less noise in the gradient bears a higher rate
        train.batch_size, train.num_steps, train.learning_rate, train.warmup_steps = 256, 14_000, 3e-3, 500
        train.ema_decay, train.log_every_steps, train.checkpoint_every_steps = 0.999, 250, 3_500
        config.data.in_memory = True  # otherwise reading takes five processes
    return config
