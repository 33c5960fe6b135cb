"""MDM's released 256x256 text-to-image model, "flickr256": 476,613,958 parameters. Stage two of three.

Command:  python -m kaleido_jax.main --config=configs/mdm_256.py --workdir=runs/mdm_256
Hardware: 24 to 32 images a GPU in the release (A100). Not yet trained with this code.
Needs:    mdm_64.py's model (config.init.inner: its file, or --config.init.inner=runs/mdm_64), records of 256 px images
          with captions (config.data.records) and the weights of flan-t5-xl (config.model.t5.checkpoint).
Weights:  https://docs-assets.developer.apple.com/ml-research/models/mdm/flickr256/vis_model.pth
"""

from ml_collections import ConfigDict

from kaleido_jax.config import UNet, base_config, to_config_dict


def get_config() -> ConfigDict:
    config = base_config("mdm_64")
    config.name = "mdm_256"
    config.init.inner = "checkpoints/mdm/vis_model_64x64.pth"

    outer = UNet(
        image_size=256,
        channels=(64, 128, 256),  # 256, 128, 64 px
        num_res_blocks=(2, 2, 1),
        num_attn_layers=(0, 0, 0),
        attention_ffn=False,
        mid_blocks=False,
        emb_channels=1024,
        normalize_input=False,
        micro=(("scale", 256.0),),
        remat="full",
    )
    inner, config.model.denoiser = config.model.denoiser, to_config_dict(outer)
    config.model.denoiser.inner = inner
    config.diffusion.shift_power = 1.0  # SNR / 4 at 256 px
    config.diffusion.loss_weights = (1.0, 1.0)

    config.data.fetch = config.data.fetch.replace("64 px", "256 px")
    config.sample.num_steps = 100
    return config
