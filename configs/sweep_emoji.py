"""Sweeps over guidance: models of the emoji scenes and their baselines, under every rule at several gamma.

Command:  python -m kaleido_jax.main evaluate --sweep=configs/sweep_emoji.py --workdir=runs/sweep
          ":short" is a look at the same in minutes: two rules, two gammas, no tuning.
          Fields change by --sweep.KEY=VALUE.
Hardware: two CPU cores
"""

import dataclasses

from ml_collections import ConfigDict

from kaleido_jax.config.sweep import Sweep, SweptModel, SweptRule
from kaleido_jax.errors import user_error

VARIANTS = ("bundled", "short")
CFG = SweptRule(name="CFG")
# Guidance below some noise level, as the emoji models themselves are sampled, and the two ways in between.
INTERVAL = SweptRule(
    name="interval",
    tried=(
        ("guidance_interval=(0.8,1e9)",),
        ("guidance_interval=(0.3,1e9)",),
        ("guidance_interval=(0.3,5)",),
    ),
)
CADS = SweptRule(
    name="CADS",
    sample=("guidance=cads",),
    tried=(
        ("cads_tau=(0.6,0.9)", "cads_noise=0.25"),
        ("cads_tau=(0.6,0.9)", "cads_noise=0.1"),
        ("cads_tau=(0.8,1.0)", "cads_noise=0.25"),
    ),
)
APG = SweptRule(
    name="APG",
    sample=("guidance=apg",),
    tried=(
        ("apg_momentum=-0.5", "apg_threshold=0"),
        ("apg_momentum=-0.5", "apg_threshold=2.5"),
        ("apg_momentum=-0.75", "apg_threshold=5"),
    ),
)


def get_config(variant: str = "bundled") -> ConfigDict:
    if variant not in VARIANTS:
        raise user_error(f"sweep_emoji.py:{variant}", f"one of {', '.join(VARIANTS)}", "choose one")
    short = variant == "short"
    sweep = Sweep(
        name="emoji-tiny",
        protocol="emoji-1k",
        models=(
            SweptModel(name="baseline", paths=("emoji-tiny-baseline",)),
            SweptModel(name="Kaleido", paths=("emoji-tiny",)),
        ),
        rules=(CFG,) if short else (CFG, INTERVAL, CADS, APG),
        gammas=(1.0, 4.0) if short else (1.0, 2.0, 4.0, 8.0),
        sample=("sampler=dpmpp_2m", "num_steps=20", "threshold=clip", "top_p=0.98"),
        num_samples=1_000,
        num_reference=1_000,
        seeds=(0,),
        tune_samples=200,
    )
    return ConfigDict(dataclasses.asdict(sweep))
