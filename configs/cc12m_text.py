"""The paper's text-to-image model whose latents are a description alone: CC12M at 256x256. Stage two of two.

Command:  python -m kaleido_jax.main --config=configs/cc12m_text.py --workdir=runs/cc12m_text
Hardware: as cc12m_combined.py. Not yet trained with this code.
Needs:    as cc12m_combined.py, with stage one of these latents (configs/cc12m_64.py:text).
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("cc12m_combined.py")))["get_config"]()
    config.name = "cc12m_text"
    config.init.inner = "runs/cc12m_64_text"
    config.latents.segments = ("text",)
    config.latents.max_latents_tokens = 160
    return config
