"""MDM's released 1024x1024 text-to-image model, "flickr1024": 480,970,057 parameters. Stage three of three.

Command:  python -m kaleido_jax.main --config=configs/mdm_1024.py --workdir=runs/mdm_1024
Hardware: 4 images a GPU in the release (A100). Not yet trained with this code.
Needs:    mdm_256.py's model (config.init.inner), records of 1024 px images with captions (config.data.records) and
          the weights of flan-t5-xl (config.model.t5.checkpoint).
Weights:  https://docs-assets.developer.apple.com/ml-research/models/mdm/flickr1024/vis_model.pth

The 256 px net divides its input by its deviation here, but not as a model of its own. To continue from a run of
mdm_256.py exactly where it was, add --config.model.denoiser.inner.normalize_input=False.
"""

from ml_collections import ConfigDict

from kaleido_jax.config import UNet, base_config, to_config_dict


def get_config() -> ConfigDict:
    config = base_config("mdm_256")
    config.name = "mdm_1024"
    config.init.inner = "checkpoints/mdm/vis_model_256x256.pth"

    outer = UNet(
        image_size=1024,
        channels=(32, 32, 64),  # 1024, 512, 256 px
        num_res_blocks=(2, 2, 1),
        num_attn_layers=(0, 0, 0),
        attention_ffn=False,
        mid_blocks=False,
        emb_channels=1024,
        normalize_input=False,
        micro=(("scale", 1024.0),),
        remat="full",
    )
    inner, config.model.denoiser = config.model.denoiser, to_config_dict(outer)
    inner.normalize_input = True
    config.model.denoiser.inner = inner
    config.diffusion.shift_power = 2.0  # SNR / 256 at 1024 px and / 16 at 256 px
    config.diffusion.loss_weights = (1.0, 1.0, 1.0)  # the release has 16:4:1, but nothing reads it

    config.data.fetch = config.data.fetch.replace("256 px", "1024 px")
    config.sample.num_steps, config.sample.ddim_eta = 250, 1.0
    return config
