"""Verbs of the command line: every module here with HELP, FLAGS and run() is one; `register` adds one from outside."""

from importlib import import_module
from pkgutil import iter_modules

from kaleido_jax.verbs.verb import Verb

VERBS: dict[str, Verb] = {}


def register(name: str, verb: Verb) -> None:
    """Adds a verb to the command line, or replaces the one of this name."""
    VERBS[name] = verb


for _module in iter_modules(__path__):
    if hasattr(_verb := import_module(f"{__name__}.{_module.name}"), "run"):
        register(_module.name, _verb)
