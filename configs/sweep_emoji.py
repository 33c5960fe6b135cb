"""Sweeps over guidance: models of the emoji scenes and their baselines, under every rule at several gamma.

Command:  python -m kaleido_jax.main evaluate --sweep=configs/sweep_emoji.py --workdir=runs/sweep
          ":short" is a look at the same in minutes: one rule, two gammas, no tuning. ":controls" changes the z of
          emoji-tiny. ":claim" and ":claim-controls" are of the models that `python launch/experiments.py emoji
          emoji_controls` trains by configs/claim_emoji.py, and want an accelerator; ":claim-exported" and
          ":claim-exported-kinds" are of what `export` made of them and another machine has in runs/claim/MODEL-SEED and
          with --step=1500 in runs/claim/half-MODEL-SEED. ":claim-cpu" and ":claim-cpu-controls" are of those that a CPU
          has trained (emoji_cpu, emoji_cpu_controls), and ":claim-cpu-first" of the first of them.
          docs/results/emoji.md has the results. Fields change by --sweep.KEY=VALUE.
Hardware: one CPU core draws about six guided images a second
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from kaleido_jax.config import base_config
from kaleido_jax.config.sweep import Sweep, SweptModel, SweptRule
from kaleido_jax.errors import user_error

VARIANTS = (
    "bundled",
    "short",
    "controls",
    "claim",
    "claim-controls",
    "claim-exported",
    "claim-exported-kinds",
    "claim-cpu",
    "claim-cpu-controls",
    "claim-cpu-first",
)
SEVERAL = (0, 1, 2)  # seeds of training of the two models that are compared
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


AUTOGUIDANCE = SweptRule(name="autoguidance", sample=("guidance=autoguidance",))


def claim_rules(every_steps: int) -> tuple[SweptRule, ...]:
    """All rules; autoguidance tries a model's own checkpoints of 1/8, 1/4 and 1/2 of its training as the worse one.

    Args:
      every_steps: of train.keep_every_steps, 1/8 of the training.
    """
    tried = tuple((f"autoguidance_step={share * every_steps}",) for share in (1, 2, 4))
    return CFG, INTERVAL, CADS, APG, dataclasses.replace(AUTOGUIDANCE, tried=tried)


def claim(cpu: bool, name: str, model: str, seeds: tuple[int, ...] = (0,), **more: Any) -> SweptModel:
    """A model of configs/claim_emoji.py; an early checkpoint of its own is the worse one of autoguidance."""
    paths = tuple(f"runs/claim{'_cpu' * cpu}/{model}-{seed}" for seed in seeds)
    first = base_config(f"claim_emoji:{'cpu-' * cpu}baseline-0").train.keep_every_steps
    return SweptModel(name=name, paths=paths, worse=paths, worse_step=first, **more)


def claim_models(cpu: bool) -> tuple[SweptModel, ...]:
    """The two that are compared; z of one kind; and controls that need no further training."""
    others = (
        ("Kaleido, text", "text", {}),
        ("Kaleido, bbox", "bbox", {}),
        ("Kaleido, blob", "blob", {}),
        ("Kaleido, voken", "voken", {}),
        ("oracle", "oracle", {}),
        ("Kaleido, z of another", "combined", {"shuffled": True}),
        ("Kaleido, one z", "combined", {"same_z": True}),
        ("Kaleido, temperature 0.7", "combined", {"sample": ("temperature=0.7",)}),
        ("Kaleido, temperature 1.3", "combined", {"sample": ("temperature=1.3",)}),
    )
    few = {"rules": ("CFG", "interval")} if cpu else {}  # a core would take a day for all
    return (
        claim(cpu, "baseline", "baseline", SEVERAL),
        claim(cpu, "Kaleido", "combined", SEVERAL),
        *(claim(cpu, name, model, **more, **few) for name, model, more in others),
    )


def claim_controls(cpu: bool) -> tuple[SweptModel, ...]:
    controls = (("baseline, wide", "wide"), ("Kaleido, eta 0.1", "eta01"), ("Kaleido, p_uncond 0.3", "uncond30"))
    return tuple(claim(cpu, name, model) for name, model in controls)


def claim_cpu_first() -> tuple[SweptModel, ...]:
    """The two that are compared, and the first with z of one kind."""
    return (
        claim(True, "baseline", "baseline", SEVERAL),
        claim(True, "Kaleido", "combined", SEVERAL),
        claim(True, "Kaleido, text", "text", rules=("CFG",)),
    )


def exported(name: str, model: str, seeds: tuple[int, ...] = (0,), **more: Any) -> SweptModel:
    """A model of configs/claim_emoji.py as a folder that `export` made of it."""
    return SweptModel(name=name, paths=tuple(f"runs/claim/{model}-{seed}" for seed in seeds), **more)


def claim_exported() -> tuple[SweptModel, ...]:
    """The two that are compared; the worse ones of autoguidance are exports of half their training."""

    def halves(model: str) -> tuple[str, ...]:
        return tuple(f"runs/claim/half-{model}-{seed}" for seed in SEVERAL)

    return (
        exported("baseline", "baseline", SEVERAL, worse=halves("baseline")),
        exported("Kaleido", "combined", SEVERAL, worse=halves("combined")),
    )


def claim_exported_kinds() -> tuple[SweptModel, ...]:
    """z of one kind, and of the combined model other z than its own."""
    return (
        exported("Kaleido, text", "text", worse=("runs/claim/half-text-0",)),
        exported("Kaleido, bbox", "bbox", worse=("runs/claim/half-bbox-0",)),
        exported("Kaleido, blob", "blob", worse=("runs/claim/half-blob-0",)),
        exported("Kaleido, voken", "voken", worse=("runs/claim/half-voken-0",)),
        exported("oracle", "oracle", worse=("runs/claim/half-oracle-0",)),
        exported("Kaleido, z of another", "combined", rules=("CFG",), shuffled=True),
        exported("Kaleido, one z", "combined", rules=("CFG",), same_z=True),
        exported("Kaleido, temperature 0.7", "combined", rules=("CFG",), sample=("temperature=0.7",)),
        exported("Kaleido, temperature 1.3", "combined", rules=("CFG",), sample=("temperature=1.3",)),
    )


BUNDLED = (
    SweptModel(name="baseline", paths=("emoji-tiny-baseline",)),
    SweptModel(name="Kaleido", paths=("emoji-tiny",)),
)


CONTROLS = (
    BUNDLED[1],
    SweptModel(name="z of another", paths=("emoji-tiny",), shuffled=True),
    SweptModel(name="one z", paths=("emoji-tiny",), same_z=True),
    SweptModel(name="temperature 0.7", paths=("emoji-tiny",), sample=("temperature=0.7",)),
    SweptModel(name="temperature 1.3", paths=("emoji-tiny",), sample=("temperature=1.3",)),
)


def get_config(variant: str = "bundled") -> ConfigDict:
    if variant not in VARIANTS:
        raise user_error(f"sweep_emoji.py:{variant}", f"one of {', '.join(VARIANTS)}", "choose one")
    sweep = Sweep(
        name="emoji-tiny",
        protocol="emoji-1k",
        models=BUNDLED,
        rules=(CFG, INTERVAL, CADS, APG, AUTOGUIDANCE),
        gammas=(1.0, 2.0, 4.0, 8.0),
        sample=("sampler=dpmpp_2m", "num_steps=20", "threshold=clip", "top_p=0.98"),
        num_samples=1_000,
        num_reference=1_000,
        tune_samples=200,
        chunk=50,
    )
    if variant == "short":
        sweep = dataclasses.replace(sweep, rules=(CFG,), gammas=(1.0, 4.0))
    if variant == "controls":
        rule = dataclasses.replace(INTERVAL, tried=INTERVAL.tried[:1])
        sweep = dataclasses.replace(sweep, name="emoji-tiny, controls", models=CONTROLS, rules=(rule,), gammas=(4.0,))
    cpu = variant.startswith("claim-cpu")
    if cpu or variant in ("claim", "claim-controls"):
        every_steps = base_config(f"claim_emoji:{'cpu-' * cpu}baseline-0").train.keep_every_steps
        sweep = dataclasses.replace(sweep, rules=claim_rules(every_steps))
    if variant in ("claim", "claim-controls"):  # batches of one size, so that each rule compiles once
        sweep = dataclasses.replace(sweep, tune_samples=500, chunk=500)
    if variant in ("claim", "claim-cpu"):
        sweep = dataclasses.replace(sweep, name="emoji, three seeds", models=claim_models(cpu))
    if variant == "claim-exported":
        sweep = dataclasses.replace(sweep, name="emoji, three seeds", models=claim_exported())
    if variant == "claim-exported-kinds":
        sweep = dataclasses.replace(sweep, name="emoji, kinds of z", models=claim_exported_kinds())
    if variant == "claim-cpu-first":
        first = claim_cpu_first()
        sweep = dataclasses.replace(sweep, name="emoji, three seeds", models=first, gammas=(1.0, 4.0))
    if variant in ("claim-controls", "claim-cpu-controls"):
        sweep = dataclasses.replace(sweep, name="emoji, controls", models=claim_controls(cpu), rules=(CFG, INTERVAL))
    return ConfigDict(dataclasses.asdict(sweep))
