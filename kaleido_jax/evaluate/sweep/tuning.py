"""Settings of rules, chosen for each model by the same small budget: as many images for each setting of each rule."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kaleido_jax.config.schema import Sample
from kaleido_jax.config.sweep import Sweep, SweptModel, SweptRule, is_tuned
from kaleido_jax.evaluate.metrics.frechet import frechet_distance, moments
from kaleido_jax.evaluate.parts import read_stored
from kaleido_jax.evaluate.sweep.cells import Chosen, rules_of, sample_of
from kaleido_jax.evaluate.sweep.drawing import Drawn
from kaleido_jax.evaluate.sweep.measured import Measure
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.files import fingerprint, write_atomically

log = logging.getLogger(__name__)

READING_SEC = 3600
Of = Callable[[SweptModel, Sample], dict[str, Any]]  # what the few samples of a setting depend on
Draw = Callable[[SweptModel, Sample], Drawn]  # these samples


def tune(sweep: Sweep, measure: Measure, of: Of, draw: Draw, folder: Path) -> tuple[Chosen, list[dict[str, Any]]]:
    """The best settings of each rule for each model, by the least Frechet distance; and all that were tried.

    The samples have a seed of their own, so that no number of the sweep is of those that chose.

    Args:
      sweep: says what is tried.
      measure: gives the features.
      of: what the samples depend on.
      draw: samples of the first training of a model; of those whose distance is known it is not called.
      folder: keeps each distance.
    """
    chosen: Chosen = {}
    tried: list[dict[str, Any]] = []
    for model in sweep.models:
        of_model = chosen.setdefault(model.name, {})
        # Those that need the worse model last, so that each is loaded once.
        for rule in rules_of(sweep, model):
            of_model[rule.name] = rule.tried[0] if rule.tried else ()
            if not is_tuned(rule):
                continue
            distances = [_distance(sweep, measure, of, draw, folder, model, rule, one) for one in rule.tried]
            best = distances.index(min(distances))
            of_model[rule.name] = rule.tried[best]
            tried += [
                {"model": model.name, "rule": rule.name, "settings": list(one), "frechet": d, "taken": i == best}
                for i, (one, d) in enumerate(zip(rule.tried, distances, strict=True))
            ]
            log.info("%s, %s: %s", model.name, rule.name, " ".join(rule.tried[best]) or "as it is")
    return chosen, tried


def _distance(
    sweep: Sweep,
    measure: Measure,
    of: Of,
    draw: Draw,
    folder: Path,
    model: SweptModel,
    rule: SweptRule,
    settings: tuple[str, ...],
) -> float:
    sample = sample_of(sweep, model, rule, settings, sweep.tune_gamma)
    samples_of = of(model, sample)
    path = folder / "tuning" / f"{fingerprint(json.dumps(samples_of))}.json"

    def known() -> float | None:
        return (read_stored(path) or {}).get("frechet")

    distance = distributed.tell("a distance", known, distributed.START_SEC)
    if distance is not None:
        return distance
    log.info("%s, %s, trying %s", model.name, rule.name, " ".join(settings) or "as it is")
    drawn = draw(model, sample)

    def make() -> float:
        found = frechet_distance(measure.reference.moments, moments(measure.extractor(drawn.pixels)))
        write_atomically(path, json.dumps({"of": samples_of, "frechet": found}).encode())
        return json.loads(path.read_text())["frechet"]

    return distributed.tell("a measured distance", make, READING_SEC)
