"""The paper's text-to-image model whose latents are 32 visual tokens alone: CC12M at 256x256. Stage two of two.

Command:  python -m kaleido_jax.main --config=configs/cc12m_voken.py --workdir=runs/cc12m_voken
Hardware: as cc12m_combined.py. Not yet trained with this code.
Needs:    as cc12m_combined.py, with stage one of these latents (configs/cc12m_64.py:voken).
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("cc12m_combined.py")))["get_config"]()
    config.name = "cc12m_voken"
    config.init.inner = "runs/cc12m_64_voken"
    config.latents.segments = ("voken",)
    config.latents.max_latents_tokens = 64
    return config
