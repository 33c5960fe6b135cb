"""The paper's class-conditional model: ImageNet 256x256, latents text | bbox | voken (appendix B).

Command:  python -m kaleido_jax.main --config=configs/imagenet_combined.py --workdir=DIR --config.mesh.fsdp=8
Hardware: the paper trains on A100 80 GB with 4 to 8 images a device; 16 fit by the compiler, so 32 devices, or fewer
          and config.train.accumulate (docs/scale.md). Not yet trained with this code.
Needs:    records of ImageNet with the three latents (config.data.records) and the weights of flan-t5-xl
          (config.model.t5.checkpoint).
"""

from ml_collections import ConfigDict

from kaleido_jax.config import UNet, default_config, to_config_dict
from kaleido_jax.data.sources.imagenet import class_captions


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "imagenet_combined"

    config.latents.segments = ("text", "bbox", "voken")
    config.latents.codebook_size = 8192  # SEED's codebook
    config.latents.vokens_per_image = 32
    config.latents.max_latents_tokens = 416

    # T5-XL: the schema's defaults. Encoder frozen; the decoder trains with 32128 + 8192 = 40320 rows.
    config.model.t5.vocabulary = "t5"
    config.model.t5.checkpoint = "checkpoints/flan_t5_xl"
    config.model.t5.remat = "dots"  # "full" needs 8 GB less for 16 images a device and 11 % more FLOPs
    config.model.t5.encoder.trainable = False

    # Appendix B.1; the text projection and its two layers belong to the inner net. 449,833,286 parameters.
    inner = UNet(
        image_size=64,
        channels=(256, 512, 768),  # 64, 32, 16 px
        num_res_blocks=(2, 2, 2),
        num_attn_layers=(0, 1, 5),
        attention_ffn=True,
        emb_channels=1024,
        text_proj_channels=1024,
        num_text_layers=2,
        masked_cross_attention=True,
        remat="full",
    )
    outer = UNet(
        image_size=256,
        channels=(64, 128, 256),  # 256, 128, 64 px
        num_res_blocks=(2, 2, 1),
        num_attn_layers=(0, 0, 0),
        attention_ffn=False,
        mid_blocks=False,
        emb_channels=1024,
        remat="full",
        inner=inner,
    )
    config.model.denoiser = to_config_dict(outer)
    config.model.precision = "bfloat16"  # the paper prints fp16, its first version bp16; T5 overflows in float16

    config.diffusion.schedule = "squared_cosine"  # "cosine" inside, "cosine-shift4" outside: SNR / 4 at 256 px
    config.diffusion.shift_power = 1.0
    config.diffusion.prediction = "v"
    config.diffusion.loss_space = "eps"
    config.diffusion.loss_weights = (1.0, 1.0)
    config.diffusion.p_uncond = 0.1

    config.data.source = "records"
    config.data.max_caption_tokens = 16  # the longest class name has 13
    config.data.length_buckets = (128, 192, 256, 320)  # of z, whose last bucket is max_latents_tokens
    config.data.class_captions = class_captions()  # the frozen encoder runs once on each, then its memory is free
    config.data.verify = "size"  # sha256 over 100 GB takes minutes
    config.data.fetch = (
        "get ImageNet-1k (image-net.org), annotate it, and set config.data.records to the folder that holds train/"
    )

    # Appendix B.2.
    train = config.train
    train.batch_size = 512
    train.num_steps = 400_000
    train.eta = 1.0  # not given in the paper
    train.learning_rate = 1e-4
    train.lr_schedule = "constant"
    train.warmup_steps = 10_000
    train.adam_b1, train.adam_b2, train.adam_eps = 0.9, 0.99, 1e-8
    train.clip_norm = 2.0
    train.ema_decay = 0.9999
    train.sample_at_end = False  # name captions and use the verb `sample`

    config.sample.sampler = "ddpm"
    config.sample.num_steps = 250
    config.sample.gamma = 4.0
    return config
