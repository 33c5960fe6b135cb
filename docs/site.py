"""Hooks of MkDocs for the documentation site: generated pages, sections of README.md, and links out of docs/.

- A line `[This section is in the README.](../README.md#anchor)` of a page becomes the section's text; `README.md#` is
  what stands before the first heading. So no text stands twice, README.md needs no marks, and who reads the page in the
  repository finds the text too.
- The command line, the config's fields, the array types and the modules are described from the code itself.
- A link to a file of the repository outside docs/ leads to a copy of that file in the site.
"""

import ast
import importlib.metadata
import io
import json
import posixpath
import re
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kaleido_jax import array_types, main
from kaleido_jax.config import fields, schema, sweep
from kaleido_jax.verbs import VERBS

log = get_plugin_logger("site")
REPO = Path(__file__).parent.parent
INCLUDE = re.compile(r"^\[This section is in the README\.\]\(\.\./(README\.md)#(\S*)\)$", re.MULTILINE)
LINK = re.compile(r"(?P<before>!?\[(?:[^\]\[]|\[[^\]]*\])*\]\()(?P<target>[^)\s]+)(?P<after>\))")
HEADING = re.compile(r"^(#{1,6}) (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# Files of the repository that are pages.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
NOTEBOOK = "examples/sample_and_edit.ipynb"
ROOMS = {
    "latents": ("types", "segments.bbox", "segments.blob", "codec", "grammar", "address"),
    "sampling": ("pipeline", "output", "recipe", "editing", "functional", "batched"),
    "diffusion": ("schedule", "process", "loss", "guidance", "samplers"),
    "models": ("kaleido", "t5", "decode", "unet", "nested_unet", "attention", "flops"),
    "train": ("fit", "loop", "step", "state", "optimizer", "warm_start", "guard"),
    "data": ("sources.base", "crop", "images", "records", "order", "loader"),
    "evaluate": ("protocols", "sets", "modes", "features.extractor", "metrics.frechet", "metrics.manifold",
                 "metrics.kernel", "metrics.diversity", "metrics.condition"),
    "export": ("folder", "stablehlo"),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- pages
def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that are made here; of some of them docs/ has a line for those who read the repository."""
    made = {
        "reference/command-line.md": command_line(),
        "reference/config.md": config_reference(),
        "reference/sweep.md": sweep_reference(),
        "reference/dependencies.md": dependencies_reference(),
        "reference/array-types.md": array_types_reference(),
        "notebook.md": notebook(REPO / NOTEBOOK),
        "results/index.md": "# What was measured\n\n" + "".join(results()),
        "images/icon.svg": (REPO / "kaleido_jax/studio/static/icon.svg").read_text(),
    }
    made |= {f"reference/{room}.md": api(room, modules) for room, modules in ROOMS.items()}
    made |= {page: (REPO / name).read_text() for name, page in PAGES.items() if name != "README.md"}
    made |= {f"results/{path.name}": path.read_text() for path in (REPO / "benchmarks/results").glob("*.md")}
    for name, text in made.items():
        if (in_repository := files.get_file_from_path(name)) is not None:  # says where to read the same there
            files.remove(in_repository)
        files.append(File.generated(config, name, content=text))
    return files


def command_line() -> str:
    """The help of each verb."""
    text = "# Command line\n\nThis is what `--help` says, verb by verb. Exit codes are in the [architecture]"
    text += "(../ARCHITECTURE.md#command-line).\n"
    for name, verb in VERBS.items():
        usage = main.help_text([name]).partition("flags:\n")[2].partition("\n\n")[0]
        text += f"\n## {name}\n\n{verb.HELP[:1].upper()}{verb.HELP[1:]}.\n\n```text\n{usage}\n```\n"
    return text


def results() -> Iterator[str]:
    """A line for each page of docs/results and benchmarks/results."""
    for path in [path for room in ("docs", "benchmarks") for path in sorted((REPO / room / "results").glob("*.md"))]:
        yield f"- [{path.read_text().splitlines()[0].lstrip('# ')}]({path.name})\n"


def notebook(path: Path) -> str:
    """A notebook as a page: its texts, and its code without output."""
    text = f"The notebook itself is [{NOTEBOOK}](../{NOTEBOOK}).\n\n"
    parts = []
    for one in json.loads(path.read_text())["cells"]:
        source = "".join(one["source"])
        parts.append(source if one["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join([parts[0], text, *parts[1:]]) + "\n"


def api(room: str, modules: tuple[str, ...]) -> str:
    """The page of a room, which mkdocstrings fills from the docstrings."""
    says = ast.get_docstring(ast.parse((REPO / f"kaleido_jax/{room}/__init__.py").read_text())) or ""
    text = f"# {room.capitalize()}\n\n{says}\n"
    text += "\nNames of array types are explained in [array shapes](array-types.md).\n"
    return text + "".join(f"\n::: kaleido_jax.{room}.{module}\n" for module in modules)


# ------------------------------------------------------------------------------------ tables from the code
def comments(source: str) -> dict[int, str]:
    """Line -> the comment on it, or the comment lines right above it."""
    found, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, text = token.start[0], token.string.lstrip("# ")
            if token.line.lstrip().startswith("#"):
                text = f"{alone.pop(line - 1)} {text}" if line - 1 in alone else text
                alone[line] = text
            else:
                found[line] = text
    return {line + 1: text for line, text in alone.items()} | found


def cell(text: str) -> str:
    """A text inside a Markdown table; words with * or _ stay as they are."""
    return re.sub(r"([|*_<>\[\]])", r"\\\1", text)


def config_reference() -> str:
    """Every field of the schema: type, range, default, whether it may change, unit or reason."""
    text = [
        "# Every field of a config",
        "From [the schema](../../kaleido_jax/config/schema.py). A config file or a flag `--config.KEY=VALUE` sets a "
        "field; what is wrong is refused before anything compiles. *Free* fields may differ between the runs of one "
        "workdir; any other change of a config needs a new workdir.",
    ]
    return "\n\n".join(text + field_tables(schema.Config(), Path(schema.__file__), resumes=True)) + "\n"


def sweep_reference() -> str:
    """Every field of a sweep, as of a config."""
    text = [
        "# Every field of a sweep",
        "From [the sweep's own schema](../../kaleido_jax/config/sweep.py). A file such as "
        "[sweep_emoji.py](../../configs/sweep_emoji.py) sets them, and a flag `--sweep.KEY=VALUE` changes one "
        "([what a sweep is](../metrics.md#sweeps-over-guidance)).",
    ]
    return "\n\n".join(text + field_tables(sweep.Sweep(), Path(sweep.__file__), resumes=False)) + "\n"


def field_tables(root: Any, source: Path, resumes: bool) -> list[str]:
    """A heading, a docstring and a table of fields for each group below a dataclass.

    Args:
      root: the dataclass, with its defaults.
      source: the file of all the groups, whose comments say what the fields mean.
      resumes: whether to say which fields may change in a workdir.
    """
    code = source.read_text()
    said, text = comments(code), []
    lines = {
        (node.name, item.target.id): item.lineno
        for node in ast.parse(code).body
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, ast.AnnAssign)
    }
    columns = ["field", "meaning", "default", "type", *(["on resume"] if resumes else [])]

    def walk(group: type, value: Any, path: str, free: bool) -> None:
        rows, below = [], []
        for name, hint in fields.hints_of(group).items():
            kind, dotted = fields.read_type(hint), f"{path}.{name}".lstrip(".")
            changes = free or fields.MAY_CHANGE in kind.marks
            default = getattr(value, name)
            meaning = cell(said.get(lines[group.__name__, name], ""))
            shown = "" if kind.group else cell_default(default)
            if kind.group is group:  # UNet.inner: the same fields once more
                meaning, shown = f"the same fields, `{dotted}.image_size` and so on; `None` for the innermost", "`None`"
            elif kind.group is not None:
                below.append((kind.group, default if default is not None else kind.group(), dotted, changes))
                meaning, shown = f"a group: [{dotted}](#{dotted})", "" if default is not None else "`None`"
            elif (one := group_of_each(kind)) is not None:
                below.append((one, one(), dotted, changes))
                meaning = f"groups, each with these fields: [{dotted}](#{dotted})"
            own_heading = any(dotted == one[2] for one in below)
            anchor = "" if own_heading else f'<a id="{dotted}"></a>'
            cells = [f"{anchor}`{name}`", meaning, shown, described(kind), *(["free" if changes else ""] * resumes)]
            rows.append(f"| {' | '.join(cells)} |")
        title = path or "The top"
        text.append(f"## {title} {{ #{path or 'top'} }}\n\n{(group.__doc__ or '').strip()}")
        text.append("\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows]))
        for group_below in below:
            walk(*group_below)

    walk(type(root), root, "", False)
    return text


def group_of_each(kind: fields.FieldType) -> type | None:
    """The dataclass that each entry of a tuple is, or None."""
    inner = typing.get_args(kind.bare)[:1] if typing.get_origin(kind.bare) is tuple else ()
    return fields.read_type(inner[0]).group if inner else None


def cell_default(value: Any) -> str:
    """A default as Python writes it; long ones are cut."""
    text = f"{value:_}" if type(value) is int and value >= 10_000 else repr(value)
    return f"`{text}`" if len(text) < 60 else f"{len(value)} entries"


def described(kind: fields.FieldType) -> str:
    """Type, range or words of a field in words."""
    bare, optional = kind.bare, " or `None`" if kind.optional else ""
    if typing.get_origin(bare) is Literal:
        return "one of " + ", ".join(f"`{word}`" for word in typing.get_args(bare)) + optional
    if typing.get_origin(bare) is tuple:
        inner = [arg for arg in typing.get_args(bare) if arg is not Ellipsis]
        parts = [described(fields.read_type(arg)) for arg in inner]
        same = Ellipsis in typing.get_args(bare)
        return ("tuple, each " if same else "tuple of ") + ", ".join(parts) + optional
    if kind.group is not None:
        return "group" + optional
    ranges = [str(mark).removeprefix("a number ") for mark in kind.marks if isinstance(mark, fields.Range)]
    return " ".join(["path" if fields.PATH in kind.marks else bare.__name__, *ranges]) + optional


def array_types_reference() -> str:
    """The names of array types, each with an anchor that signatures link to."""
    source = Path(array_types.__file__).read_text()
    said = comments(source)
    rows = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            name = node.targets[0].id
            anchor = f'<a id="kaleido_jax.array_types.{name}"></a>'
            rows.append(f"| {anchor}`{name}` | `{ast.unparse(node.value)}` | {cell(said.get(node.lineno, ''))} |")
    text = (array_types.__doc__ or "").strip()
    return f"# Array shapes\n\n{text}\n\n| name | type and shape | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def dependencies_reference() -> str:
    """What the package needs: ranges and reasons of setup.py, tested versions, and licenses by their own metadata."""
    source = (REPO / "setup.py").read_text()
    said = comments(source)
    lists = {
        node.targets[0].id: node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and node.targets[0].id in ("CORE", "EXTRAS")
    }
    tested = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (REPO / "requirements.txt").read_text(), re.MULTILINE))
    tested = {canonicalize_name(name): version for name, version in tested.items()}

    def table(items: list[ast.expr], licensed: bool) -> str:
        columns = ["package", "versions", *(["tested", "license"] if licensed else []), "why"]
        rows = [columns, ["---"] * len(columns)]
        for item in items:
            one = Requirement(ast.literal_eval(item))
            name = one.name + (f"[{','.join(sorted(one.extras))}]" if one.extras else "")
            known = [tested.get(canonicalize_name(one.name), ""), ", ".join(licenses_of(one.name))] if licensed else []
            rows.append([f"`{name}`", str(one.specifier), *known, cell(said.get(item.lineno, ""))])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    text = [
        "# Dependencies",
        "From [setup.py](../../setup.py), whose ranges pip follows; the tested versions are in "
        "[requirements.txt](../../requirements.txt) with all that they need in turn. Licenses are what the packages "
        "say of themselves. How this is kept true is told in [hardening](../hardening.md#dependencies).",
        table(lists["CORE"].elts, licensed=True),
        "## Extras",
        "None of them is needed to train, sample, edit or measure.",
    ]
    for extra, items in zip(lists["EXTRAS"].keys, lists["EXTRAS"].values, strict=True):
        text += [f"### {ast.literal_eval(extra)}", table(items.elts, licensed=False)]
    return "\n\n".join(text) + "\n"


def licenses_of(name: str) -> list[str]:
    """The words for its license in the metadata of an installed package."""
    metadata = importlib.metadata.metadata(name)
    classifiers = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier", []) if line[:10] == "License ::"]
    first = next((line for line in (metadata.get("License") or "").splitlines() if line.strip()), "none is named")
    expression = metadata.get("License-Expression") or ("" if classifiers else first)
    return classifiers if not expression else [one.strip() for one in re.split(r" AND | OR |[()]", expression) if one]


# ------------------------------------------------------------------------------- includes and their links
def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts included sections in, and leads links out of docs/ to pages or copies."""
    here = page.file.src_uri
    origin = next((name for name, own in PAGES.items() if own == here and own != "index.md"), f"docs/{here}")
    if (REPO / "benchmarks" / here).is_file():
        origin = f"benchmarks/{here}"

    def included(name: str, anchor: str) -> str:
        section = section_of((REPO / name).read_text(), anchor)
        if section is None:
            log.warning("%s includes %s#%s, which is not there", here, name, anchor)
            return ""
        return relinked(section, name, here, config, files)

    first, *rest = INCLUDE.split(markdown)
    parts = [relinked(first, origin, here, config, files)]
    for name, anchor, own in zip(*[iter(rest)] * 3, strict=True):
        parts += included(name, anchor), relinked(own, origin, here, config, files)
    return "".join(parts)


def slug(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", title.replace("`", "")).strip().lower().replace(" ", "-")


def section_of(text: str, anchor: str) -> str | None:
    """The text between a heading and the next one; with no anchor, below the title."""
    hidden = FENCE.sub(lambda match: "x" * len(match[0]), text)  # a comment in a shell block is no heading
    headings = list(HEADING.finditer(hidden))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=True):
        if (not anchor and len(heading[1]) == 1) or (anchor and slug(heading[2]) == anchor):
            return text[heading.end() : end].strip()
    return None


def place_of(anchor: str) -> str | None:
    """The page, with an anchor, that includes a section of README.md."""
    for path in sorted((REPO / "docs").glob("*.md")):
        text = path.read_text()
        for match in INCLUDE.finditer(text):
            above = HEADING.findall(text[: match.start()])
            if match[2] == anchor:
                return path.name if len(above) < 2 else f"{path.name}#{slug(above[-1][1])}"
    return None


def relinked(text: str, origin: str, here: str, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a text that stands in the repository's file `origin` for the page `here`."""

    def target_of(target: str) -> str:
        if re.match(r"[a-z]+:", target):
            return target
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path)) if path else origin
        if path == "README.md" and anchor:
            place = place_of(anchor)
            if place is None:
                log.warning("%s links to README.md#%s, which no page includes", here, anchor)
                return target
            path, _, anchor = f"docs/{place}".partition("#")
        if path == f"docs/{here}" and not target.partition("#")[0]:
            return target
        found = uri_of(path, config, files)
        if found is None:
            log.warning("%s (%s) links to %s, which is not in the repository", here, origin, path)
            return target
        return posixpath.relpath(found, posixpath.dirname(here) or ".") + (f"#{anchor}" if anchor else "")

    pieces, end = [], 0
    for fence in [*FENCE.finditer(text), None]:
        part = text[end : fence.start() if fence else len(text)]
        pieces.append(LINK.sub(lambda m: m["before"] + target_of(m["target"]) + m["after"], part))
        if fence:
            pieces.append(fence[0])
            end = fence.end()
    return "".join(pieces)


def uri_of(path: str, config: MkDocsConfig, files: Files) -> str | None:
    """Where a file of the repository is in the site; a file that is no page is copied there."""
    if path.startswith("docs/"):
        name = path.removeprefix("docs/")
        if files.get_file_from_path(name):
            return name
    if path in PAGES:
        return PAGES[path]
    if path == "benchmarks/results":
        return "results/index.md"
    if path.startswith("benchmarks/results/") and path.endswith(".md"):
        return path.removeprefix("benchmarks/")
    file = REPO / path
    if file.is_dir():
        listing = "\n".join(sorted(one.relative_to(REPO).as_posix() for one in file.rglob("*") if one.is_file()))
        name, content = f"source/{path}.txt", listing
    elif file.is_file():
        name = f"source/{path}" + ("" if file.suffix in (".ipynb", ".png", ".svg") else ".txt")
        content = file.read_bytes()
    else:
        return None
    if not files.get_file_from_path(name):
        files.append(File.generated(config, name, content=content))
    return name
