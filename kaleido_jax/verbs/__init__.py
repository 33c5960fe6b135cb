"""Verbs of the command line, each a module with HELP, FLAGS and run(); `register` adds one from outside."""

from kaleido_jax.verbs import annotate, convert, evaluate, plan, sample, train
from kaleido_jax.verbs.verb import Verb

VERBS: dict[str, Verb] = {}


def register(name: str, verb: Verb) -> None:
    """Adds a verb to the command line, or replaces the one of this name."""
    VERBS[name] = verb


register("train", train)
register("annotate", annotate)
register("sample", sample)
register("evaluate", evaluate)
register("convert", convert)
register("plan", plan)
