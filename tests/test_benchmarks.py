"""Benchmarks, examples and launchers, most of which no test runs, name nothing that the package no longer has."""

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).parent.parent
SCRIPTS = sorted(path for folder in ("benchmarks", "examples", "launch") for path in (REPO / folder).glob("*.py"))
OURS = ("kaleido_jax", "benchmarks", "configs")


def missing(source: str) -> list[str]:
    """Names that a script imports from our modules, anywhere in it, or reads from one of them, and that are gone."""
    tree, modules, absent = ast.parse(source), {}, []

    def find(name: str, of: ModuleType) -> object:
        if hasattr(of, name):
            return getattr(of, name)
        try:
            return importlib.import_module(f"{of.__name__}.{name}")
        except ImportError:
            absent.append(f"{of.__name__}.{name}")

    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            of = importlib.import_module(node.module)
            for alias in node.names:
                found = find(alias.name, of)
                if isinstance(found, ModuleType):
                    modules[alias.asname or alias.name] = found
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in OURS:
                    of = importlib.import_module(alias.name)
                    modules[alias.asname or alias.name] = of
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            find(node.attr, modules[node.value.id])
    return absent


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_names_what_is_there(script):
    assert missing(script.read_text()) == []


def test_a_name_that_is_gone_is_found():
    source = inspect.cleandoc(
        """
        def f():
            from kaleido_jax.train import step
            from kaleido_jax.train.step import no_such_name
            return step.neither_this(step.__name__)
        """
    )
    assert missing(source) == ["kaleido_jax.train.step.no_such_name", "kaleido_jax.train.step.neither_this"]
