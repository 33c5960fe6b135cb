"""The package's rooms: who may import whom, no circles, every function typed and short."""

import ast
import statistics
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kaleido_jax"
# Lowest first; a room imports itself and what stands before it. `kaleido_jax/__init__.py` hands names on lazily.
LAYERS = (
    ("errors", "array_types"),
    ("runtime",),
    ("latents",),
    ("config",),
    ("models", "diffusion"),
    ("data",),
    ("interop",),
    ("sampling", "annotate"),
    ("train",),
    ("evaluate", "export", "intake", "plan", "studio"),
    ("verbs",),
    ("main", "__init__"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
NEVER = {("sampling", "train"), ("models", "diffusion"), ("diffusion", "models"), ("sampling", "annotate")}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}
TREES = {module: ast.parse(path.read_text("utf-8")) for module, path in MODULES.items()}


def imports_of(module: str, *, lazy: bool = True) -> set[str]:
    """The package's modules that one names in its imports; those inside functions only if `lazy`."""
    found = set()

    def walk(node, inside):
        for child in ast.iter_child_nodes(node):
            deeper = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if lazy or not inside:
                if isinstance(child, ast.Import):
                    found.update(alias.name for alias in child.names)
                elif isinstance(child, ast.ImportFrom) and child.module:
                    for alias in child.names:
                        full = f"{child.module}.{alias.name}"
                        found.add(full if full in MODULES else child.module)
            walk(child, deeper)

    walk(TREES[module], False)
    return {name for name in found if name in MODULES and name != module}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def functions():
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, node


def test_every_room_has_its_place():
    assert {room_of(module) for module in MODULES} <= set(LEVEL)


def test_no_room_imports_a_higher_one():
    upward = [
        f"{module} imports {name}"
        for module in MODULES
        if room_of(module) != "__init__"
        for name in imports_of(module)
        if LEVEL[room_of(name)] > LEVEL[room_of(module)] or (room_of(module), room_of(name)) in NEVER
    ]
    assert not upward, "\n".join(sorted(upward))


def test_nothing_imports_the_command_line_or_the_configs():
    named = {module: imports_of(module) for module in MODULES}
    assert not [m for m, names in named.items() if "kaleido_jax.main" in names]
    texts = {m: ast.dump(tree) for m, tree in TREES.items()}
    assert not [m for m, text in texts.items() if "module='configs" in text or "name='configs" in text]


@pytest.mark.parametrize("lazy", [False, True])
def test_no_circle_among_files(lazy):
    graph = {module: imports_of(module, lazy=lazy) for module in MODULES if room_of(module) != "__init__"}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done or module not in graph:
            return
        path.append(module)
        for name in sorted(graph[module]):
            visit(name)
        path.pop()
        done.add(module)

    for module in graph:
        visit(module)


def test_every_function_has_a_return_type():
    bare = [f"{module}:{node.lineno} {node.name}" for module, node in functions() if node.returns is None]
    assert not bare, f"{len(bare)} without: " + ", ".join(bare[:20])


def test_functions_are_short():
    lengths = {f"{module}:{node.name}": node.end_lineno - node.lineno + 1 for module, node in functions()}
    long = {name: lines for name, lines in lengths.items() if lines > 60}
    assert not long, long
    assert 6 <= statistics.median(lengths.values()) <= 12
