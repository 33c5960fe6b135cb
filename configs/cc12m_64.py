"""Stage one of the paper's text-to-image models: the inner net alone at 64x64, with the same joint objective.

Command:  python -m kaleido_jax.main --config=configs/cc12m_64.py:LATENTS --workdir=runs/cc12m_64_LATENTS
          LATENTS is text, bbox, blob, voken or combined (also without ":LATENTS"); stage two is cc12m.py:LATENTS.
Hardware: as cc12m.py. Not yet trained with this code.
Needs:    records of CC12M with these latents (config.data.records): those of stage two, or smaller ones; and the
          weights of flan-t5-xl (config.model.t5.checkpoint).
"""

from ml_collections import ConfigDict

from kaleido_jax.config import base_config


def get_config(latents: str = "combined") -> ConfigDict:
    config = base_config(f"cc12m:{latents}")
    config.name = f"cc12m_64_{latents}"
    config.init.inner = None
    config.model.denoiser = config.model.denoiser.inner
    config.diffusion.loss_weights = (1.0,)
    config.train.num_steps = 400_000  # and as many in stage two
    return config
