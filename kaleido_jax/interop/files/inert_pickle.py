"""Inert pickles: torch's pickles read as data, without running them.

A pickle is a program, and pickle.Unpickler runs it. Here its opcodes are read one by one (pickletools.genops, which
only parses): plain values are kept, the names that torch uses for tensors are known, and everything else becomes
OPAQUE. Nothing that the file names is imported, called or given a state.
"""

import os
import pickletools
from dataclasses import dataclass
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)  # of `read_program`
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@dataclass(frozen=True)
class Name:
    """The name of something to import, which is not imported."""

    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers in the entry data/<key>."""

    dtype: Any
    key: str


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


OPAQUE = object()  # stands for anything that the file would have made by running code
_MARK = object()
_TENSOR, _PARAMETER = (Name("torch._utils", name) for name in ("_rebuild_tensor_v2", "_rebuild_parameter"))
_ORDERED_DICT = Name("collections", "OrderedDict")
_CONSTANTS = {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": lambda: OPAQUE}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS = {
    op.name
    for op in pickletools.opcodes
    if op.arg
    and not op.stack_before
    and len(op.stack_after) == 1
    and op.name not in ("GLOBAL", "PERSID", "GET", "BINGET", "LONG_BINGET", "EXT1", "EXT2", "EXT4")
}


def read_program(program: bytes | BinaryIO) -> Any:
    """The value that a pickle describes, with OPAQUE, Name and Tensor instead of objects; a file is read to its end.

    Raises:
      ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError: it is damaged.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(program if isinstance(program, bytes) else _Bounded(program)):
        if opcode.name == "STOP":
            return machine.stack.pop()
        machine.step(opcode.name, argument)
    raise ValueError("no end")


class _Bounded:
    """A file of which no more is asked than it has: a buffered one first makes room for all that it is asked for."""

    def __init__(self, file: BinaryIO) -> None:
        place = file.tell()
        self._file, self._end = file, file.seek(0, os.SEEK_END)
        file.seek(place)
        self.tell, self.readline = file.tell, file.readline

    def read(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        return self._file.read(min(size, self._end - self._file.tell()))


class _Machine:
    """A pickle's stack and memo. Each opcode moves values; none calls what the file names."""

    def __init__(self) -> None:
        self.stack, self.memo = [], {}

    def step(self, op: str, argument: Any) -> None:
        """Runs one opcode."""
        if op in _LITERALS:
            self.stack.append(argument)
        elif op in _CONSTANTS or op in _EMPTY:
            self.stack.append((_CONSTANTS | _EMPTY)[op]())
        elif op in _TUPLES:
            self.stack[-_TUPLES[op] :] = [tuple(self._last(_TUPLES[op]))]
        elif op in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[argument])
        elif op in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self.memo[len(self.memo) if op == "MEMOIZE" else argument] = self.stack[-1]
        elif op not in ("PROTO", "FRAME"):
            getattr(self, f"_{op.lower()}")(argument)

    def _last(self, number: int) -> list:
        if len(self.stack) < number:
            raise IndexError("a value is missing")
        return self.stack[-number:]

    def _since_mark(self) -> list:
        for index in reversed(range(len(self.stack))):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise IndexError("a mark is missing")

    # ---- values
    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _list(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._fill(items)

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _setitem(self, _: Any) -> None:
        items = self._last(2)
        del self.stack[-2:]
        self._fill(items)

    def _setitems(self, _: Any) -> None:
        self._fill(self._since_mark())

    def _fill(self, items: list) -> None:
        if isinstance(self.stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            # Only plain keys: hashing a deep tuple can overflow C's stack.
            self.stack[-1].update({k: v for k, v in pairs if isinstance(k, str | int)})

    # ---- opcodes that would import, call or set a state
    def _global(self, argument: Any) -> None:
        self.stack.append(Name(*argument.split(" ", 1)))

    def _stack_global(self, _: Any) -> None:
        module, name = self._last(2)
        self.stack[-2:] = [Name(module, name) if isinstance(module, str) and isinstance(name, str) else OPAQUE]

    def _reduce(self, _: Any) -> None:
        called, arguments = self._last(2)
        self.stack[-2:] = [_made(called, arguments)]

    def _build(self, _: Any) -> None:
        self._last(2)
        self.stack.pop()

    def _additems(self, _: Any) -> None:
        self._since_mark()

    def _binpersid(self, _: Any) -> None:
        self.stack[-1] = _storage(self.stack[-1])

    def _newobj(self, _: Any) -> None:
        self._last(2)
        self.stack[-2:] = [OPAQUE]

    def _newobj_ex(self, _: Any) -> None:
        self._last(3)
        self.stack[-3:] = [OPAQUE]

    def _opaque_of_items(self, _: Any) -> None:
        self._since_mark()
        self.stack.append(OPAQUE)

    _obj = _inst = _frozenset = _opaque_of_items

    def _opaque(self, _: Any) -> None:
        self.stack.append(OPAQUE)

    _persid = _ext1 = _ext2 = _ext4 = _next_buffer = _opaque

    def _readonly_buffer(self, _: Any) -> None:
        pass


def _made(called: Any, arguments: Any) -> Any:
    """The result of a call, for the three names that are known here."""
    if called == _TENSOR:
        storage, offset, shape, strides = arguments[:4]
        numbers = (offset, *shape, *strides)
        whole = all(type(n) is int and 0 <= n < 2**48 for n in numbers)
        if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > 8 or not whole:
            raise ValueError("an invalid tensor")
        return Tensor(storage, offset, tuple(shape), tuple(strides))
    if called == _PARAMETER:
        return arguments[0]
    if called == _ORDERED_DICT:
        items = arguments[0] if arguments else []
        return {k: v for k, v in items if isinstance(k, str | int)}
    return OPAQUE


def _storage(identity: Any) -> Storage:
    """("storage", type, key, device, count) as torch writes it; before torch 1.6 followed by None, or by a view."""
    kind, stored, key = identity[:3]
    if len(identity) > 5 and identity[5] is not None:
        raise ValueError("a storage that is a view")
    known = isinstance(stored, Name) and stored.module == "torch" and stored.name in STORAGES
    if kind != "storage" or not known or not isinstance(key, str):
        raise ValueError(f"a storage of type {stored.name[:40]!r}" if isinstance(stored, Name) else "a strange storage")
    return Storage(STORAGES[stored.name], key)
