"""The pages of docs/: the site builds without a warning, and what they tell people to type works as it stands."""

import dataclasses
import functools
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from kaleido_jax import main
from kaleido_jax.config.sweep import Sweep, SweptModel, SweptRule
from kaleido_jax.verbs import VERBS
from tests.test_readme import folder_like_a_clone

REPO = Path(__file__).parent.parent
PAGES = sorted([*(REPO / "docs").rglob("*.md"), REPO / "CONTRIBUTING.md"])
BLOCK = re.compile(
    r"(?P<mark><!--[^>]*-->\n\s*)?^[ ]*```(?P<kind>\w*)\n(?P<text>.*?)^[ ]*```$", re.MULTILINE | re.DOTALL
)
# Why a block is not run: a reason, a time that is too long, or the test that runs it.
MARK = re.compile(r"<!-- (?:not run here: (?P<reason>.{10,})|(?P<long>long)|run by (?P<test>tests/\S+\.py)) -->")
COMMAND = re.compile(r"^(\$ )?(\w+=\S+ )?(python\d?|bash|pip|kaleido_jax|mkdocs|sbatch|docker|kubectl|vllm) ")
RUNS = ("bash", "python", "console")


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: str
    kind: str
    text: str
    mark: str
    follows: str  # the kind of the block right before it, "" if text stands between

    @property
    def runs(self) -> bool:
        """Whether a test here runs it."""
        return self.kind in RUNS and not self.mark


def blocks_of(path):
    text, end, before, found = path.read_text(), 0, "", []
    for match in BLOCK.finditer(text):
        kind = match["kind"] or "text"
        follows = before if not text[end : match.start()].strip() else ""
        mark = (match["mark"] or "").strip()
        found.append(Block(str(path.relative_to(REPO)), kind, match["text"], mark, follows))
        end, before = match.end(), kind
    return found


BLOCKS = [block for path in PAGES for block in blocks_of(path)]
COMMANDS = [
    block for block in BLOCKS if block.kind in RUNS or any(COMMAND.match(line) for line in block.text.splitlines())
]


def commands(text):
    """The kaleido_jax commands of a block, as lists of arguments."""
    for line in text.replace("\\\n", " ").splitlines():
        if found := re.match(r"(?:\$ )?(?:\S+=\S+ )*(?:python -m kaleido_jax\.main|kaleido_jax) (.*)", line):
            yield shlex.split(found[1], comments=True)


def in_words(text):
    return " ".join(text.split())


def test_every_block_of_commands_is_run_or_says_why_not():
    assert len(COMMANDS) > 30
    for block in COMMANDS:
        mark = MARK.fullmatch(block.mark)
        assert block.runs or mark, f"{block.page}: {block.mark or 'no mark'} above\n{block.text}"
        if mark and mark["test"]:
            assert Path(block.page).name in (REPO / mark["test"]).read_text(), (block.page, mark["test"])


def test_commands_that_cannot_run_here_have_flags_that_are_known():
    checked = 0
    for block in COMMANDS:
        for words in commands(block.text) if not (block.runs or "run by" in block.mark) else ():
            # Where a page has a placeholder or a run that somebody trained, a config with everything in it.
            words = [re.sub(r"^--config=(FILE|NAME|runs/.*)$", "--config=imagenet_combined", word) for word in words]
            words = [re.sub(r"^--model=runs/.*$", "--model=emoji-tiny", word) for word in words]
            name, flags = main.split_verb(words)
            assert "=" in " ".join(flags), words
            main.parse_flags(VERBS[name], flags)
            checked += 1
    assert checked > 10


def test_links_of_a_page_lead_to_files_of_the_repository_and_to_their_headings():
    checked = 0
    for path in [*PAGES, REPO / "README.md"]:
        for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", BLOCK.sub("", path.read_text())):
            name, _, anchor = target.partition("#")
            file = path.parent / name if name else path
            assert file.exists(), f"{path.relative_to(REPO)}: {target}"
            if anchor and file.suffix == ".md":
                headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", file.read_text()), re.MULTILINE)
                assert anchor in map(site().slug, headings), f"{path.relative_to(REPO)}: {target}"
            checked += 1
    assert checked > 100


def run(command, folder, code=0):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=3600)
    assert done.returncode == code, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.kind == "python" and block.runs}))
def test_python_of_a_page_runs_from_its_first_block_to_its_last(tmp_path, page):
    script = "\n".join(block.text for block in BLOCKS if (block.page, block.kind) == (page, "python") and block.runs)
    run([sys.executable, "-c", script], folder_like_a_clone(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.kind == "bash" and block.runs}))
def test_commands_of_a_page_run_and_print_what_stands_below_them(tmp_path, page):
    folder, printed = folder_like_a_clone(tmp_path), ""
    for block in (block for block in BLOCKS if block.page == page):
        if block.kind == "bash" and block.runs:
            printed = in_words(run(["bash", "-euo", "pipefail", "-c", block.text], folder))
        elif block.kind == "text" and block.follows == "bash":
            missing = [line for line in block.text.splitlines() if in_words(line) not in printed]
            assert not missing, f"{page}: not printed: {missing}"


@pytest.mark.slow
def test_messages_of_a_page_are_those_that_its_commands_show(tmp_path):
    folder = folder_like_a_clone(tmp_path)
    consoles = [block for block in BLOCKS if block.kind == "console"]
    assert len(consoles) > 5
    for block in consoles:
        command, *shown = block.text.strip().splitlines()
        printed = in_words(run(["bash", "-c", command.removeprefix("$ ")], folder, code=2))
        patterns = {line: ".*".join(map(re.escape, in_words(line).split("…"))) for line in shown}
        missing = [line for line, pattern in patterns.items() if not re.search(pattern, printed)]
        assert shown and not missing, f"{block.page}: {missing} is not in\n{printed}"


@functools.cache
def site():
    """The module of the site's hooks."""
    spec = importlib.util.spec_from_file_location("site_hooks", REPO / "docs" / "site.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_the_page_of_sweeps_says_what_each_field_is():
    page = site().sweep_reference()
    for path, group in {"": Sweep, "models.": SweptModel, "rules.": SweptRule}.items():
        for field in dataclasses.fields(group):
            [row] = re.findall(rf'(?:id="{path}{field.name}"></a>|\| )`{field.name}` \| (.*) \|.*\|.*\|', page)[:1]
            assert row.strip(), path + field.name
    assert "## models { #models }" in page and "on resume" not in page
    assert "`4.0` | float at least 0" in page and "settings" in page


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    site = tmp_path / "site"
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # advertises another program
    # Without -q, under which --strict does not see warnings.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(site)]
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}
    assert {"index.html", "reference/config.html", "recipe-cc12m.html"} <= pages.keys()
    outside = re.compile(r"<(?:script|img|link)\b[^>]*(?:src|href)=\"?(https?:[^\" >]+)")
    assert {name: found for name, page in pages.items() if (found := outside.findall(page))} == {}
    # What the code says of itself has arrived.
    assert 'id="train.max_skipped_steps"' in pages["reference/config.html"]
    assert "weight of the AR loss" in pages["reference/config.html"]
    assert "images_per_caption" in pages["reference/api.html"]
    assert "verify" in pages["reference/command-line.html"]
    assert 'id="models.paths"' in pages["reference/sweep.html"]
    assert "effective number" in pages["index.html"]  # a section of README.md
    listed = re.findall(r'<li><a href="([^"/]+)\.html">', pages["results/index.html"])
    assert {"emoji", "own-data", "train_step"} <= {*listed}  # of docs/results and benchmarks/results
