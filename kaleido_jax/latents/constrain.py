"""The automaton at work: the tokens that may come next and where they lead, for a batch, in numpy or in a jitted loop.

The functions take the namespace from the arrays they are given, so that tests and checks on the host run the same code.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

LONGEST = 3  # digits that may still follow the first one of 1000
FAR = 9999  # tokens; more than any budget
DEAD = 0  # the node behind whatever breaks the grammar
END = 7  # the class of characters behind a token's last one


class Numbers(struct.PyTreeNode):
    """The automaton over characters: successors, and for nodes inside a number its bounds."""

    step: Int[Array, "n 8"]  # successor for each class of characters
    inside: Bool[Array, "n"]
    low: Int[Array, "n"]
    above: Int[Array, "n"]  # register that the number must exceed; 0 = none, then `low` holds
    high: Int[Array, "n"]
    upto: Int[Array, "n"]  # register that the number must not exceed; 0 = none, then `high` holds
    keep: Int[Array, "n"]  # register that the number is kept in; 0 = none


class Place(struct.PyTreeNode):
    """Where each row is: node, number read so far, the two registers, vokens so far. Each (B,) or (B, M)."""

    node: Array
    value: Array
    a: Array
    b: Array
    count: Array


class Constraint(struct.PyTreeNode):
    """The tables of one vocabulary and one choice of segments; n nodes, v rows, m tokens that touch numbers."""

    numbers: Numbers
    following: Int[Array, "n v"]  # node behind each token that touches no number; 0 = not allowed
    cost: Int[Array, "n"]  # tokens that surely suffice from a node to eos
    left: Int[Array, "n v"]  # cost behind each token of `following`
    row_of: Int[Array, "v"]  # row of a token in `classes`; the last one for all that touch no number
    classes: Int[Array, "m w"]  # characters of the tokens that touch numbers; the last row may never follow
    digits: Int[Array, "m w"]
    enter: Int[Array, ""]  # first node
    more: Int[Array, ""]  # behind a voken; `last` behind the last one; -1 without vokens
    last: Int[Array, ""]
    vokens_per_image: Int[Array, ""]

    def start(self, rows: int) -> Place:
        """The place before the first token."""
        xp = _namespace(self.following)
        zero = xp.zeros(rows, xp.int32)
        return Place(node=zero + self.enter, value=zero, a=zero, b=zero, count=zero)

    def restrict(self, place: Place, logits: Float[Array, "b v"], positions_left) -> tuple[Float[Array, "b v"], Place]:
        """The logits with -inf for every token that breaks the grammar or cannot end in time.

        Args:
          place: of each row.
          logits: of the next token.
          positions_left: tokens that may still be written, this one and eos included.

        Returns:
          The logits and where the tokens that touch numbers lead, for `advance`. A row that nothing can follow (a
          forced prefix broke the grammar) keeps its logits.
        """
        allowed, reached = self.allowed(place, positions_left)
        xp = _namespace(allowed)
        allowed |= ~allowed.any(-1, keepdims=True)
        return xp.where(allowed, logits, -xp.inf), reached

    def allowed(self, place: Place, positions_left) -> tuple[Bool[Array, "b v"], Place]:
        """Which tokens may come next, and where those that touch numbers lead."""
        reached = read(self.numbers, self.classes, self.digits, place)
        in_time = cost_of(self.numbers, reached, self.cost) < positions_left
        return in_time[:, self.row_of] | (self.left[place.node] < positions_left), reached

    def advance(self, place: Place, reached: Place, token: Int[Array, "b"]) -> Place:
        """The place behind one chosen token a row."""
        row, rows = self.row_of[token], _namespace(self.following).arange(token.shape[0])
        return self._arrive(place, token, jax.tree.map(lambda field: field[rows, row], reached))

    def follow(self, ids) -> tuple[Place, int | None]:
        """(place behind the ids, position of the first one that breaks the grammar or None), on the host."""
        place = self.start(1)
        for position, token in enumerate(ids):
            row = self.row_of[[token]]
            reached = read(self.numbers, self.classes[row], self.digits[row], place)
            behind = self._arrive(place, np.asarray([token]), jax.tree.map(lambda field: field[:, 0], reached))
            if behind.node[0] == DEAD:
                return place, position
            place = behind
        return place, None

    def _arrive(self, place, token, reached):
        # `reached` is where the token leads if it touches a number.
        xp = _namespace(self.following)
        touches = self.row_of[token] < len(self.classes) - 1
        node = xp.where(touches, reached.node, self.following[place.node, token].astype(xp.int32))
        count = place.count + (node == self.more)
        return Place(
            node=xp.where((node == self.more) & (count >= self.vokens_per_image), self.last, node),
            value=xp.where(touches, reached.value, 0),
            a=xp.where(touches, reached.a, place.a),
            b=xp.where(touches, reached.b, place.b),
            count=count,
        )

    def tokens_to_end(self, place: Place) -> Int[Array, "b"]:
        """How many more tokens surely suffice; exact or a little too high."""
        xp = _namespace(self.following)
        vokens = xp.where(place.node == self.more, 2 * (self.vokens_per_image - place.count) + 1, 0)
        vokens = xp.where(place.node == self.last, 1, vokens)
        others = xp.maximum(cost_of(self.numbers, place, self.cost) - 2 * place.count, 0)
        return xp.where(vokens > 0, vokens, others)


# ----------------------------------------------------------------------------------------- characters
def read(numbers: Numbers, classes: Int[Array, "m w"], digits: Int[Array, "m w"], place: Place) -> Place:
    """Where each of m tokens, given by their characters, leads from each row's place; fields (B, m)."""
    xp = _namespace(classes)
    shape = place.node.shape[0], len(classes)
    at = jax.tree.map(lambda field: xp.broadcast_to(field[:, None], shape), place)
    for column in range(classes.shape[1]):
        kind, digit = (xp.broadcast_to(table[None, :, column], shape) for table in (classes, digits))
        at = _read_character(numbers, at, kind, digit, xp)
    return at


def _read_character(numbers, at, kind, digit, xp):
    behind = numbers.step[at.node, kind]
    was, now = numbers.inside[at.node], numbers.inside[behind]
    grown = xp.where(was, at.value * 10 + digit, digit)
    low, high = _bounds(numbers, xp.where(now, behind, at.node), at, xp)
    # A number goes on only if some number within the bounds begins so ("0" begins no other), and ends only within.
    goes_on = (_digits_missing(grown, low, high, xp) < FAR) & ~(was & (at.value == 0))
    ends = (at.value >= low) & (at.value <= high)
    alive = xp.where(now, goes_on, ends | ~was)
    kept = xp.where(was & ~now, numbers.keep[at.node], 0)
    behind = xp.where(alive, behind, DEAD)
    still = kind == END
    return Place(
        node=xp.where(still, at.node, behind),
        value=xp.where(still, at.value, xp.where(now & alive, grown, 0)),
        a=xp.where(kept == 1, at.value, at.a),
        b=xp.where(kept == 2, at.value, at.b),
        count=at.count,
    )


def _bounds(numbers, node, at, xp):
    above, upto = numbers.above[node], numbers.upto[node]
    low = xp.where(above == 1, at.a + 1, xp.where(above == 2, at.b + 1, numbers.low[node]))
    return low, xp.where(upto == 1, at.a, numbers.high[node])


def _digits_missing(value, low, high, xp):
    """Fewest digits that bring the value between the bounds; FAR if none do."""
    missing = xp.where((value >= low) & (value <= high), 0, FAR)
    for more in range(1, LONGEST + 1):
        first = value * 10**more
        hits = (value > 0) & (first <= high) & (first + 10**more > low)
        missing = xp.where(hits & (missing == FAR), more, missing)
    return missing


def cost_of(numbers: Numbers, place: Place, cost: Int[Array, "n"]) -> Array:
    """Tokens that surely suffice from a place to eos: its node's, and one a digit that the number still needs."""
    xp = _namespace(cost)
    missing = _digits_missing(place.value, *_bounds(numbers, place.node, place, xp), xp)
    return cost[place.node] + xp.where(numbers.inside[place.node], missing, 0)


def _namespace(array):
    return jnp if isinstance(array, jax.Array) else np
