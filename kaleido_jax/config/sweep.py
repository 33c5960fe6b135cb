"""The fields of a sweep: which models are measured under which guidance, on what, and where rivals are tuned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kaleido_jax.config.checks import validate
from kaleido_jax.config.fields import Count, PathText, Weight, Whole, build, cross_check, field_type
from kaleido_jax.config.load import load_values, parse_value, read_text
from kaleido_jax.config.schema import Sample
from kaleido_jax.errors import user_error


@dataclass(frozen=True, kw_only=True)
class SweptModel:
    """One curve's model, trained once or with several seeds."""

    name: str = ""  # as curves and tables call it
    paths: tuple[PathText, ...] = ()  # workdirs, exported folders or bundled names, one for each seed of training
    worse: tuple[PathText, ...] = ()  # the worse model of each path, for autoguidance; () = without that rule
    worse_step: Whole = 0  # the checkpoint of `worse`, where it is a workdir; a rule's autoguidance_step names another
    sample: tuple[str, ...] = ()  # "FIELD=VALUE" of config.sample for this model, e.g. ("temperature=0.7",)
    shuffled: bool = False  # each image gets the z of another one of its caption: a control
    same_z: bool = False  # all images of a caption get the z of its first one: another control
    rules: tuple[str, ...] = ()  # names of those it is drawn under; () = all


@dataclass(frozen=True, kw_only=True)
class SweptRule:
    """One way to guide."""

    name: str = ""  # as curves and tables call it
    sample: tuple[str, ...] = ()  # "FIELD=VALUE" of config.sample, e.g. ("guidance=apg",)
    # Further settings, of which each model takes the best: that with the least Frechet distance at tune_gamma.
    tried: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Every model under every rule at every gamma."""

    name: str = "sweep"  # of its page
    protocol: str = "emoji"  # of the metrics on sets of images, which says how many images it wants
    models: tuple[SweptModel, ...] = ()
    rules: tuple[SweptRule, ...] = ()
    gammas: tuple[Weight, ...] = (1.0, 2.0, 4.0, 8.0)  # weights of the guidance; 1 = none
    sample: tuple[str, ...] = ()  # "FIELD=VALUE" of config.sample for all, e.g. ("num_steps=20",)
    num_samples: Count = 2_000  # of each cell, the captions in turn
    num_reference: Count = 2_000  # real images
    reference: PathText = ""  # their folder ROOT/CAPTION/MODE/IMAGE; scenes of emoji are drawn instead
    extractor: str = "efficientnet-lite0"  # the feature network, where images are photographs
    extractor_path: PathText = ""  # its weights; "" = those of its package
    seeds: tuple[Whole, ...] = (0,)  # of sampling; each is measured for itself
    tune_gamma: Weight = 4.0  # at which the settings of a rule's `tried` are compared
    tune_samples: Count = 500  # for each setting that is tried, with a seed of their own
    tune_seed: Whole = 1_000  # of these samples, so that none is measured again
    shown: Count = 12  # images of each caption that the page shows, of the first seed
    chunk: Count = 50  # images sampled at once


def load_sweep(spec: str, overrides: dict[str, str]) -> Sweep:
    """A validated sweep.

    Args:
      spec: as of a config: a shipped name or a file with get_config(), "NAME:ARGUMENT", or a JSON.
      overrides: field -> text, as flags give them.

    Raises:
      UserError: no such file, an error inside it, an unknown field or a value that is not allowed.
    """
    values = load_values(spec)
    if "train" in values:
        raise user_error(f"--sweep={spec}, a config of a model", "a sweep such as sweep_emoji", "name one")
    for key, text in overrides.items():
        values[key] = read_text(text, field_type(Sweep, key), key)
    return build(Sweep, values)


def settings(texts: Sequence[str]) -> dict[str, Any]:
    """Fields of config.sample from their texts; of one that is there twice, the last.

    Raises:
      UserError: no such field, or not its type.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise user_error(f"{text!r} among the settings of a sweep", "FIELD=VALUE", "write the value after '='")
        found[name] = parse_value(f"sample.{name}", value)
    return found


@cross_check(Sweep)
def _check(sweep: Sweep, path: str) -> None:
    for what, found in (("models", sweep.models), ("rules", sweep.rules)):
        names = [one.name for one in found]
        if not names or not all(names) or len(set(names)) < len(names):
            raise user_error(
                f"sweep.{what} named {', '.join(map(repr, names)) or 'none'}", "different names", "add them"
            )
    for model in sweep.models:
        if not model.paths or len(model.worse) not in (0, len(model.paths)):
            found = f"model {model.name!r} with {len(model.paths)} paths and {len(model.worse)} worse ones"
            raise user_error(found, "one path or more, and as many worse ones or none", "correct sweep.models")
        if model.shuffled and model.same_z:
            found = f"model {model.name!r} with shuffled and with same_z"
            raise user_error(found, "one of them at most", "make two models of it")
        if unknown := {*model.rules} - {rule.name for rule in sweep.rules}:
            known = f"names among {', '.join(rule.name for rule in sweep.rules)}"
            raise user_error(f"model {model.name!r} under {', '.join(sorted(unknown))}", known, "correct its rules")
    for what, count in (("gammas", sweep.gammas), ("seeds", sweep.seeds)):
        if not count or len(set(count)) < len(count):
            raise user_error(f"sweep.{what} = {count}", "one or more, all different", "correct them")
    for rule in sweep.rules:
        for tried in rule.tried or ((),):
            for model in sweep.models:
                given = settings((*sweep.sample, *model.sample, *rule.sample, *tried))
                validate({"sample": {"autoguidance_step": 1} | given})  # the worse model is the sweep's own


def is_tuned(rule: SweptRule) -> bool:
    """Whether there is a choice."""
    return len(rule.tried) > 1


def resolved(sample: Sample, gamma: float) -> dict[str, Any]:
    """The fields of config.sample that a rule leaves at this gamma: at 1 most rules do not guide at all."""
    if gamma != 1 or sample.guidance == "cads":
        return {"gamma": gamma}
    off = Sample()
    unused = ("guidance", "guidance_interval", "apg_eta", "apg_threshold", "apg_momentum")
    return {name: getattr(off, name) for name in unused} | {"gamma": 1.0}
