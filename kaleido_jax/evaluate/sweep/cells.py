"""The cells of a sweep: one model under one rule at one gamma, sampled with one seed."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from kaleido_jax.config.schema import Config, Mesh, Sample
from kaleido_jax.config.sweep import Sweep, SweptModel, SweptRule, resolved, settings
from kaleido_jax.errors import user_error
from kaleido_jax.runtime import checkpoints
from kaleido_jax.sampling.pipeline import KaleidoPipeline, find_model
from kaleido_jax.sampling.weights import is_export

Chosen = dict[str, dict[str, tuple[str, ...]]]  # model -> rule -> the settings that were the best


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured at once."""

    model: SweptModel
    training: int  # which of the model's paths
    rule: str
    gamma: float
    seed: int
    sample: Sample  # all settings of sampling

    @property
    def worse_step(self) -> int | None:
        """The checkpoint of the worse model that takes part, as `worse_step_of`."""
        return worse_step_of(self.model, self.sample)

    @property
    def title(self) -> str:
        """For the log."""
        return f"{self.model.name} {self.training}, {self.rule}, gamma {self.gamma:g}, seed {self.seed}"


def cells(sweep: Sweep, chosen: Chosen, model: SweptModel, training: int) -> Iterator[Cell]:
    """The cells of one trained model, those that need the worse one last, so that each is loaded once.

    Args:
      sweep: has the model.
      chosen: of every tuned rule.
      model: one of the sweep.
      training: which of its paths.
    """
    for rule in rules_of(sweep, model):
        for gamma in sweep.gammas:
            for seed in sweep.seeds:
                sample = sample_of(sweep, model, rule, chosen[model.name][rule.name], gamma)
                yield Cell(model=model, training=training, rule=rule.name, gamma=gamma, seed=seed, sample=sample)


def rules_of(sweep: Sweep, model: SweptModel) -> list[SweptRule]:
    """The rules that a model is drawn under; those that need its worse model, if it has one, come last."""

    def needs_worse(rule: SweptRule) -> bool:
        return sample_of(sweep, model, rule, (), 2.0).guidance == "autoguidance"

    rules = [rule for rule in sweep.rules if not model.rules or rule.name in model.rules]
    return sorted((rule for rule in rules if model.worse or not needs_worse(rule)), key=needs_worse)


def worse_step_of(model: SweptModel, sample: Sample) -> int | None:
    """The checkpoint of the worse model that takes part, 0 where it is an exported folder; None if none does."""
    if sample.guidance != "autoguidance" or sample.gamma == 1:
        return None
    return sample.autoguidance_step or model.worse_step


def sample_of(sweep: Sweep, model: SweptModel, rule: SweptRule, tried: tuple[str, ...], gamma: float) -> Sample:
    """All settings of sampling; what the sweep does not say is the default of config.sample, not the model's own."""
    given = Sample(**settings((*sweep.sample, *model.sample, *rule.sample, *tried)))
    return dataclasses.replace(given, **resolved(given, gamma))


def open_model(model: SweptModel, training: int, worse_step: int | None, chunk: int) -> KaleidoPipeline:
    """A trained model, with its worse one, that of `worse_step`, or without.

    Raises:
      UserError: no such model or checkpoint.
    """
    config = dataclasses.replace(Config.from_json(find_model(model.paths[training])), mesh=Mesh())
    plain = {"guidance": "cfg", "autoguidance_step": 0, "autoguidance_workdir": None}
    if worse_step is not None:
        folder = str(find_model(model.worse[training]))
        plain = {"guidance": "autoguidance", "autoguidance_step": worse_step, "autoguidance_workdir": folder}
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, **plain))
    return KaleidoPipeline.from_pretrained(model.paths[training], config, chunk=chunk)


def check_models(sweep: Sweep) -> int:
    """Checks that all models and their worse ones are there and draw images of one size; returns it, px.

    Raises:
      UserError: one is missing, or draws points or another size.
    """
    for model in sweep.models:
        for step in _worse_steps(sweep, model):
            _check_worse(model, step)
    sizes = {}
    for model in sweep.models:
        for path in (*model.paths, *model.worse):
            denoiser = Config.from_json(find_model(path)).model.denoiser
            if denoiser is None:
                raise user_error(f"{path}, a model of points", "one of images", "leave it out of the sweep")
            sizes[denoiser.image_size] = path
    if len(sizes) > 1:
        found = " and ".join(f"{path} of {size} px" for size, path in sizes.items())
        raise user_error(found, "images of one size", "sweep them one after the other")
    return next(iter(sizes))


def _worse_steps(sweep: Sweep, model: SweptModel) -> list[int]:
    """The checkpoints of worse models that a model needs or tries."""
    rules = [rule for rule in rules_of(sweep, model) if any(gamma != 1 for gamma in sweep.gammas)]
    samples = [sample_of(sweep, model, rule, tried, 2.0) for rule in rules for tried in rule.tried or ((),)]
    return sorted({step for sample in samples if (step := worse_step_of(model, sample)) is not None})


def _check_worse(model: SweptModel, step: int) -> None:
    for path in model.worse:
        folder = find_model(path)
        if is_export(folder):
            continue
        if step not in (kept := checkpoints.steps_of(folder)):
            known = f"one of its checkpoints {', '.join(map(str, kept)) or '(none)'}"
            do = "correct worse_step or autoguidance_step, or train with config.train.keep_every_steps"
            raise user_error(f"step {step} of {path}, the worse model of {model.name!r}", known, do)
