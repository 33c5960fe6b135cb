"""MDM's released 64x64 text-to-image model, "flickr64": 461,359,107 parameters. Stage one of three.

Command:  python -m kaleido_jax.main --config=configs/mdm_64.py --workdir=runs/mdm_64
Hardware: 32 images a GPU in the release (A100). Not yet trained with this code.
Needs:    records of 64 px images with captions (config.data.records; the release was trained on 50M Flickr pairs
          that are not public) and the weights of flan-t5-xl (config.model.t5.checkpoint).
Weights:  https://docs-assets.developer.apple.com/ml-research/models/mdm/flickr64/vis_model.pth, which
          `convert --input=vis_model.pth --output=DIR --format=kaleido` turns into safetensors.
"""

from ml_collections import ConfigDict

from kaleido_jax.config import UNet, default_config, to_config_dict


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "mdm_64"
    config.latents.segments = ()  # MDM has none

    config.model.t5.vocabulary = "t5"
    config.model.t5.checkpoint = "checkpoints/flan_t5_xl"
    config.model.t5.encoder.trainable = False

    net = UNet(
        image_size=64,
        channels=(256, 512, 768),  # 64, 32, 16 px
        num_res_blocks=(2, 2, 2),
        num_attn_layers=(0, 1, 5),
        attention_ffn=True,
        emb_channels=1024,
        text_proj_channels=2048,
        num_text_layers=0,
        masked_cross_attention=False,  # padding is hidden from the pooled text alone
        micro=(("scale", 64.0),),
        remat="full",
    )
    config.model.denoiser = to_config_dict(net)
    config.model.precision = "bfloat16"  # what ml-mdm's flag fp16 means

    config.diffusion.schedule = "squared_cosine"  # DEEPFLOYD there
    config.diffusion.prediction = "v"
    config.diffusion.loss_space = "eps"
    config.diffusion.p_uncond = 0.1  # the public training code drops nothing, but the demo guides with 7.5

    config.data.source = "records"
    config.data.max_caption_tokens = 128
    config.data.verify = "size"
    config.data.fetch = (
        "get images with captions, such as CC12M (github.com/google-research-datasets/conceptual-12m), make records "
        "of 64 px, and set config.data.records to the folder that holds train/"
    )

    train = config.train
    train.batch_size = 512  # the release says 32 per GPU, but not how many GPUs
    train.num_steps = 400_000  # the release does not say
    train.learning_rate = 5e-5
    train.warmup_steps = 10_000
    train.adam_b1, train.adam_b2, train.adam_eps = 0.9, 0.999, 1e-8
    train.clip_norm = 2.0
    train.ema_decay = 0.9999
    train.sample_at_end = False  # name captions and use the verb `sample`

    sample = config.sample  # the demo's
    sample.sampler, sample.ddim_eta, sample.num_steps = "ddim", 0.0, 50
    sample.gamma = 7.5
    sample.threshold = "dynamic_capped"
    return config
