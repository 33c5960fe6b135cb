"""Communication of a compiled program, read from its HLO text."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM_BITS = re.compile(r"[a-z]+(\d+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([^\s,}]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"\bcondition=%?([^\s,}]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LAYOUT = re.compile(r"\{[^}]*\}")
_RESULTS = re.compile(r"^\(\([^()]*\), \(([^()]*)\)")  # of a collective that starts with several arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Communication:
    """What one device exchanges in one run of a program."""

    bytes_by_collective: Mapping[str, int]  # of each of COLLECTIVES
    count_by_collective: Mapping[str, int]
    unknown_loops: int  # loops with collectives whose number of iterations is not known; they count once

    @property
    def total_bytes(self) -> int:
        """Of all collectives."""
        return sum(self.bytes_by_collective.values())


def communication(text: str) -> Communication:
    """The collectives of a compiled module's text, the bodies of loops counted once for each iteration.

    The bytes of a collective are those of the whole array on one device: the result of an all-gather, all-reduce,
    all-to-all or permutation, the operand of a reduce-scatter. Of conditional branches each counts once.
    """
    computations, entry = _computations(text)
    done: dict[str, tuple[Counter[str], Counter[str]]] = {}  # computation -> (bytes, numbers) of its collectives
    unknown = set()

    def visit(name: str) -> tuple[Counter[str], Counter[str]]:
        if name in done:
            return done[name]
        size, number = Counter(), Counter()
        for _, shape, op, rest in computations.get(name, ()):
            if (kind := op.removesuffix("-start")) in COLLECTIVES:
                size[kind] += _bytes(op, shape, rest)
                number[kind] += 1
            times = _iterations(rest, computations) if op == "while" else 1
            # The later halves of an asynchronous pair name the same computation again.
            for called in () if op in ("async-update", "async-done") else _called(rest):
                sizes, numbers = visit(called)
                if times is None and numbers:
                    unknown.add(called)
                for kind in numbers:
                    size[kind] += sizes[kind] * (times or 1)
                    number[kind] += numbers[kind] * (times or 1)
        done[name] = size, number
        return done[name]

    size, number = visit(entry)
    return Communication(
        bytes_by_collective={kind: size[kind] for kind in COLLECTIVES},
        count_by_collective={kind: number[kind] for kind in COLLECTIVES},
        unknown_loops=len(unknown),
    )


def _computations(text: str) -> tuple[dict[str, list[tuple[str, str, str, str]]], str]:
    """({name: its instructions as (name, shape, operation, rest of the line)}, the name of the entry)."""
    found, lines, entry = {}, [], ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = found[header[2]] = []
            entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            lines.append(instruction.groups())
    return found, entry


def _called(rest: str) -> list[str]:
    names = _CALLED.findall(rest)
    for branches in _BRANCHES.findall(rest):
        names += [name.strip().removeprefix("%") for name in branches.split(",")]
    return names


def _iterations(rest: str, computations: Mapping[str, list[tuple[str, str, str, str]]]) -> int | None:
    """Of a while loop: as the compiler wrote it, or N of a condition that only compares with the constant N."""
    if known := _TRIPS.search(rest):
        return int(known[1])
    condition = computations.get(name[1], []) if (name := _CONDITION.search(rest)) else []
    bounds = [int(tail.split(")")[0]) for _, _, op, tail in condition if op == "constant" and tail[0].isdigit()]
    compares = [tail for _, _, op, tail in condition if op == "compare"]
    counts_up = len(compares) == 1 and "direction=LT" in compares[0]  # jax's scans and XLA's windows count from 0
    return bounds[0] if counts_up and len(bounds) == 1 else None


def _bytes(op: str, shape: str, rest: str) -> int:
    shape = _LAYOUT.sub("", shape)
    arrays = [_array_bytes(*array) for array in _ARRAY.findall(shape)]
    if op in ("all-gather-start", "collective-permute-start"):  # (operands, results, ...), as many of each
        gathered = _RESULTS.search(shape)
        return sum(_array_bytes(*array) for array in _ARRAY.findall(gathered[1])) if gathered else arrays[1]
    if op == "reduce-scatter":
        return sum(arrays) * _group_size(rest)
    return sum(arrays)


def _array_bytes(dtype: str, dims: str) -> int:
    bits = 8 if dtype == "pred" else int(_ITEM_BITS.match(dtype)[1])
    return math.prod(int(size) for size in dims.split(",") if size) * bits // 8


def _group_size(rest: str) -> int:
    """Devices of a replica group, in each of the forms that XLA writes: lists, iota, mesh axes."""
    if explicit := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return explicit[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=\S*mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return 1
