"""What the package depends on: nothing that it does not name, nothing that it does not use, no license that binds it.

Known vulnerabilities need the internet: .github/workflows/audit.yml looks for them once a week.
"""

import ast
import importlib.metadata
import re
import sys

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_docs import site
from tests.test_package import FOR_OTHERS, IMPORTED, REPO, assigned, modules

SETUP = REPO / "setup.py"
CORE, EXTRAS = assigned(SETUP, "CORE"), assigned(SETUP, "EXTRAS")
# Required, and imported by another package, which does not say so.
FOR_ANOTHER = {"importlib-resources": "tensorflow-datasets"}
# Imported, and asked for by the message of whoever needs it: the build of torch is a matter of the machine; t5x is on
# no registry.
BROUGHT_BY_THE_USER = {"torch", "t5x"}
# Words of licenses that ask for a notice, or (MPL) for the source of changed files of that package alone.
PERMISSIVE = """
0BSD
3-Clause BSD License
AFL-2.1
Apache License
Apache Software License
Apache-2.0
BSD License
BSD-2-Clause
BSD-3-Clause
CC0-1.0
ISC
MIT
MIT License
MIT-CMU
MPL-2.0
Mozilla Public License 2.0 (MPL 2.0)
PSF-2.0
Python Software Foundation License
Zlib
""".strip().splitlines()


def name_of(requirement):
    return canonicalize_name(Requirement(requirement).name)


def module_of(name):
    """What code imports of a requirement."""
    special = {canonicalize_name(key): module for key, module in IMPORTED.items()} | {
        "absl-py": "absl",
        "orbax-checkpoint": "orbax",
        "tensorboardx": "tensorboardX",
    }
    return special.get(name, name.replace("-", "_"))


def imports_of(file):
    """Modules that a file imports, each with all its dots, and whether the import stands inside a function."""
    tree = ast.parse(file.read_text())
    late = {id(node) for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) for node in ast.walk(one)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from ((name, id(node) in late) for name in names)


IMPORTS = [(module, *found) for module, file in modules().items() for found in imports_of(file)]
IMPORTS = [(m, n, late) for m, n, late in IMPORTS if n.split(".")[0] not in {*sys.stdlib_module_names, "kaleido_jax"}]


def pins(*files):
    found = re.findall(r"^([\w.-]+)==([\w.]+)", "".join((REPO / file).read_text() for file in files), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def is_of(name, module):
    """Whether an import of `name` is of the package whose module this is."""
    return f"{name}.".startswith(f"{module}.")


def test_every_import_is_required():
    core = [module_of(name_of(one)) for one in CORE]
    extras = [module_of(name_of(one)) for group in EXTRAS.values() for one in group]
    for module, name, late in IMPORTS:
        if any(is_of(name, one) for one in core):
            continue
        optional = any(is_of(name, one) for one in extras) or name.split(".")[0] in BROUGHT_BY_THE_USER
        assert optional, f"{module} imports {name}, which setup.py does not name"
        assert late or module in FOR_OTHERS, f"{module} imports {name} of an extra whenever it is imported itself"


def test_every_requirement_is_imported():
    for name in map(name_of, CORE):
        module = module_of(FOR_ANOTHER.get(name, name))
        assert any(is_of(found, module) for _, found, _ in IMPORTS), f"nothing imports {name}; take it out of setup.py"


def needed(names):
    """The packages that these and all below them ask for here -> the requirements that ask for them."""
    found, todo = {}, [(Requirement(one), "setup.py") for one in names]
    while todo:
        requirement, asks = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        seen = found.setdefault(name, [])
        if (str(requirement), extras) in seen:
            continue
        seen.append((str(requirement), extras))
        environments = [default_environment() | {"extra": extra} for extra in ("", *extras)]
        for text in importlib.metadata.requires(name) or ():
            below = Requirement(text)
            if below.marker is None or any(below.marker.evaluate(environment) for environment in environments):
                todo.append((below, name))
    return found


@pytest.mark.parametrize(
    ("files", "requirements"),
    [(("requirements.txt",), CORE), (("requirements.txt", "requirements-dev.txt"), CORE + EXTRAS["dev"])],
    ids=["core", "dev"],
)
def test_the_tested_versions_are_all_that_is_needed_and_no_more(files, requirements):
    """So `pip install -r` resolves nothing, and what is no longer needed does not stay."""
    asked, pinned = needed(requirements), pins(*files)
    assert sorted(asked.keys() - pinned.keys() - {"pip"}) == [], "needed and not pinned"
    # Marked for other systems or Pythons than this one.
    elsewhere = {"colorama", "uvloop", "tzdata", "exceptiongroup", "tomli"}
    assert sorted(pinned.keys() - asked.keys() - elsewhere) == [], "pinned and not needed"


def test_what_is_installed_suits_what_asks_for_it():
    """`pip check`, for what is ours."""
    for name, asking in needed(CORE + EXTRAS["dev"]).items():
        version = importlib.metadata.version(name)
        for text, _ in asking:
            assert Requirement(text).specifier.contains(version, prereleases=True), f"{name} {version}: {text} is asked"


def test_licenses_are_permissive():
    for name in needed(CORE + EXTRAS["dev"]):
        words = site().licenses_of(name)
        assert words and set(words) <= set(PERMISSIVE), f"{name}: {words}"


def test_the_page_of_dependencies_names_each_with_its_reason_and_license():
    page = site().dependencies_reference().partition("## Extras")[0]
    rows = {row[1]: row[0] for row in re.finditer(r"^\| `([\w.-]+)(?:\[\w+\])?` \|.*$", page, re.MULTILINE)}
    assert [canonicalize_name(name) for name in rows] == [*map(name_of, CORE)]
    assert rows["grain"].endswith(
        "| Apache License | MapDataset and its iterator state, an interface that still moves |"
    )
    assert "| <0.13,>=0.10 | 0.10.2 | Apache-2.0 |" in rows["jax"]


def test_every_range_without_an_end_has_been_thought_of():
    """A package before 1.0 may break its interface in any release: it has an upper end or is one that keeps its own."""
    keeps = {"array-record", "jaxtyping", "ml-dtypes", "safetensors", "tensorstore", "uvicorn"}
    young = {
        name_of(one)
        for one in CORE
        if pins("requirements.txt")[name_of(one)].startswith("0.")
        and not any(part.operator in ("<", "<=", "==") for part in Requirement(one).specifier)
    }
    assert young == keeps


def test_the_weekly_audit_reads_files_that_exist():
    workflow = (REPO / ".github" / "workflows" / "audit.yml").read_text()
    named = set(re.findall(r"requirements[\w-]*\.txt|tests/\w+\.py|setup\.py", workflow))
    assert {"requirements.txt", "requirements-dev.txt", "tests/test_dependencies.py"} <= named
    assert all((REPO / name).exists() for name in named)
    assert "pip-audit" in workflow and "cron" in workflow
