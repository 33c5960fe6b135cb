"""Promises of the package as a whole."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kaleido_jax

REPO = Path(__file__).parent.parent
FOR_OTHERS = ("kaleido_jax.interop.seqio", "kaleido_jax.interop.t5.t5x_network")  # seqio's and t5x's programs


def python(*args):
    return subprocess.run([sys.executable, *args], cwd=REPO, capture_output=True, text=True, timeout=120)


def assigned(path, name):
    """The literal that a Python file assigns to a name, without running the file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} assigns no {name}")


@pytest.mark.parametrize("module", ["kaleido_jax", "kaleido_jax.config.schema"])
def test_import_brings_neither_jax_nor_tensorflow(module):
    done = python("-c", f"import sys, {module}; print(sorted({{'jax', 'tensorflow'}} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


def modules():
    """Name -> file."""
    files = sorted((REPO / "kaleido_jax").rglob("[!_]*.py"))
    return {".".join(file.relative_to(REPO).with_suffix("").parts): file for file in files}


def test_no_module_brings_tensorflow():
    names = [name for name in modules() if name not in FOR_OTHERS]
    done = python("-c", f"import sys, {', '.join(names)}; print('tensorflow' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_nothing_imports_the_modules_for_other_programs():
    assert set(FOR_OTHERS) <= modules().keys()
    for name, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            inside = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            assert not {f"{inside}{word}" for word in found} & set(FOR_OTHERS), name
            assert not inside or inside.rstrip(".") not in FOR_OTHERS, name


def test_changelog_starts_with_what_is_unreleased_and_then_this_version():
    headings = re.findall(r"^## (.*)$", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", heading) for heading in headings[1:])
    assert re.fullmatch(r"\d+\.\d+\.\d+", kaleido_jax.__version__)
    assert not headings[1:] or headings[1].startswith(f"[{kaleido_jax.__version__}]")


def test_tested_versions_lie_within_the_ranges():
    pins = "".join((REPO / name).read_text() for name in ("requirements.txt", "requirements-dev.txt"))
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", pins, re.MULTILINE)
    tested = {canonicalize_name(name): version for name, version in pins}
    setup = REPO / "setup.py"
    for requirement in map(Requirement, assigned(setup, "CORE") + assigned(setup, "EXTRAS")["dev"]):
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), requirement


def test_help_answers_within_three_seconds_of_cpu_time():
    if not (REPO / "kaleido_jax" / "main.py").exists():
        pytest.skip("kaleido_jax/main.py is not there yet")
    before = os.times()
    done = python("-m", "kaleido_jax.main", "--help")
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert "--config" in done.stdout + done.stderr
    assert spent < 3, f"{spent:.1f} s"
