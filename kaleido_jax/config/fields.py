"""Types of config fields with their ranges, words and marks, and `build`, which checks values against them."""

import dataclasses
import functools
import math
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from kaleido_jax.errors import UserError, nearest, user_error

T = TypeVar("T")
G = TypeVar("G")
Check = Callable[[Any, str], None]  # (the built group, its dotted path); raises a UserError

LARGEST_INT = 2**31 - 1  # of whole numbers whose range has no upper end: steps, sizes and ids are int32 on devices
SMALLEST_FLOAT = 2.0**-126  # numbers are float32 on devices, which take what is closer to 0 for 0


# ------------------------------------------------------------------------------------- what a field allows
@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `open` leaves the ends themselves out."""

    low: float
    high: float = math.inf
    open: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low < value < self.high if self.open else self.low <= value <= self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"more than {self.low}" if self.open else f"at least {self.low}"
        return f"a number {'between' if self.open else 'from'} {self.low} {'and' if self.open else 'to'} {self.high}"


@dataclass(frozen=True)
class Mark:
    """A property of a field besides its range."""

    name: str


PATH = Mark("path")  # a path on this machine: "~" is expanded
MAY_CHANGE = Mark("may change")  # may differ between runs of one workdir; every other field may not

Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]  # if 0 means none, off or no limit, the field says so
Weight = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, open=True)]
Share = Annotated[float, Range(0, 1)]
PathText = Annotated[str, PATH]
MayChange = Annotated[T, MAY_CHANGE]

_more_words: dict[str, list[str]] = {}
_checks: dict[type, list[Check]] = {}


def cross_check(group: type) -> Callable[[Check], Check]:
    """Registers a check that `build` calls with each built `group` and its path, for conditions across fields."""

    def register(check: Check) -> Check:
        _checks.setdefault(group, []).append(check)
        return check

    return register


# ------------------------------------------------------------------------------------ values of a group
def build(group: type[G], values: Mapping[str, Any], path: str = "") -> G:
    """A frozen group of fields from a mapping (dict, ConfigDict) of its values; missing fields get their defaults.

    Args:
      group: a dataclass whose fields have the types of this module.
      values: field -> value, groups as mappings or as dataclasses.
      path: dotted path of the group in the config, for messages.

    Raises:
      UserError: an unknown key (with the nearest valid one), a wrong type, a value out of its range, a word that is
        not allowed, or an impossible combination.
    """
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        values = {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    if not hasattr(values, "items"):
        raise user_error(f"config{_dotted(path)} = {values!r}", "a group of fields", "set its fields one by one")
    hints = hints_of(group)
    for key in values:
        if key not in hints:
            raise unknown_key(path, key, hints)
    built = group(**{key: _convert(hints[key], value, f"{path}.{key}".lstrip(".")) for key, value in values.items()})
    for check in _checks.get(group, ()):
        check(built, path)
    return built


def unknown_key(path: str, key: str, known: Iterable[str]) -> UserError:
    """The error for a key that the schema lacks, with the nearest one."""
    near = nearest(str(key), known)
    expected = f"'{f'{path}.{near}'.lstrip('.')}'" if near else f"one of {', '.join(known)}"
    return user_error(f"unknown config key '{f'{path}.{key}'.lstrip('.')}'", expected, "correct the key")


@functools.cache
def hints_of(group: type) -> dict[str, Any]:
    """Field -> type, including Annotated's metadata."""
    return typing.get_type_hints(group, include_extras=True)


def _dotted(path: str) -> str:
    return f".{path}" if path else ""


def _convert(hint: Any, value: Any, path: str) -> Any:
    field = read_type(hint)
    bare = field.bare
    if value is None and field.optional:
        return None
    if typing.get_origin(bare) is Literal:
        return _word(value, words(bare, path), path)
    if typing.get_origin(bare) is tuple:
        return _tuple(bare, value, path)
    if field.group is not None:
        return build(field.group, value, path)
    if bare in (int, float) and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = int(value)  # also of numpy's integers
        value = float(value) if bare is float and abs(value) <= LARGEST_INT else value
    if not isinstance(value, bare) or (bare is int and isinstance(value, bool)):
        raise user_error(
            f"config.{path} = {repr(value)[:100]} ({type(value).__name__})", bare.__name__, "change the value's type"
        )
    return _text(value, path, PATH in field.marks) if bare is str else _number(value, path, field.marks)


def _word(value: Any, allowed: tuple[str, ...], path: str) -> str:
    if value not in allowed:
        near = nearest(str(value), allowed)
        do = f"did you mean '{near}'?" if near else "choose one"
        raise user_error(f"config.{path} = {value!r}", f"one of {', '.join(allowed)}", do)
    return value


def _tuple(hint: Any, value: Any, path: str) -> tuple:
    if not isinstance(value, tuple | list):
        raise user_error(f"config.{path} = {value!r}", "a tuple", "write it as (a, b, ...)")
    args = typing.get_args(hint)
    if args[-1] is Ellipsis:
        args = args[:1] * len(value)
    if len(value) != len(args):
        raise user_error(f"config.{path} has {len(value)} entries", f"{len(args)}", "correct the tuple")
    return tuple(_convert(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(args, value, strict=True)))


def _text(value: str, path: str, is_path: bool) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise user_error(f"config.{path} = {value!r}", "text in UTF-8", "correct its characters") from error
    if "\0" in value:
        raise user_error(f"config.{path} = {value!r}", "text without a NUL character", "remove it")
    return expand(value, f"config.{path}") if is_path else value


def expand(path: str, name: str) -> str:
    """Expands a leading "~" or "~user" to the home folder; `name` is what the user set, e.g. "--workdir".

    Raises:
      UserError: there is no such home folder.
    """
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        raise user_error(
            f"{name}={path}", "the home folder of a user of this machine", f"write ./{path} for a file of that name"
        )
    return expanded


def _number(value: float, path: str, marks: tuple[Any, ...]) -> float:
    found = f"config.{path} = {str(value)[:40]}"
    if isinstance(value, float) and not math.isfinite(value):  # of an int it fails where that is no float
        raise user_error(found, "a finite number", "correct it")
    ranges = [mark for mark in marks if isinstance(mark, Range)]
    for allowed in ranges:
        if value not in allowed:
            raise user_error(found, str(allowed), "raise it" if allowed.high == math.inf else "correct it")
    if 0 < abs(value) < SMALLEST_FLOAT:
        raise user_error(f"{found}, which is 0 in float32", f"0 or at least {SMALLEST_FLOAT:.2g}", "correct it")
    if isinstance(value, int) and abs(value) > LARGEST_INT and not any(r.high < math.inf for r in ranges):
        raise user_error(found, f"at most {LARGEST_INT}", "lower it")
    return value


# ---------------------------------------------------------------------------------- reading a field's type
@dataclass(frozen=True)
class FieldType:
    """The type of a field, taken apart."""

    bare: Any  # without None and Annotated's metadata
    marks: tuple[Any, ...]  # Annotated's metadata
    optional: bool  # None is allowed

    @property
    def group(self) -> type | None:
        """The dataclass of a field that is a group of fields, else None."""
        return self.bare if dataclasses.is_dataclass(self.bare) else None


def read_type(hint: Any) -> FieldType:
    """Takes a type apart; Annotated and None may be around it in any order."""
    marks, optional = [], False
    while True:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is Annotated:
            hint, marks = args[0], [*marks, *args[1:]]
        elif origin in (types.UnionType, typing.Union):
            hint, optional = next(h for h in args if h is not types.NoneType), True
        else:
            return FieldType(hint, tuple(marks), optional)


def field_type(group: type, path: str) -> Any:
    """The type of the field at a dotted path below a group, including Annotated's metadata.

    Raises:
      UserError: no such field; the message names the nearest one.
    """
    hint: Any = group
    for i, part in enumerate(parts := path.split(".")):
        above, inside = ".".join(parts[:i]), read_type(hint).group
        if inside is None:
            raise user_error(f"config.{path}", f"no field below config.{above}", "correct the key")
        if part not in hints_of(inside):
            raise unknown_key(above, part, hints_of(inside))
        hint = hints_of(inside)[part]
    return hint


def marked(group: type, mark: Mark, path: str = "") -> set[str]:
    """The dotted paths of the fields with a mark; a group inside itself (`UNet.inner`) is entered once."""
    found = set()
    for name, hint in hints_of(group).items():
        below, field = f"{path}.{name}".lstrip("."), read_type(hint)
        if mark in field.marks:
            found.add(below)
        elif field.group is not None and field.group is not group:
            found |= marked(field.group, mark, below)
    return found


# ------------------------------------------------------------------------------------------ words of a field
def words(hint: Any, path: str) -> tuple[str, ...]:
    """The allowed words of a Literal field, including those that `add_word` added."""
    return typing.get_args(hint) + tuple(_more_words.get(re.sub(r"\[\d+\]", "", path), ()))


def add_word(group: type, path: str, word: str) -> None:
    """Allows one more word in a Literal field, for a part that is registered from outside.

    Args:
      group: the top of the config.
      path: the field, e.g. "sample.sampler".
      word: the name under which the part was registered.

    Raises:
      UserError: there is no such field.
      TypeError: any text is allowed there already.
    """
    hint = read_type(field_type(group, path)).bare
    if typing.get_origin(hint) is tuple:
        hint = read_type(typing.get_args(hint)[0]).bare
    if typing.get_origin(hint) is not Literal:
        raise TypeError(f"config.{path} takes {hint}, not a choice of words")
    if word not in words(hint, path):
        _more_words.setdefault(path, []).append(word)
