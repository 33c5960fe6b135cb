"""Mutations of bytes for the fuzzers: of any bytes, and of the values in JSON and msgpack."""

import json
import random
import struct

import msgpack

# What parsers trip over: ends of ranges, types that are nearly right, words of the formats read here.
NUMBERS = (0, 1, -1, 2, 7, 255, 256, 1000, 1001, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**30)
VALUES = (
    *(
        None,
        True,
        False,
        "",
        "0",
        "a",
        "\ud83d",
        "\u2581",
        "|",
        "\n",
        "None",
        "x" * 300,
        [],
        {},
        [[]],
        [None],
        {"": None},
    ),
    *(0.5, 1e308, -0.0, float("inf"), float("nan"), [0] * 40, {"a": {"b": {"c": 1}}}, "../../etc/passwd", "\x00"),
    *NUMBERS,
)
WORDS = (b"|", b"(", b")", b"#", b",", b".", b"=", b"{", b"}", b"[", b"]", b'"', b"\n", b"\x00", b"\xff", b"\x80")
DEEP = 3_000  # more levels than Python's stack takes


def mutate(data: bytes, rng: random.Random, form: str, most: int = 2**16) -> bytes:
    """Other bytes near `data`; `form` is "bytes", "json" or "msgpack"."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if form == "bytes" or rng.random() < 0.25:
            data = _bytes(data, rng)
            continue
        try:
            value = json.loads(data) if form == "json" else msgpack.unpackb(data, strict_map_key=False)
            value = _value(value, rng)
            data = json.dumps(value).encode() if form == "json" else msgpack.packb(value)
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
            data = _bytes(data, rng)
    return data[:most]


def _bytes(data: bytes, rng: random.Random) -> bytes:
    where, kind = rng.randrange(len(data) + 1), rng.randrange(9)
    end = min(len(data), where + rng.choice((1, 1, 2, 4, 8, 64)))
    if kind == 0 and data:
        where = min(where, len(data) - 1)
        return data[:where] + bytes([data[where] ^ 1 << rng.randrange(8)]) + data[where + 1 :]
    if kind == 1:
        return data[:where] + data[end:]
    if kind == 2:
        return data[:where] + data[where:end] * rng.choice((2, 3, 100)) + data[end:]
    if kind == 3:
        return data[:where] + rng.randbytes(rng.choice((1, 2, 4, 8))) + data[where:]
    if kind == 4:
        return data[:where] + rng.choice(WORDS) + data[where:]
    if kind == 5:
        number = struct.pack(
            rng.choice(("<i", ">i", "<q", ">q")), rng.choice([n for n in NUMBERS if -(2**31) <= n < 2**31])
        )
        return data[:where] + number + data[where + len(number) :]
    if kind == 6:
        return data[:where] + str(rng.choice(NUMBERS)).encode() + data[end:]
    if kind == 7:
        other = rng.randrange(len(data) + 1)
        return data[:where] + data[other : other + end - where] + data[end:]
    return data[:where]


def _value(value: object, rng: random.Random) -> object:
    """The value with one node changed, anywhere in it."""
    places = list(_places(value))
    parent, key = rng.choice(places) if places else (None, None)
    if parent is None:
        return rng.choice(VALUES)
    kind = rng.randrange(7)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(("", "a", "format", str(key) + "s", str(key)[:-1]))] = parent[key]
    elif kind == 1:
        parent.insert(key, parent[key])
    elif kind == 2:
        parent[key] = [parent[key]]
    elif kind == 3:
        other_parent, other_key = rng.choice(places)
        parent[key] = json.loads(json.dumps(other_parent[other_key], default=str))
    elif kind == 4 and isinstance(parent[key], int | float):
        parent[key] += rng.choice((1, -1, 0.5, 10**6))
    elif kind == 5 and rng.random() < 0.05:
        nested: object = 0
        for _ in range(DEEP if rng.random() < 0.5 else 100):
            nested = [nested]
        parent[key] = nested
    else:
        parent[key] = rng.choice(VALUES)
    return value


def _places(value: object):
    """(parent, key) of every node below the root; without recursion, since values may be deep."""
    todo = [value]
    while todo:
        one = todo.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            yield one, key
            todo.append(one[key])
