"""Which token may follow: the grammar of z as a small automaton over characters, lifted to a vocabulary's tokens.

A vocabulary may cut "(344, 781" anywhere, so the states follow characters: a node (where in the grammar), the number
read so far and the numbers that later ones are compared with. Tokens that touch no number are lifted once to a table
(nodes, rows); the few hundred others are read character by character at every step (`constrain.py`).

Accepted are exactly the tokens whose text is `grammar.serialize` of some z behind sentencepiece's leading space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kaleido_jax.errors import user_error
from kaleido_jax.latents.constrain import DEAD, END, FAR, Constraint, Numbers, Place, cost_of, read
from kaleido_jax.latents.grammar import SEPARATOR
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.latents.types import HALF_TURN, MAX_COORDINATE, check_segments

SPACE, DIGIT, COMMA, OPEN, CLOSE, OTHER, BAD = range(END)  # classes of characters
DONE = DEAD + 1  # the second node of every automaton

# Lowest and highest value of each number; "a" and "b" are registers that an earlier number was kept in.
BOX = (
    {"low": 0, "high": MAX_COORDINATE - 1, "keep": "a"},  # x1
    {"low": 0, "high": MAX_COORDINATE - 1, "keep": "b"},  # y1
    {"above": "a", "high": MAX_COORDINATE},  # x2 > x1
    {"above": "b", "high": MAX_COORDINATE},  # y2 > y1
)
BLOB = (
    {"low": 0, "high": MAX_COORDINATE},
    {"low": 0, "high": MAX_COORDINATE},
    {"low": 1, "high": MAX_COORDINATE, "keep": "a"},  # r_major
    {"low": 1, "upto": "a"},  # r_minor <= r_major
    {"low": 0, "high": HALF_TURN - 1},
)
REGISTER = {None: 0, "a": 1, "b": 2}


def compile_grammar(tokenizer: Tokenizer, segments: Sequence[str], vokens_per_image: int) -> Constraint:
    """The tables for one vocabulary and one choice of segments, as numpy arrays (T5's with every segment: 5 MB).

    Raises:
      UserError: the vocabulary lacks a piece that the grammar needs.
    """
    segments = check_segments(segments)
    separator = tokenizer.encode(SEPARATOR)
    if len(separator) != 1:
        raise user_error(f"a vocabulary without the piece ' {SEPARATOR}'", "one that has it", "use another model file")
    nodes = _Nodes()
    parts = [nodes.add(segment) for segment in segments]
    numbers = nodes.numbers()
    classes, digits = _characters(tokenizer)
    following, touched = _lift(numbers, classes)
    candidates = np.flatnonzero(((following != DEAD) & touched).any(0))
    following[:, candidates] = DEAD  # they are read character by character instead

    # What is not text: the end of a segment, the end of z, and vokens.
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        if after is None:
            following[part.leave, tokenizer.eos_id] = DONE
        else:
            following[part.leave, separator[0]] = after.enter
    following[DONE, tokenizer.pad_id] = DONE
    voken = parts[-1] if "voken" in segments else None
    if voken:
        following[voken.enter, tokenizer.base_vocab_size : tokenizer.vocab_size] = voken.more
        following[voken.more, tokenizer.hash_id] = voken.enter

    row_of = np.full(tokenizer.vocab_size, len(candidates), np.int32)
    row_of[candidates] = np.arange(len(candidates))
    candidates = [*candidates, tokenizer.pad_id]  # the row of all others: no character that may follow
    width = int((classes[candidates] != END).sum(1).max())
    constraint = Constraint(
        numbers=numbers,
        following=following,
        cost=np.zeros(len(following), np.int32),
        left=np.zeros(following.shape, np.int16),
        row_of=row_of,
        classes=classes[candidates, :width],
        digits=digits[candidates, :width],
        enter=np.int32(parts[0].enter if parts else DONE),
        more=np.int32(voken.more if voken else -1),
        last=np.int32(voken.leave if voken else -1),
        vokens_per_image=np.int32(vokens_per_image),
    )
    return _with_costs(constraint, voken, vokens_per_image)


# ------------------------------------------------------------------------------------------------- nodes
@dataclass(frozen=True)
class _Part:
    """One segment's nodes: where it begins, where it may end, and for vokens where "#" must follow."""

    enter: int
    leave: int
    more: int = DEAD


class _Nodes:
    """Collects the nodes: the successor for each class of characters, and the bounds of those inside a number."""

    def __init__(self):
        self._next = [[DEAD] * END + [node] for node in (DEAD, DONE)]
        self._bounds = [None, None]

    def add(self, segment: str) -> _Part:
        """A segment's nodes."""
        if segment == "text":
            start, word, gap = self._new(), self._new(), self._new()
            self._link(start, {SPACE: gap})
            self._words(word, gap, gap, (DIGIT, COMMA, OPEN, CLOSE, OTHER))
            return _Part(start, word)
        if segment == "voken":
            enter, more, last = self._new(), self._new(), self._new()
            return _Part(enter, last, more)
        return self._objects(BOX if segment == "bbox" else BLOB)

    def numbers(self) -> Numbers:
        """The character automaton as arrays."""
        bounds = [given or {} for given in self._bounds]
        return Numbers(
            step=np.asarray(self._next, np.int32),
            inside=np.asarray([given is not None for given in self._bounds]),
            low=np.asarray([given.get("low", 1) for given in bounds], np.int32),
            above=np.asarray([REGISTER[given.get("above")] for given in bounds], np.int32),
            high=np.asarray([given.get("high", 0) for given in bounds], np.int32),
            upto=np.asarray([REGISTER[given.get("upto")] for given in bounds], np.int32),
            keep=np.asarray([REGISTER[given.get("keep")] for given in bounds], np.int32),
        )

    def _objects(self, numbers):
        # " phrase (1, 2, ...)" any number of times; the first character of a phrase is no space.
        between, first, word, gap = (self._new() for _ in range(4))
        self._link(between, {SPACE: first})
        self._words(word, gap, first, (DIGIT, COMMA, OTHER))
        self._link(gap, dict.fromkeys((DIGIT, COMMA, OTHER), word))
        begin = self._new()
        self._link(gap, {OPEN: begin})
        for position, bounds in enumerate(numbers):
            inside = self._new(bounds)
            self._link(begin, {DIGIT: inside})
            self._link(inside, {DIGIT: inside})
            if position == len(numbers) - 1:
                self._link(inside, {CLOSE: between})
            else:
                comma, begin = self._new(), self._new()
                self._link(inside, {COMMA: comma})
                self._link(comma, {SPACE: begin})
        return _Part(between, between)

    def _words(self, word, gap, first, readable):
        self._link(first, dict.fromkeys(readable, word))
        self._link(word, dict.fromkeys(readable, word) | {SPACE: gap})

    def _new(self, bounds=None):
        self._next.append([DEAD] * END + [len(self._next)])
        self._bounds.append(bounds)
        return len(self._next) - 1

    def _link(self, node, successors):
        for kind, successor in successors.items():
            self._next[node][kind] = successor


# ------------------------------------------------------------------------------------------------ lifting
def _characters(tokenizer):
    # (classes, digits), each (rows, longest piece); a row that is no piece of text is BAD, then END.
    pieces = {i: tokenizer.piece(i) for i in range(tokenizer.unk_id + 1, tokenizer.num_pieces)}
    width = max(map(len, pieces.values()))
    classes = np.full((tokenizer.vocab_size, width), END, np.int32)
    classes[:, 0] = BAD
    digits = np.zeros((tokenizer.vocab_size, width), np.int32)
    for i, piece in pieces.items():
        classes[i, : len(piece)] = [_class_of(ch) for ch in piece]
        digits[i, : len(piece)] = [int(ch) if ch in "0123456789" else 0 for ch in piece]
    missing = sorted(set("0123456789,()\u2581") - set(pieces.values()))
    if missing:
        raise user_error(f"a vocabulary without {' '.join(missing)}", "each as a piece", "use another model file")
    return classes, digits


def _class_of(ch):
    kinds = {"\u2581": SPACE, ",": COMMA, "(": OPEN, ")": CLOSE, SEPARATOR: BAD, " ": BAD}
    if ch in "0123456789":
        return DIGIT
    return kinds.get(ch, OTHER if ch.isprintable() else BAD)


def _lift(numbers, classes):
    # The node that each token leads to from each node, values aside, and whether a number is touched on the way.
    node = np.repeat(np.arange(len(numbers.step))[:, None], len(classes), 1)
    touched = numbers.inside[node]
    for position in range(classes.shape[1]):
        node = numbers.step[node, classes[None, :, position]]
        touched |= numbers.inside[node]
    return node.astype(np.uint8), touched


# -------------------------------------------------------------------------------------- the way to the end
def _with_costs(constraint, voken, vokens_per_image):
    """Fills in how many tokens each node needs at most until eos, by relaxing along every token.

    Each node is taken where it is worst: the numbers to compare with leave one choice, and the number inside is at its
    highest, so that no digit may be added.
    """
    numbers, size = constraint.numbers, len(constraint.following)
    worst_a = np.where(_reaches(numbers, numbers.upto > 0), 1, MAX_COORDINATE - 1).astype(np.int32)
    worst_b = np.full(size, MAX_COORDINATE - 1, np.int32)
    value = np.where(numbers.upto > 0, worst_a, numbers.high).astype(np.int32)
    nodes = np.arange(size, dtype=np.int32)
    place = Place(
        node=nodes, value=np.where(numbers.inside, value, 0), a=worst_a, b=worst_b, count=np.zeros(size, np.int32)
    )
    reached = read(numbers, constraint.classes, constraint.digits, place)
    # A number inside is at its highest only here, so what it admits of later numbers in the same token does not count.
    unsure = numbers.inside[:, None] & (constraint.classes == DIGIT).any(1)[None]
    leads = np.zeros((size, size), bool)
    leads[np.repeat(nodes, constraint.following.shape[1]), constraint.following.ravel()] = True
    leads[DONE] = False

    cost = np.full(size, FAR, np.int32)
    cost[DONE] = 0
    if voken:
        cost[voken.enter] = 2 * vokens_per_image  # as many vokens, "#" between them, eos
    for _ in range(8 * size):
        by_table = np.where(leads, cost[None, :], FAR).min(1)
        by_reading = np.where(unsure, FAR, cost_of(numbers, reached, cost)).min(1)
        relaxed = np.minimum(cost, 1 + np.minimum(by_table, by_reading))
        if (relaxed == cost).all():
            break
        cost = relaxed
    cost[DEAD] = FAR
    left = cost[constraint.following].astype(np.int16)
    if voken:
        # Inside the vokens every way is as long as any other, so the budget was settled on entering.
        for node in (voken.enter, voken.more, voken.leave):
            left[node] = np.where(constraint.following[node] == DEAD, FAR, 0)
    return constraint.replace(cost=cost, left=left)


def _reaches(numbers, wanted):
    # Nodes from which a wanted one can still be reached.
    found = wanted.copy()
    for _ in range(len(found)):
        found |= found[numbers.step].any(1)
    return found
