"""The paper's baseline on ImageNet 256x256: MDM, the denoiser of imagenet_combined.py without latents.

Command:  python -m kaleido_jax.main --config=configs/imagenet_mdm.py --workdir=DIR
Hardware: as imagenet_combined.py, without the prior. Not yet trained with this code.
Needs:    records of ImageNet, with or without latents (config.data.records), and the weights of flan-t5-xl
          (config.model.t5.checkpoint).
"""

from ml_collections import ConfigDict

from kaleido_jax.config import base_config


def get_config() -> ConfigDict:
    config = base_config("imagenet_combined")
    config.name = "imagenet_mdm"
    config.latents.segments = ()  # no prior, no AR loss; all else is "almost identical" in the paper
    config.data.fetch = (
        "get ImageNet-1k (image-net.org), make records of 256 px with class names as captions, and set "
        "config.data.records to the folder that holds train/"
    )
    return config
