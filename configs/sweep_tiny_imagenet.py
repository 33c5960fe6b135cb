"""A sweep over guidance on photographs: the models of configs/tiny_imagenet.py.

Command:  python -m kaleido_jax.main evaluate --sweep=configs/sweep_tiny_imagenet.py --workdir=runs/tiny_sweep
          --sweep.reference=DIR names the real images, SUPERCLASS/SUBCLASS/IMAGE, which should be at the
          models' size and quality (examples/tiny_imagenet.py).
Hardware: one GPU; nobody has run it yet
"""

import dataclasses

from ml_collections import ConfigDict

from kaleido_jax.config import base_config
from kaleido_jax.config.sweep import Sweep, SweptModel, SweptRule
from kaleido_jax.errors import user_error

VARIANTS = ("all",)
NAMES = {"baseline": "baseline", "voken": "vokens", "bbox": "boxes", "both": "boxes and vokens"}


def get_config(variant: str = "all") -> ConfigDict:
    if variant not in VARIANTS:
        raise user_error(f"sweep_tiny_imagenet.py:{variant}", f"one of {', '.join(VARIANTS)}", "choose it")
    emoji = base_config("sweep_emoji:bundled")
    first = base_config("tiny_imagenet:baseline").train.keep_every_steps
    models = tuple(
        SweptModel(name=NAMES[name], paths=(path := (f"runs/tiny_{name}",)), worse=path, worse_step=first)
        for name in NAMES
    )
    sweep = Sweep(
        name="Tiny ImageNet, 10 superclasses of 5 classes",
        protocol="classes",
        models=models,
        rules=tuple(SweptRule(**rule) for rule in emoji.rules),
        gammas=emoji.gammas,
        sample=emoji.sample,
        num_samples=2_500,
        num_reference=2_500,
        reference="data/val/images",
        tune_samples=500,
        chunk=500,
    )
    return ConfigDict(dataclasses.asdict(sweep))
