"""Config loading: a Python file with get_config() or a stored JSON, changed by flags or keywords, then validated."""

import ast
import inspect
import io
import itertools
import os
import re
import runpy
import tokenize
import traceback
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from kaleido_jax.config.checks import validate
from kaleido_jax.config.fields import expand, field_type, read_type
from kaleido_jax.config.schema import Config, json_values
from kaleido_jax.errors import UserError, nearest, user_error
from kaleido_jax.runtime.workdir import CONFIG, vocabulary_path

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_PACKAGE = Path(__file__).parent.parent
OWN = "config.py"  # in a workdir, written by the verb `init` and edited by its user
MODELS = _PACKAGE / "assets" / "models"  # exported folders that come with the package
BUNDLED = tuple(sorted(path.parent.name for path in MODELS.glob("*/config.json")))  # their names
# In a wheel the shipped configs are inside the package, in a clone beside it.
SHIPPED = next((f for f in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if f.is_dir()), _PACKAGE / "configs")


def load_config(name_or_path: str | Path, **overrides: Any) -> Config:
    """A validated config.

    Args:
      name_or_path: the name of a shipped config, such as "emoji_combined" or "cc12m:text" (the part after the colon
        is get_config()'s argument), a file with get_config(), a config.json, a folder that holds one (a
        workdir or an exported model), or the name of a bundled model.
      **overrides: fields to change by their dotted path, e.g. **{"train.num_steps": 1_000}.

    Raises:
      UserError: no such config, an error inside its file, or an invalid config.
    """
    return _changed(load_values(str(name_or_path)), overrides)


def config_from_flags(spec: str, flags: Sequence[str]) -> Config:
    """The validated config of --config=SPEC, changed by flags --config.KEY=VALUE; the last flag of a key wins.

    Raises:
      UserError: as load_config, or a value that does not have its field's type.
    """
    overrides = {}
    for flag in flags:
        key, equals, text = flag.removeprefix("--config.").partition("=")
        if not equals:
            raise user_error(f"{flag} without a value", "--config.KEY=VALUE", "write the value after '='")
        overrides[key] = parse_value(key, text)
    return _changed(load_values(spec), overrides)


def parse_value(key: str, text: str) -> Any:
    """The value that the text of a flag means for a field, e.g. "sample.gamma"; its range is not checked.

    Raises:
      UserError: no such field, or a text that does not have its type.
    """
    return read_text(text, field_type(Config, key), key)


def base_config(name_or_path: str | Path) -> "ConfigDict":
    """Another config as a ConfigDict, for config files to build on.

    Raises:
      UserError: no such config, or an error inside its file.
    """
    from ml_collections import ConfigDict

    return ConfigDict(load_values(str(name_or_path)))


def _changed(values: dict[str, Any], overrides: Mapping[str, Any]) -> Config:
    if "rules" in values and "models" in values:
        raise user_error("a sweep as the config of a model", "a config", "give it to `evaluate` by --sweep=NAME")
    for key, value in overrides.items():
        field_type(Config, key)  # raises for an unknown key, naming the nearest
        *path, last = key.split(".")
        group = values
        for i, part in enumerate(path):
            group = group.setdefault(part, {})
            if not isinstance(group, dict):
                above = ".".join(path[: i + 1])
                raise user_error(f"config.{key}", f"no field below config.{above} = {group}", "correct the key")
        group[last] = value
    return validate(values)


# ------------------------------------------------------------------------------------------------- files
def load_values(spec: str) -> dict[str, Any]:
    """The values of a config by its name or path, not yet validated.

    Raises:
      UserError: no such config, or an error inside its file.
    """
    colons = [i for i, character in enumerate(spec) if character == ":"]
    for end in (len(spec), *reversed(colons)):  # a path may contain colons, so the longest existing one is meant
        path = _find(spec[:end])
        if path is not None:
            break
    else:
        raise _no_config(spec.split(":")[0])
    argument = spec[end + 1 :] if end < len(spec) else None
    if path.suffix == ".json":
        if argument is not None:
            raise _takes_none(spec[:end], argument)
        return _with_own_vocabulary(json_values(path), path.parent)
    return _run(path, spec[:end], argument)


def _find(name: str) -> Path | None:
    """The file of a config by its name or path, or None."""
    path = Path(expand(name, "--config"))
    shipped, bundled = SHIPPED / f"{name}.py", MODELS / name / "config.json"
    try:
        if path.is_file():
            return path
        if (path / "config.json").is_file():
            return path / "config.json"
        if shipped.is_file() and shipped.parent == SHIPPED:
            return shipped
        if (path / OWN).is_file():
            raise user_error(f"{name} without {CONFIG}", "a config", f"name {path / OWN}")
        return bundled if bundled.is_file() and bundled.parent.parent == MODELS else None
    except (OSError, ValueError):  # a name that is too long or holds a NUL
        return None


def config_of_workdir(workdir: str) -> str:
    """The config of a workdir for which --config is not given: config.py, which its user edits, or else config.json.

    Returns "" if it has neither. Only here, where the user says that a folder is the work at hand, is Python inside a
    folder run; `load_config(FOLDER)` reads its config.json.
    """
    if not workdir:
        return ""
    folder = Path(expand(workdir, "--workdir"))
    found = (folder / name for name in (OWN, CONFIG))
    return next((str(path) for path in found if path.is_file()), "")


def _with_own_vocabulary(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A stored config whose vocabulary is not where it was, such as that of a workdir from another machine."""
    t5 = values.get("model", {}).get("t5") if isinstance(values.get("model"), dict) else None
    name = t5.get("vocabulary") if isinstance(t5, dict) else None
    if not isinstance(name, str):
        return values
    return values | {"model": values["model"] | {"t5": t5 | {"vocabulary": vocabulary_path(name, folder)}}}


def _no_config(name: str) -> UserError:
    folder = Path(name).parent
    if os.path.isdir(name):  # also of a name too long for a file
        return user_error(f"no config in the folder {name[:200]}", f"{CONFIG} in it", "name a config's file")
    known = {path.stem: str(path) for path in sorted(folder.glob("*.py"))} if "/" in name and folder.is_dir() else {}
    known = known or {path.stem: path.stem for path in sorted(SHIPPED.glob("*.py"))}
    near = nearest(Path(name).stem, known)
    do = f"did you mean {known[near]}?" if near else "correct --config"
    return user_error(f"no config {name[:200]}", f"a file or a name such as {', '.join(known.values())}", do)


def check_model(name: str) -> None:
    """Checks that there is such a folder, or a bundled model of that name.

    Raises:
      UserError: there is none.
    """
    if name not in BUNDLED and not Path(name).expanduser().is_dir():
        raise no_model(name)


def no_model(name: str) -> UserError:
    """The error for a model that is neither a folder nor a bundled name."""
    near = nearest(name, BUNDLED)
    return user_error(
        f"no model {name!r}",
        f"a workdir, an exported folder or a bundled name ({', '.join(BUNDLED)})",
        f"did you mean {near!r}?" if near else "correct the path",
    )


def _run(path: Path, name: str, argument: str | None) -> dict[str, Any]:
    """What get_config() of a Python file returns; any error inside it is the user's, so it becomes one line."""
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if not callable(get_config):
            raise user_error(f"{name} without get_config()", "def get_config(): ... return config", "add it")
        arguments = _arguments(get_config, name, argument)
        config = get_config(*arguments)
        if isinstance(config, type) or not hasattr(config, "to_dict"):
            found = f"get_config() of {name} returns {str(config)[:40]}"
            raise user_error(found, "a config", "end it with return config")
        return config.to_dict()  # raises where a required placeholder has no value
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        found = f"{_location(error, path, name)}: {type(error).__name__}: {_reason(error)}".rstrip(": ")
        raise user_error(found, "a config file whose get_config() runs", "correct it") from error


def _arguments(get_config: FunctionType, name: str, argument: str | None) -> list[str]:
    taken = inspect.signature(get_config).parameters
    if argument is not None and not taken:
        raise _takes_none(name, argument)
    needed = [p for p in taken.values() if p.default is p.empty]
    if argument is None and needed:
        raise user_error(name, f"{name}:{needed[0].name.upper()}", "name the argument")
    return [] if argument is None else [argument]


def _takes_none(name: str, argument: str) -> UserError:
    return user_error(f"{name}:{argument}", f"{name}, which takes no argument", f"remove ':{argument}'")


def _location(error: BaseException, path: Path, name: str) -> str:
    """The file and line where a config file failed, the innermost line of the file itself."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{name}, line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"{name}, line {frames[-1].lineno}" if frames else name


def _reason(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, ImportError):
        text = re.sub(r" \(/[^)]*\)$", "", text)  # where this machine has the module
    return " ".join(text.split())[:300]


# ------------------------------------------------------------------------------------------------- flags
def read_text(text: str, hint: Any, key: str) -> Any:
    """The value that a flag's text means for a field's type; `key` is the field's path, for messages.

    Raises:
      UserError: it does not have that type.
    """
    field = read_type(hint)
    if field.optional and text == "None":
        return None
    if field.group is not None:
        raise user_error(f"--config.{key}={text}", "a field below it", "set its fields one by one")
    if typing.get_origin(field.bare) is tuple:
        return _parsed_tuple(text, field.bare, key)
    hint = field.bare
    if hint is bool and text.lower() in (words := {"true": True, "1": True, "false": False, "0": False}):
        return words[text.lower()]
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            pass
    if hint in (bool, int, float):
        raise user_error(f"--config.{key}={text}", hint.__name__, "correct the value")
    return text


def _without_comma(text: str) -> tuple[str, str] | None:
    """Two quoted texts that stand side by side, which Python silently makes one."""
    lines = io.StringIO(text.lstrip(" \t")).readline  # as ast.literal_eval
    tokens = [token for token in tokenize.generate_tokens(lines) if token.type not in (tokenize.NL, tokenize.COMMENT)]
    pairs = (two for two in itertools.pairwise(tokens) if all(token.type == tokenize.STRING for token in two))
    return next(((first.string, second.string) for first, second in pairs), None)


def _parsed_tuple(text: str, hint: Any, key: str) -> tuple:
    of_texts = read_type(typing.get_args(hint)[0]).bare is str
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        if of_texts and not text.startswith(("(", "[")):
            return (text,)  # one bare text
        example = "('a', 'b')" if of_texts else "(1, 2)"
        raise user_error(f"--config.{key}={text}", f"a tuple such as {example}", "write a tuple") from error
    if joined := _without_comma(text):
        found = f"--config.{key}={text}, without a comma between {joined[0]} and {joined[1]}"
        raise user_error(" ".join(found.split()), "a tuple such as ('a', 'b')", "write the comma")
    if isinstance(value, tuple | list):
        return tuple(value)
    return (text if of_texts and not isinstance(value, str) else value,)
