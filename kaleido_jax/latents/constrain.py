"""Constrained sampling: which tokens may come next and where they lead, for a batch, in numpy or in a jitted loop.

The functions use the namespace of their arrays, so that tests and checks on the host run the same code.
"""

from collections.abc import Sequence
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Integer

from kaleido_jax.array_types import Rows
from kaleido_jax.latents.nodes import DEAD, END, LONGEST

FAR = 9999  # tokens; more than any budget
_AnyArray = Array | np.ndarray


class Numbers(struct.PyTreeNode):
    """The automaton over characters: successors, and for nodes inside a number its bounds."""

    step: Int[_AnyArray, "n 8"]  # successor for each class of characters
    inside: Bool[_AnyArray, "n"]
    low: Int[_AnyArray, "n"]
    above: Int[_AnyArray, "n"]  # register that the number must exceed; 0 = none, then `low` holds
    high: Int[_AnyArray, "n"]
    upto: Int[_AnyArray, "n"]  # register that the number must not exceed; 0 = none, then `high` holds
    keep: Int[_AnyArray, "n"]  # register that the number is kept in; 0 = none


class ParserState(struct.PyTreeNode):
    """How far each row was read: node, number so far, two registers, rounds of a loop. Each (B,) or (B, M)."""

    node: _AnyArray
    value: _AnyArray
    a: _AnyArray
    b: _AnyArray
    count: _AnyArray  # 0 outside of loops


class Constraint(struct.PyTreeNode):
    """The tables of one vocabulary and one choice of segments; n nodes, v rows, m tokens that touch numbers."""

    numbers: Numbers
    following: Integer[_AnyArray, "n v"]  # node after each token that touches no number; 0 = not allowed
    cost: Int[_AnyArray, "n"]  # tokens that suffice from a node to eos, before any round of a loop
    left: Int[_AnyArray, "n v"]  # cost after each token of `following`
    row_of: Int[_AnyArray, "v"]  # row of a token in `classes`; the last row for all that touch no number
    classes: Int[_AnyArray, "m w"]  # characters of the tokens that touch numbers; the last row is never allowed
    digits: Int[_AnyArray, "m w"]
    enter: Int[_AnyArray, ""]  # first node
    rounds: Int[_AnyArray, "n"]  # of the loop that a node counts; 0 = it counts none
    leave: Int[_AnyArray, "n"]  # node that replaces it after the last round
    round_cost: Int[_AnyArray, "n"]  # tokens per round, of nodes within a loop

    def start(self, rows: Rows) -> ParserState:
        """The state before the first token."""
        xp = _namespace(self.following)
        zero = xp.zeros(rows, xp.int32)
        return ParserState(node=zero + self.enter, value=zero, a=zero, b=zero, count=zero)

    def restrict(
        self, state: ParserState, logits: Float[_AnyArray, "b v"], positions_left: int | _AnyArray
    ) -> tuple[Float[_AnyArray, "b v"], ParserState]:
        """The logits with -inf for every token that breaks the grammar or cannot end in time.

        Args:
          state: of each row.
          logits: of the next token.
          positions_left: tokens that may still be written, including this one and eos.

        Returns:
          The logits, and where the tokens that touch numbers lead, for `advance`. A row without an allowed token (a
          forced prefix broke the grammar) keeps its logits.
        """
        allowed, reached = self.allowed(state, positions_left)
        xp = _namespace(allowed)
        allowed |= ~allowed.any(-1, keepdims=True)
        return xp.where(allowed, logits, -xp.inf), reached

    def allowed(
        self, state: ParserState, positions_left: int | _AnyArray
    ) -> tuple[Bool[_AnyArray, "b v"], ParserState]:
        """Which tokens may come next, and where those that touch numbers lead."""
        reached = read(self.numbers, self.classes, self.digits, state)
        in_time = cost_of(self.numbers, reached, self.cost) < positions_left
        return in_time[:, self.row_of] | (self.left[state.node] < positions_left), reached

    def advance(self, state: ParserState, reached: ParserState, token: Int[_AnyArray, "b"]) -> ParserState:
        """The state after one chosen token per row."""
        row, rows = self.row_of[token], _namespace(self.following).arange(token.shape[0])
        return self._arrive(state, token, jax.tree.map(lambda field: field[rows, row], reached))

    def follow(self, ids: Sequence[int]) -> tuple[ParserState, int | None]:
        """(state after the ids, position of the first one that breaks the grammar or None), on the host."""
        state = self.start(1)
        for position, token in enumerate(ids):
            row = self.row_of[[token]]
            reached = read(self.numbers, self.classes[row], self.digits[row], state)
            behind = self._arrive(state, np.asarray([token]), jax.tree.map(lambda field: field[:, 0], reached))
            if behind.node[0] == DEAD:
                return state, position
            state = behind
        return state, None

    def _arrive(self, state: ParserState, token: Int[_AnyArray, "b"], reached: ParserState) -> ParserState:
        # `reached` is where the token leads, if it touches a number.
        xp = _namespace(self.following)
        touches = self.row_of[token] < len(self.classes) - 1
        node = xp.where(touches, reached.node, self.following[state.node, token].astype(xp.int32))
        rounds = self.rounds[node]
        count = state.count + (rounds > 0)
        done = (rounds > 0) & (count >= rounds)
        return ParserState(
            node=xp.where(done, self.leave[node], node),
            value=xp.where(touches, reached.value, 0),
            a=xp.where(touches, reached.a, state.a),
            b=xp.where(touches, reached.b, state.b),
            count=xp.where(done, 0, count),
        )

    def tokens_to_end(self, state: ParserState) -> Int[_AnyArray, "b"]:
        """How many more tokens suffice; exact or a little too high."""
        return cost_of(self.numbers, state, self.cost) - self.round_cost[state.node] * state.count


# ----------------------------------------------------------------------------------------- characters
def read(
    numbers: Numbers, classes: Int[_AnyArray, "m w"], digits: Int[_AnyArray, "m w"], state: ParserState
) -> ParserState:
    """Where each of m tokens, given by their characters, leads from each row's state; fields (B, m)."""
    xp = _namespace(classes)
    shape = state.node.shape[0], len(classes)
    at = jax.tree.map(lambda field: xp.broadcast_to(field[:, None], shape), state)
    for column in range(classes.shape[1]):
        kind, digit = (xp.broadcast_to(table[None, :, column], shape) for table in (classes, digits))
        at = _read_character(numbers, at, kind, digit, xp)
    return at


def _read_character(
    numbers: Numbers, at: ParserState, kind: _AnyArray, digit: _AnyArray, xp: ModuleType
) -> ParserState:
    behind = numbers.step[at.node, kind]
    was, now = numbers.inside[at.node], numbers.inside[behind]
    grown = xp.where(was, at.value * 10 + digit, digit)
    low, high = _bounds(numbers, xp.where(now, behind, at.node), at, xp)
    # A number continues only if a number within the bounds begins like it (none does with "0"), and ends only within.
    continues = (_digits_missing(grown, low, high, xp) < FAR) & ~(was & (at.value == 0))
    ends = (at.value >= low) & (at.value <= high)
    alive = xp.where(now, continues, ends | ~was)
    kept = xp.where(was & ~now, numbers.keep[at.node], 0)
    behind = xp.where(alive, behind, DEAD)
    still = kind == END
    return ParserState(
        node=xp.where(still, at.node, behind),
        value=xp.where(still, at.value, xp.where(now & alive, grown, 0)),
        a=xp.where(kept == 1, at.value, at.a),
        b=xp.where(kept == 2, at.value, at.b),
        count=at.count,
    )


def _bounds(numbers: Numbers, node: _AnyArray, at: ParserState, xp: ModuleType) -> tuple[_AnyArray, _AnyArray]:
    above, upto = numbers.above[node], numbers.upto[node]
    low = xp.where(above == 1, at.a + 1, xp.where(above == 2, at.b + 1, numbers.low[node]))
    return low, xp.where(upto == 1, at.a, numbers.high[node])


def _digits_missing(value: _AnyArray, low: _AnyArray, high: _AnyArray, xp: ModuleType) -> _AnyArray:
    """Fewest further digits that bring the value within the bounds; FAR if none do."""
    missing = xp.where((value >= low) & (value <= high), 0, FAR)
    for more in range(1, LONGEST):
        first = value * 10**more
        hits = (value > 0) & (first <= high) & (first + 10**more > low)
        missing = xp.where(hits & (missing == FAR), more, missing)
    return missing


def cost_of(numbers: Numbers, state: ParserState, cost: Int[_AnyArray, "n"]) -> _AnyArray:
    """Tokens that suffice from a state to eos: those of its node, and one for each digit that the number needs."""
    xp = _namespace(cost)
    missing = _digits_missing(state.value, *_bounds(numbers, state.node, state, xp), xp)
    return cost[state.node] + xp.where(numbers.inside[state.node], missing, 0)


def _namespace(array: _AnyArray) -> ModuleType:
    return jnp if isinstance(array, jax.Array) else np
