"""The paper's text-to-image model: CC12M at 256x256, latents text | bbox | voken. Stage two of two.

Command:  python -m kaleido_jax.main --config=configs/cc12m_combined.py --workdir=runs/cc12m_combined
Hardware: the paper trains on A100 80 GB. Not yet trained with this code.
Needs:    stage one (cc12m_64.py, in config.init.inner), records of CC12M with the three latents
          (config.data.records) and the weights of flan-t5-xl (config.model.t5.checkpoint).

The net, the noise and the optimizer are imagenet_combined.py's; the other cc12m files change the latents alone.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("imagenet_combined.py")))["get_config"]()
    config.name = "cc12m_combined"
    config.init.inner = "runs/cc12m_64_combined"  # its denoiser becomes the inner net, its prior goes on

    config.latents.segments = ("text", "bbox", "voken")
    config.latents.max_latents_tokens = 416  # tokens with eos; text alone needs 160, boxes or blobs 192, vokens 64

    config.data.max_caption_tokens = 128
    config.data.class_captions = ()
    config.data.fetch = (
        "get CC12M (github.com/google-research-datasets/conceptual-12m), annotate it at 256 px, and set "
        "config.data.records to the folder that holds train/"
    )
    config.sample.gamma = 7.0  # of the paper's text-to-image figures
    return config
