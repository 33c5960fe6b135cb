"""A sweep over guidance on photographs: the models of configs/tiny_imagenet.py.

Command:  python -m kaleido_jax.main evaluate --sweep=configs/sweep_tiny_imagenet.py --workdir=runs/tiny/sweep
          ":cpu" is of those that a CPU has trained, --workdir=runs/tiny_cpu/sweep, with 1,500 images a cell;
          ":cpu-compared" of those with three trainings alone, under two rules, in the same folder.
          --sweep.reference=DIR names the real images, SUPERCLASS/SUBCLASS/IMAGE, which should be at the
          models' size and quality (examples/tiny_imagenet.py).
Hardware: one GPU, on which nobody has run it yet; docs/results/tiny-imagenet.md has ":cpu-compared"
"""

import dataclasses

from ml_collections import ConfigDict

from kaleido_jax.config import base_config
from kaleido_jax.config.sweep import Sweep, SweptModel, SweptRule
from kaleido_jax.errors import user_error

VARIANTS = ("all", "cpu", "cpu-compared")
NAMES = {"baseline": "baseline", "both": "boxes and vokens", "voken": "vokens", "bbox": "boxes"}
SEVERAL = ("baseline", "both")  # trained with three seeds


def get_config(variant: str = "all") -> ConfigDict:
    if variant not in VARIANTS:
        raise user_error(f"sweep_tiny_imagenet.py:{variant}", f"one of {', '.join(VARIANTS)}", "choose one")
    cpu = variant.startswith("cpu")
    emoji = base_config(f"sweep_emoji:claim{'-cpu' * cpu}")  # whose models are trained for as many steps
    first = base_config(f"tiny_imagenet:{'cpu-' * cpu}baseline-0").train.keep_every_steps
    models = []
    for model, name in NAMES.items():
        paths = tuple(f"runs/tiny{'_cpu' * cpu}/{model}-{seed}" for seed in range(3 if model in SEVERAL else 1))
        few = {"rules": ("CFG", "interval")} if cpu and model not in SEVERAL else {}
        models.append(SweptModel(name=name, paths=paths, worse=paths, worse_step=first, **few))
        if model == "both":
            models.append(SweptModel(name=f"{name}, one z", paths=paths, rules=("CFG",), same_z=True))
    sweep = Sweep(
        name="Tiny ImageNet, 10 superclasses of 5 classes",
        protocol="classes",
        models=tuple(models),
        rules=tuple(SweptRule(**rule) for rule in emoji.rules),
        gammas=emoji.gammas,
        sample=emoji.sample,
        num_samples=2_500,
        num_reference=2_500,
        reference="data/val/images",
        tune_samples=500,
        chunk=500,
    )
    if cpu:  # six guided images a second
        few = {"protocol": "classes-1500", "num_samples": 1_500, "num_reference": 1_500}
        sweep = dataclasses.replace(sweep, **few, gammas=(1.0, 2.0, 4.0), chunk=50)
    if variant == "cpu-compared":
        compared = [model for model in models if len(model.paths) > 1]
        few = [dataclasses.replace(model, rules=model.rules or ("CFG", "interval")) for model in compared]
        sweep = dataclasses.replace(sweep, models=tuple(few))
    return ConfigDict(dataclasses.asdict(sweep))
