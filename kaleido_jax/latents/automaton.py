"""Automaton of the grammar: the nodes of all segments as tables over a vocabulary's tokens, for constrained sampling.

A vocabulary may cut "(344, 781" anywhere, so the states follow characters: a node (where in the grammar), the number
read so far and the numbers that later ones are compared with. Tokens that touch no number become one table (nodes,
rows), computed once; the few hundred others are read character by character at every step (`constrain.py`).

It accepts exactly the tokens whose text is `grammar.serialize` of some z, after sentencepiece's leading space.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt

from kaleido_jax.errors import user_error
from kaleido_jax.latents import segments as registry
from kaleido_jax.latents.constrain import FAR, Constraint, Numbers, ParserState, cost_of, read
from kaleido_jax.latents.grammar import SEPARATOR
from kaleido_jax.latents.nodes import (
    BAD,
    CLOSE,
    COMMA,
    DEAD,
    DIGIT,
    DONE,
    END,
    LARGEST_NUMBER,
    OPEN,
    OTHER,
    SPACE,
    Bounds,
    Nodes,
)
from kaleido_jax.latents.segments.base import Vocabulary
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.latents.validity import is_writable

REGISTER = {None: 0, "a": 1, "b": 2}
_KINDS = {"\u2581": SPACE, ",": COMMA, "(": OPEN, ")": CLOSE, SEPARATOR: BAD, " ": BAD}


def compile_grammar(segments: Sequence[str], vocabulary: Vocabulary) -> Constraint:
    """The tables for one vocabulary and one choice of segments, as numpy arrays (T5's with every segment: 5 MB).

    Raises:
      UserError: the vocabulary lacks a piece that the grammar needs.
    """
    tokenizer = vocabulary.tokenizer
    separator = tokenizer.encode(SEPARATOR)
    if len(separator) != 1:
        raise user_error(f"a vocabulary without the piece ' {SEPARATOR}'", "one that has it", "use another model file")
    nodes, firsts, parts = Nodes(), [], []
    for segment in segments:
        firsts.append(len(nodes.bounds))
        parts.append(registry.get(segment).grammar(nodes, vocabulary))
    numbers = _numbers(nodes.successors, nodes.bounds)
    classes, digits = _characters(tokenizer)
    following, touched = _lift(numbers, classes)
    candidates = np.flatnonzero(((following != DEAD) & touched).any(0))
    following[:, candidates] = DEAD  # they are read character by character instead

    # Edges besides text: tokens that are taken whole, the end of a segment, the end of z.
    for node, ids, successor in nodes.token_edges:
        following[node, np.asarray(ids)] = successor
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        if after is None:
            following[part.leave, tokenizer.eos_id] = DONE
        else:
            following[part.leave, separator[0]] = after.enter
    following[DONE, tokenizer.pad_id] = DONE

    row_of = np.full(tokenizer.vocab_size, len(candidates), np.int32)
    row_of[candidates] = np.arange(len(candidates))
    candidates = [*candidates, tokenizer.pad_id]  # the row of all others: no character that may follow
    width = int((classes[candidates] != END).sum(1).max())
    rounds, leave, round_cost = _loops(nodes)
    constraint = Constraint(
        numbers=numbers,
        following=following,
        cost=np.zeros(len(following), np.int32),
        left=np.zeros(following.shape, np.int16),
        row_of=row_of,
        classes=classes[candidates, :width],
        digits=digits[candidates, :width],
        enter=np.asarray(parts[0].enter if parts else DONE, np.int32),
        rounds=rounds,
        leave=leave,
        round_cost=round_cost,
    )
    return _with_costs(constraint, nodes, _worst(nodes.bounds, firsts))


def _numbers(successors: list[list[int]], bounds: list[Bounds | None]) -> Numbers:
    given = [b or Bounds() for b in bounds]
    too_large = [b for b in given if not 0 <= b.low <= LARGEST_NUMBER or b.high > LARGEST_NUMBER]
    if too_large:
        raise user_error(f"a number with {too_large[0]}", f"0..{LARGEST_NUMBER}", "correct the segment's grammar")
    return Numbers(
        step=np.asarray(successors, np.int32),
        inside=np.asarray([b is not None for b in bounds]),
        low=np.asarray([b.low for b in given], np.int32),
        above=np.asarray([REGISTER[b.above] for b in given], np.int32),
        high=np.asarray([b.high for b in given], np.int32),
        upto=np.asarray([REGISTER[b.upto] for b in given], np.int32),
        keep=np.asarray([REGISTER[b.keep] for b in given], np.int32),
    )


def _loops(nodes: Nodes) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """For each node: rounds, the node after the last round, and tokens per round."""
    rounds, leave, round_cost = np.zeros((3, len(nodes.bounds)), np.int32)
    for loop in nodes.loops:
        rounds[loop.more], leave[loop.more] = loop.rounds, loop.leave
        round_cost[[loop.enter, loop.more]] = 2  # an item and a joint
    return rounds, leave, round_cost


# ------------------------------------------------------------------------------------------------ lifting
def _characters(tokenizer: Tokenizer) -> tuple[Int[np.ndarray, "v w"], Int[np.ndarray, "v w"]]:
    """(classes, digits), each (rows, longest piece); a row that is not a piece of text is BAD, then END."""
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


def _class_of(ch: str) -> int:
    return DIGIT if ch in "0123456789" else _KINDS.get(ch, OTHER if is_writable(ch) else BAD)


def _lift(numbers: Numbers, classes: Int[np.ndarray, "v w"]) -> tuple[UInt[np.ndarray, "n v"], Bool[np.ndarray, "n v"]]:
    """The node that each token leads to from each node, ignoring values, and whether the token touches a number."""
    node = np.repeat(np.arange(len(numbers.step))[:, None], len(classes), 1)
    touched = numbers.inside[node]
    for position in range(classes.shape[1]):
        node = numbers.step[node, classes[None, :, position]]
        touched |= numbers.inside[node]
    return node.astype(np.min_scalar_type(len(numbers.step))), touched


# -------------------------------------------------------------------------------------- distance to the end
def _worst(bounds: list[Bounds | None], firsts: Sequence[int]) -> Int[np.ndarray, "2 n"]:
    """The values of registers a and b that leave later numbers of the same segment the fewest choices."""
    worst = np.zeros((2, len(bounds)), np.int32)
    for first, last in zip(firsts, [*firsts[1:], len(bounds)], strict=True):
        given = [b for b in bounds[first:last] if b is not None]
        for row, register in enumerate("ab"):
            kept = [b for b in given if b.keep == register]
            # A number up to the register has one choice at its lowest, a number above it at its highest.
            if any(b.upto == register for b in given):
                worst[row, first:last] = min(b.low for b in kept)
            elif kept:
                worst[row, first:last] = max(b.high for b in kept)
    return worst


def _with_costs(constraint: Constraint, nodes: Nodes, worst: Int[np.ndarray, "2 n"]) -> Constraint:
    """Fills in how many tokens each node needs at most until eos, by relaxing along every token.

    Each node is taken at its worst: the registers leave one choice, and the current number is at its highest, so that
    no digit may be added.
    """
    numbers, size = constraint.numbers, len(constraint.following)
    value = np.where(numbers.upto > 0, worst[0], numbers.high).astype(np.int32)
    every = np.arange(size, dtype=np.int32)
    state = ParserState(
        node=every,
        value=np.where(numbers.inside, value, 0),
        a=worst[0],
        b=worst[1],
        count=np.zeros(size, np.int32),
    )
    reached = read(numbers, constraint.classes, constraint.digits, state)
    # The current number is at its highest only here, so what it allows later in the same token does not count.
    unsure = numbers.inside[:, None] & (constraint.classes == DIGIT).any(1)[None]
    leads = np.zeros((size, size), bool)
    leads[np.repeat(every, constraint.following.shape[1]), constraint.following.ravel()] = True
    leads[DONE] = False

    cost = np.full(size, FAR, np.int32)
    cost[DONE] = 0
    for _ in range(8 * size):
        by_table = np.where(leads, cost[None, :], FAR).min(1)
        by_reading = np.where(unsure, FAR, cost_of(numbers, reached, cost)).min(1)
        relaxed = np.minimum(cost, 1 + np.minimum(by_table, by_reading))
        for loop in nodes.loops:  # no token of the table leads out of one
            whole = 2 * loop.rounds - 1 + relaxed[loop.leave]
            relaxed[loop.enter] = min(relaxed[loop.enter], whole)
        if (relaxed == cost).all():
            break
        cost = relaxed
    cost[DEAD] = FAR
    left = cost[constraint.following].astype(np.int16)
    for loop in nodes.loops:
        # Inside the rounds every path has the same length, so the budget was checked on entering.
        for node in (loop.enter, loop.more):
            left[node] = np.where(constraint.following[node] == DEAD, FAR, 0)
    return constraint.replace(cost=cost, left=left)
