"""Nodes of the grammar's automaton, which the segments add; plain Python that `automaton.py` turns into tables.

A node says what was read so far. Characters lead from node to node by their class, whole tokens by their id.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

DEAD, DONE = 0, 1  # the nodes after anything that breaks the grammar, and after eos
SPACE, DIGIT, COMMA, OPEN, CLOSE, OTHER, BAD, END = range(8)  # classes of characters; END = after a token's last one
LONGEST = 4  # digits of the largest number
LARGEST_NUMBER = 10**LONGEST - 1


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Lowest and highest value of a number; "a" and "b" are registers that hold an earlier number."""

    low: int = 1
    high: int = 0
    above: Literal["a", "b"] | None = None  # the number must exceed this register; `low` is then ignored
    upto: Literal["a"] | None = None  # the number must not exceed this register; `high` is then ignored
    keep: Literal["a", "b"] | None = None  # register that stores this number


@dataclass(frozen=True)
class Part:
    """Where one segment begins in the automaton, and where it may end."""

    enter: int
    leave: int


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Nodes that are visited a fixed number of times: enter, item, more, joint, enter, ..., item, leave.

    Item and joint are one token each; the item that completes the last round leads to `leave` instead of `more`.
    """

    enter: int
    more: int
    leave: int
    rounds: int


class Nodes:
    """Collects the nodes and edges of all segments, in the segments' order."""

    def __init__(self) -> None:
        """Starts with the nodes DEAD and DONE."""
        self.successors: list[list[int]] = [[DEAD] * END + [node] for node in (DEAD, DONE)]  # by class of characters
        self.bounds: list[Bounds | None] = [None, None]  # of the number that a node is inside
        self.token_edges: list[tuple[int, Sequence[int], int]] = []  # node, token ids, successor
        self.loops: list[Loop] = []

    def new(self, bounds: Bounds | None = None) -> int:
        """A new node without edges; with bounds it is inside a number."""
        self.successors.append([DEAD] * END + [len(self.successors)])
        self.bounds.append(bounds)
        return len(self.successors) - 1

    def link(self, node: int, kinds: Iterable[int], successor: int) -> None:
        """Characters of these classes lead from the node to the successor."""
        for kind in kinds:
            self.successors[node][kind] = successor

    def link_tokens(self, node: int, ids: Sequence[int], successor: int) -> None:
        """These tokens, taken as a whole, lead from the node to the successor."""
        self.token_edges.append((node, ids, successor))

    def loop(self, *, enter: int, more: int, leave: int, rounds: int) -> None:
        """Counts how often `more` is reached; the last of the rounds leads to `leave` instead."""
        self.loops.append(Loop(enter=enter, more=more, leave=leave, rounds=rounds))

    def words(self, first: int, word: int, gap: int, kinds: Sequence[int]) -> None:
        """Words of these characters with single spaces between them, starting at `first`; they may end in `word`."""
        self.link(first, kinds, word)
        self.link(word, kinds, word)
        self.link(word, (SPACE,), gap)

    def number(self, begin: int, bounds: Bounds) -> int:
        """A number that begins at the node; returns the node inside it, where it may end."""
        inside = self.new(bounds)
        self.link(begin, (DIGIT,), inside)
        self.link(inside, (DIGIT,), inside)
        return inside
