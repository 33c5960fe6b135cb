"""The paper's text-to-image models: CC12M at 256x256, one for each kind of latents. Stage two of two.

Command:  python -m kaleido_jax.main --config=configs/cc12m.py:LATENTS --workdir=runs/cc12m_LATENTS
          LATENTS is text, bbox, blob, voken or combined (text | bbox | voken; also without ":LATENTS").
Hardware: the paper trains on A100 80 GB. Not yet trained with this code.
Needs:    stage one of these latents (cc12m_64.py, in config.init.inner), records of CC12M with them
          (config.data.records) and the weights of flan-t5-xl (config.model.t5.checkpoint).

The net, the noise and the optimizer are imagenet_combined.py's.
"""

from ml_collections import ConfigDict

from kaleido_jax.config import base_config
from kaleido_jax.errors import user_error

LATENTS = {  # segments and the longest z, in tokens with eos
    "text": (("text",), 160),
    "bbox": (("bbox",), 192),
    "blob": (("blob",), 192),
    "voken": (("voken",), 64),
    "combined": (("text", "bbox", "voken"), 416),
}


def get_config(latents: str = "combined") -> ConfigDict:
    if latents not in LATENTS:
        raise user_error(f"cc12m.py:{latents}", f"one of {', '.join(LATENTS)}", "choose one")
    config = base_config("imagenet_combined")
    config.name = f"cc12m_{latents}"
    config.init.inner = f"runs/cc12m_64_{latents}"  # its denoiser becomes the inner net; its prior trains on
    config.latents.segments, config.latents.max_latents_tokens = LATENTS[latents]

    config.data.max_caption_tokens = 128
    config.data.class_captions = ()
    config.data.fetch = (
        "get CC12M (github.com/google-research-datasets/conceptual-12m), annotate it at 256 px, and set "
        "config.data.records to the folder that holds train/"
    )
    config.sample.gamma = 7.0  # of the paper's text-to-image figures
    return config
