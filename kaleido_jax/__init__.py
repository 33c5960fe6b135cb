"""Kaleido diffusion in JAX/Flax. Importing this package touches no device, no network, neither JAX nor TensorFlow.

    import kaleido_jax as kj

    pipe = kj.KaleidoPipeline.from_pretrained("runs/emoji")
    pipe("fruit", gamma=3.0).images[0][0].save("fruit.png")

Names are imported when first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kaleido_jax.config.load import load_config as load_config
    from kaleido_jax.config.schema import Config as Config
    from kaleido_jax.errors import UserError as UserError
    from kaleido_jax.evaluate.protocols import measure as measure
    from kaleido_jax.latents.segments.bbox import Box as Box
    from kaleido_jax.latents.segments.blob import Blob as Blob
    from kaleido_jax.latents.types import Latents as Latents
    from kaleido_jax.sampling.editing import Edited as Edited
    from kaleido_jax.sampling.output import KaleidoOutput as KaleidoOutput
    from kaleido_jax.sampling.pipeline import KaleidoPipeline as KaleidoPipeline
    from kaleido_jax.sampling.recipe import load_recipe as load_recipe
    from kaleido_jax.train.fit import fit as fit

__version__ = "0.1.0"

_MODULES = {
    "Blob": "latents.segments.blob",
    "Box": "latents.segments.bbox",
    "Config": "config.schema",
    "Latents": "latents.types",
    "UserError": "errors",
    "load_config": "config.load",
    "Edited": "sampling.editing",
    "KaleidoOutput": "sampling.output",
    "KaleidoPipeline": "sampling.pipeline",
    "fit": "train.fit",
    "load_recipe": "sampling.recipe",
    "measure": "evaluate.protocols",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
