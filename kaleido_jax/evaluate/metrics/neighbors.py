"""Exact nearest neighbors and balls around points, block by block in bounded memory, split over the devices.

The blocks of squared distances are matrix products in float32, |a|^2 + |b|^2 - 2 ab of centered points, which alone
would be too coarse: of points far from zero or close to each other few digits remain. So each one comes with a bound of
its error, and what the bound does not decide is computed again as sum((a - b)^2) in float64. The results are those of
float64, whatever the size of the blocks, their order, the order of the points and the number of devices.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, Int, UInt8

from kaleido_jax.errors import user_error
from kaleido_jax.runtime.progress import progress

BLOCK = 1024  # points on each side of a block of distances, at most
_GROUP = 8  # points of a block with one minimum; the nearest are looked for in the groups with the smallest
_SPARE = 5  # candidates beyond k; more than these within the error bound cost a row in float64
_EXACT_BYTES = 2**26  # of differences in float64 at once
_UNIT = 2.0**-24  # rounding of float32

Rows = Float32[np.ndarray, "_ _"]  # features of a set, one row for each image
Squared = Float64[np.ndarray, "_"]  # squared distances


@dataclass(frozen=True, kw_only=True)
class Points:
    """A set of points without repetitions."""

    rows: Rows
    counts: Int[np.ndarray, "n"]  # how often each is in the set

    @property
    def total(self) -> int:
        """Points with repetitions."""
        return int(self.counts.sum())


@dataclass(frozen=True, kw_only=True)
class Inside:
    """Which points of two sets, a and b, lie in which balls; a ball includes its surface, except for `open_pairs`."""

    b_in_a: Bool[np.ndarray, "b"]  # points of b in some ball around a point of a
    a_in_b: Bool[np.ndarray, "a"]
    a_reached: Bool[np.ndarray, "a"]  # points of a whose own ball holds some point of b
    open_pairs: int  # (ball around a, point of b inside it), with repetitions


def distinct(rows: Rows, what: str) -> Points:
    """The points of a set, equal ones counted.

    Equal images are the rule where a model has collapsed; as many points at a distance of zero would all have to be
    told apart.

    Raises:
      UserError: no points, or some are not finite.
    """
    if not len(rows) or not all(np.isfinite(part).all() for part in np.array_split(rows, -(-len(rows) // BLOCK))):
        found = f"{what}: {len(rows)} features" + (", some of them not finite" if len(rows) else "")
        raise user_error(found, "finite features of some images", "check the images and the weights of the extractor")
    keys = np.array([hash((row + 0).tobytes()) for row in rows])  # + 0 makes -0 the same as 0
    _, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    again = np.nonzero(first[inverse] != np.arange(len(rows)))[0]
    if not len(again) or not np.array_equal(rows[again], rows[first[inverse[again]]]):  # the same key by chance
        return Points(rows=rows, counts=np.ones(len(rows), np.int64))
    order = np.argsort(first)
    return Points(rows=rows[first[order]], counts=counts[order])


# ------------------------------------------------------------------------------------------------- radii
def squared_radii(blocks: "Blocks", k: int) -> Squared:
    """The squared distance of each point to its k-th nearest neighbor in the set, itself left out.

    A point that is in the set n times has n - 1 neighbors at a distance of zero.

    Raises:
      UserError: not more than k points.
    """
    if blocks.points.total <= k:
        raise user_error(f"{blocks.points.total} images for {k} neighbors", f"more than {k}", "measure more images")
    keep, most = k + _SPARE, blocks.size // _GROUP
    if not 0 < k <= most - _SPARE:
        raise user_error(f"{k} neighbors of {blocks.points.total} images", f"1 to {most - _SPARE}", "take fewer")
    nearest = _Nearest(len(blocks.points.rows), keep)
    pairs = [(i, j) for i in range(blocks.number) for j in range(i, blocks.number)]
    compute = functools.partial(_nearest_of_block, keep=keep)
    for (i, j), found in blocks.run(compute, pairs, blocks, "neighbors"):
        of_rows, of_columns = ((np.asarray(values), np.asarray(index)) for values, index in found)
        nearest.add(blocks.rows_of(i), *of_rows, j * blocks.size)
        if i != j:
            nearest.add(blocks.rows_of(j), *of_columns, i * blocks.size)
    return _certain_radii(blocks.points, nearest, blocks.errors, k)


class _Nearest:
    """For each point the other points with the smallest lower bounds of the squared distance, so far."""

    def __init__(self, number: int, keep: int) -> None:
        self.lower = np.full((number, keep), np.inf, np.float32)
        self.index = np.zeros((number, keep), np.int32)

    def add(self, rows: slice, lower: np.ndarray, index: np.ndarray, offset: int) -> None:
        """More of them for some rows, which may stand in the first places of the arrays."""
        size, keep = self.lower[rows].shape
        lower = np.concatenate([self.lower[rows], lower[:size]], axis=1)
        index = np.concatenate([self.index[rows], index[:size] + offset], axis=1)
        best = np.argpartition(lower, keep - 1, axis=1)[:, :keep]
        self.lower[rows] = np.take_along_axis(lower, best, 1)
        self.index[rows] = np.take_along_axis(index, best, 1)


def _certain_radii(points: Points, nearest: _Nearest, errors: Float64[np.ndarray, "n"], k: int) -> Squared:
    lower, counts, own = nearest.lower.astype(np.float64), points.counts[nearest.index], points.counts
    upper = lower + 2 * (errors[:, None] + errors[nearest.index])
    least, most = _kth(lower, counts, own, k), _kth(upper, counts, own, k)
    # Only what may be the k-th is needed exactly; what is surely nearer keeps some value that is.
    distances = np.where(upper < least[:, None], lower, np.inf)
    row, place = np.nonzero((upper >= least[:, None]) & (lower <= most[:, None]) & np.isfinite(lower))
    distances[row, place] = exact_squared(points.rows, row, points.rows, nearest.index[row, place])
    radii = _kth(distances, counts, own, k)
    # Everything that was not kept is at least as far as the farthest lower bound that was.
    for i in np.nonzero(radii > lower.max(axis=1))[0]:
        others = np.delete(np.arange(len(points.rows)), i)
        exact = exact_squared(points.rows, np.full(len(others), i), points.rows, others)
        radii[i] = _kth(exact[None], own[others][None], own[i : i + 1], k)[0]
    return radii


def _kth(
    distances: Float64[np.ndarray, "n m"], counts: Int[np.ndarray, "n m"], own: Int[np.ndarray, "n"], k: int
) -> Squared:
    """The k-th smallest of distances that occur `counts` times, after own - 1 zeros."""
    order = np.argsort(distances, axis=1)
    reached = np.cumsum(np.take_along_axis(counts, order, 1), axis=1) + (own - 1)[:, None] >= k
    kth = np.take_along_axis(np.take_along_axis(distances, order, 1), reached.argmax(axis=1)[:, None], 1)[:, 0]
    return np.where(own > k, 0.0, np.where(reached.any(axis=1), kth, np.inf))


# ------------------------------------------------------------------------------------------------- balls
def inside(blocks_a: "Blocks", blocks_b: "Blocks", radii_a: Squared, radii_b: Squared) -> Inside:
    """Which points of a set are inside which balls around the points of another; radii are squared."""
    a, b = blocks_a.points, blocks_b.points
    blocks_a, blocks_b = blocks_a.with_balls(radii_a), blocks_b.with_balls(radii_b)
    b_in_a, a_in_b, a_reached = (np.zeros(len(x.rows), bool) for x in (b, a, a))
    open_pairs = 0
    pairs = [(i, j) for i in range(blocks_a.number) for j in range(blocks_b.number)]
    for (i, j), found in blocks_a.run(_inside_of_block, pairs, blocks_b, "balls"):
        in_a, in_b, reached, unsure = (np.asarray(x) for x in found)
        rows, columns = blocks_a.rows_of(i), blocks_b.rows_of(j)
        weights = in_a[: columns.stop - columns.start].astype(np.float64)
        b_in_a[columns] |= weights > 0
        open_pairs += int(weights @ b.counts[columns])
        a_in_b[rows] |= in_b[: rows.stop - rows.start] > 0
        a_reached[rows] |= reached[: rows.stop - rows.start] > 0
        row, column = np.divmod(_nonzero(unsure), blocks_b.size)
        code, row, column = unsure[row, column], row + rows.start, column + columns.start
        distances = exact_squared(a.rows, row, b.rows, column)
        near_a = (distances <= radii_a[row]) & (code & 1 > 0)
        near_b = (distances <= radii_b[column]) & (code & 2 > 0)
        b_in_a[column[near_a]] = a_reached[row[near_a]] = a_in_b[row[near_b]] = True
        strictly = near_a & (distances < radii_a[row])
        open_pairs += int(a.counts[row[strictly]] @ b.counts[column[strictly]])
    return Inside(b_in_a=b_in_a, a_in_b=a_in_b, a_reached=a_reached, open_pairs=open_pairs)


def exact_squared(a: Rows, rows: Int[np.ndarray, "m"], b: Rows, columns: Int[np.ndarray, "m"]) -> Squared:
    """sum((a - b)^2) in float64 of pairs of points: the same bits for (a, b) as for (b, a), in any company."""
    out = np.empty(len(rows))
    step = max(1, _EXACT_BYTES // (8 * a.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        difference = a[rows[part]].astype(np.float64) - b[columns[part]]
        out[part] = np.einsum("nd,nd->n", difference, difference)
    return out


def _nonzero(codes: UInt8[np.ndarray, "s t"]) -> Int[np.ndarray, "m"]:
    """Flat places of those that are not zero; eight at once, since nearly all are."""
    words = np.flatnonzero(codes.reshape(-1).view(np.uint64))
    places = (8 * words[:, None] + np.arange(8)).ravel()
    return places[codes.reshape(-1)[places] > 0]


# ------------------------------------------------------------------------------------------------- blocks
class Blocks:
    """A set of points in blocks of one size, on the devices of this process in turn."""

    def __init__(self, points: Points, center: Float32[np.ndarray, "d"]) -> None:
        """`center` is any point near the middle of the sets that are compared; results do not depend on it."""
        self.points, (total, width) = points, points.rows.shape
        self.number = -(-total // BLOCK)
        # As little filling as possible; a multiple of the groups, of which the nearest need one each.
        self.size = max(16 * _GROUP, _GROUP * -(-total // (_GROUP * self.number)))
        self.devices = jax.local_devices()
        self.errors = np.empty(total)
        self._parts = []
        for i in range(self.number):
            place = self.rows_of(i)
            x = np.zeros((self.size, width), np.float32)
            np.subtract(points.rows[place], center, out=x[: place.stop - place.start])
            square = np.full(self.size, np.inf, np.float32)  # of a filling point, which is so infinitely far
            square[: place.stop - place.start] = np.einsum("nd,nd->n", x, x)[: place.stop - place.start]
            if not np.isfinite(square[: place.stop - place.start]).all():
                raise user_error("features beyond 1e19", "features of order one", "check the weights of the extractor")
            # A sum of d products is off by at most d units of |a||b| <= (|a|^2 + |b|^2) / 2, in 2ab and in |a|^2
            # alike; centering, the sum of the three and the comparison add a few.
            error = np.where(np.isfinite(square), 2 * _UNIT * (width + 16) * square, 0)
            self.errors[place] = error[: place.stop - place.start]
            part = {"x": x, "square": square, "error": error.astype(np.float32)}
            self._parts.append(jax.device_put(part, self.devices[i % len(self.devices)]))

    def with_balls(self, radii: Squared) -> "Blocks":
        """The same with balls around the points; radii are squared."""
        found = copy.copy(self)
        found._parts = []
        for i, part in enumerate(self._parts):
            place = self.rows_of(i)
            used, nearest = place.stop - place.start, radii[place].astype(np.float32)
            below, above = (np.full(self.size, -1, np.float32) for _ in range(2))  # no ball around filling points
            below[:used], above[:used] = (np.nextafter(nearest, np.float32(end)) for end in (-np.inf, np.inf))
            count = np.zeros(self.size, np.float32)
            count[:used] = self.points.counts[place]
            found._parts.append(
                part | jax.device_put({"below": below, "above": above, "count": count}, part["x"].device)
            )
        return found

    def rows_of(self, i: int) -> slice:
        """The places of a block's points in the set."""
        return slice(i * self.size, min((i + 1) * self.size, len(self.points.rows)))

    def run(
        self, function: Callable[..., Any], pairs: list[tuple[int, int]], others: "Blocks", title: str
    ) -> Iterator[tuple[tuple[int, int], Any]]:
        """function(block i of this set, block j of the others, whether they are one) for pairs (i, j)."""
        wave = 2 * len(self.devices)  # while the host reads the first results, the devices compute the others
        with progress(title, len(pairs), "block") as advance:
            for start in range(0, len(pairs), wave):
                started = []
                for n, (i, j) in enumerate(pairs[start : start + wave]):
                    device = self.devices[n % len(self.devices)]
                    a, b = jax.device_put((self._parts[i], others._parts[j]), device)
                    started.append(((i, j), function(a, b, same=self is others and i == j)))
                yield from started
                advance(len(started))


def _lower_upper(a: dict[str, Array], b: dict[str, Array]) -> tuple[Float[Array, "s t"], Float[Array, "s t"]]:
    """Bounds of the squared distances."""
    product = 2 * jnp.einsum("sd,td->st", a["x"], b["x"], precision="highest")
    lower = (a["square"] - a["error"])[:, None] + (b["square"] - b["error"])[None] - product
    upper = (a["square"] + a["error"])[:, None] + (b["square"] + b["error"])[None] - product
    return lower, upper


@functools.partial(jax.jit, static_argnames=("same", "keep"))
def _nearest_of_block(
    a: dict[str, Array], b: dict[str, Array], *, same: bool, keep: int
) -> tuple[tuple[Array, Array], ...]:
    """The smallest lower bounds of each row and of each column, and where they are."""
    lower, _ = _lower_upper(a, b)
    if same:
        rows = _smallest_of_rows(jnp.where(jnp.eye(len(lower), dtype=bool), jnp.inf, lower), keep)
        return rows, rows
    return _smallest_of_rows(lower, keep), _smallest_of_columns(lower, keep)


def _smallest_of_rows(x: Float[Array, "s t"], keep: int) -> tuple[Float[Array, "s k"], Int[Array, "s k"]]:
    """They are in the `keep` groups with the smallest minima; a group has every (t / _GROUP)-th number."""
    grouped = x.reshape(x.shape[0], _GROUP, -1)
    _, groups = jax.lax.top_k(-_minima(grouped, 1)[:, 0], keep)
    members = jnp.take_along_axis(grouped, groups[:, None], axis=2)
    return _smallest_members(members.reshape(x.shape[0], -1), groups, grouped.shape[2], keep)


def _smallest_of_columns(x: Float[Array, "s t"], keep: int) -> tuple[Float[Array, "t k"], Int[Array, "t k"]]:
    """As of the rows of x.T, which would have to be written first."""
    grouped = x.reshape(_GROUP, -1, x.shape[1])
    _, groups = jax.lax.top_k(-_minima(grouped, 0)[0].T, keep)
    members = jnp.take_along_axis(grouped, groups.T[None], axis=1)
    return _smallest_members(members.transpose(2, 0, 1).reshape(x.shape[1], -1), groups, grouped.shape[1], keep)


def _minima(grouped: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Minima over an axis, by halves: XLA's reductions are slow on CPU."""
    while grouped.shape[axis] > 1:
        grouped = jnp.minimum(*jnp.split(grouped, 2, axis))
    return grouped


def _smallest_members(
    members: Float[Array, "n m"], groups: Int[Array, "n k"], num_groups: int, keep: int
) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    values, places = jax.lax.top_k(-members, keep)
    return -values, places // keep * num_groups + jnp.take_along_axis(groups, places % keep, axis=1)


@functools.partial(jax.jit, static_argnames="same")
def _inside_of_block(a: dict[str, Array], b: dict[str, Array], *, same: bool) -> tuple[Array, ...]:
    """For each column: balls around rows that surely hold it, with repetitions. For each row: balls around columns that
    do; columns in its own ball. And where the bounds do not decide: 1 for the ball of the row, 2 for the column's.
    """
    del same
    lower, upper = _lower_upper(a, b)
    in_a, in_b = upper < a["below"][:, None], upper < b["below"][None]
    unsure_a, unsure_b = ~in_a & (lower <= a["above"][:, None]), ~in_b & (lower <= b["above"][None])
    ones = jnp.ones(len(b["count"]))
    in_a, in_b = in_a.astype(jnp.float32), in_b.astype(jnp.float32)
    unsure = unsure_a.astype(jnp.uint8) + 2 * unsure_b.astype(jnp.uint8)
    # At the default precision a TPU rounds counts above 256, and a GPU may, by TF32, those above 2048.
    total = functools.partial(jnp.matmul, precision="highest")
    return total(a["count"], in_a), total(in_b, ones), total(in_a, ones), unsure
