"""Plan of a job: which examples are in which shard, given the shards that are finished.

A finished shard stays as it is, byte for byte, however many examples come: the others, in the source's order, fill
shards under the numbers that are free. So a stopped job goes on with the shards of an undisturbed one, and new photos
extend the records.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from kaleido_jax.annotate.job.journal import SUFFIX, open_journal, rehome
from kaleido_jax.annotate.job.shards import Job, Place, finished, notes_path, readable_id, version_of
from kaleido_jax.data.held_out import TEST, TRAIN, held_out
from kaleido_jax.data.sources.base import Source
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.progress import progress

log = logging.getLogger(__name__)

_THREADS = 16  # that ask for versions, which wait for the file system
_NAMED = 3  # images and shards that an error names


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The finished shards and those to make."""

    done: dict[Place, dict[str, Any]]  # content of the .json beside each, less failures that no longer are
    todo: dict[Place, Sequence[int]]  # indices of the examples of each
    num_done: int  # examples in finished shards


def make_plan(job: Job, source: Source, specification: str, *, shard_size: int, limit: int) -> Plan:
    """The plan of a job.

    Args:
      job: whose finished shards are looked for.
      source: its source.
      specification: its hash.
      shard_size: examples of a new shard.
      limit: examples in all, from the first; 0 = all. Those in finished shards stay, even if they are more.

    Raises:
      UserError: there is nothing to annotate, or images that have records are gone or have changed.
    """
    if len(source) < 1:
        raise user_error("a source without examples", "at least one", "correct config.data")
    covered, done, idle = _match(job, source, _finished_shards(job, specification))
    waiting = np.flatnonzero(~covered)
    if limit:
        waiting = waiting[: max(0, limit - int(covered.sum()))]
    todo, taken = {}, done.keys() - idle
    for split, indices in _by_split(job, source, waiting).items():
        numbers = (n for n in itertools.count() if Place(split, n) not in taken)
        for start in range(0, len(indices), shard_size):
            todo[Place(split, next(numbers))] = indices[start : start + shard_size]
    done = {place: notes for place, notes in done.items() if place not in todo}
    return Plan(done=done, todo=todo, num_done=int(covered.sum()))


def num_finished(job: Job) -> int:
    """Images that a stopped job has finished in shards that are not, with whatever settings."""
    number = 0
    for path in _journals(job):
        with open_journal(path, "") as journal:
            number += journal.num_other
    return number


def keep_finished(job: Job, source: Source, specification: str, plan: Plan) -> None:
    """Gives what a stopped job has finished to the shards in which these images are now, and tells what is not used.

    Photos that came or went since then have moved the others to other shards.
    """
    own = {job.path(place).with_suffix(SUFFIX): place for place in plan.todo}
    finished_ones = {job.path(place).with_suffix(SUFFIX) for place in plan.done}
    paths = [path for path in _journals(job) if path not in finished_ones]

    def ids(path: Path) -> set[str]:
        return {readable_id(source, job.kind.name, int(i)) for i in plan.todo[own[path]]} if path in own else set()

    moved, other = False, 0
    for path in paths:
        with open_journal(path, specification) as journal:
            other += journal.num_other
            moved = moved or not {id for id, _ in journal} <= ids(path)
    if other:
        log.info("%d images that were finished with other settings are not used, and are asked for again", other)
    if not moved:  # the usual case, in which the ids of all images, maybe millions, are not needed
        return
    homes = {id: path for path in own for id in ids(path)}
    copied, homeless = rehome(paths, homes, specification)
    if copied:
        log.info("images have come or gone: %d finished ones are in another shard now, and are kept", copied)
    if homeless:
        log.info("%d finished images are no longer among those to annotate, and are not kept", homeless)
    for path in set(paths) - own.keys():
        path.unlink(missing_ok=True)


def _journals(job: Job) -> list[Path]:
    folders = [job.manifest_folder(split) / job.shards for split in job.splits]
    return sorted(path for folder in folders for path in folder.glob(f"*{SUFFIX}"))


def _finished_shards(job: Job, specification: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    for split in job.splits:
        for path in sorted((job.manifest_folder(split) / job.shards).glob("*-*.json")):
            number = path.stem.rpartition("-")[2]
            place = Place(split, int(number) if number.isdecimal() else 0)
            if path == notes_path(job, place) and (notes := finished(job, place, specification)):
                yield place, notes


def _match(
    job: Job, source: Source, shards: Iterator[tuple[Place, dict[str, Any]]]
) -> tuple[Bool[np.ndarray, " n"], dict[Place, dict[str, Any]], set[Place]]:
    """Which examples finished shards hold; the shards without the failures that are forgotten; those that hold nothing.

    Failures are forgotten if the image was mended or removed, and if only a server was to blame: it is asked again.

    Raises:
      UserError: images that have records are gone or have changed.
    """
    covered, done, idle = np.zeros(len(source), bool), {}, set()
    gone: dict[Place, list[str]] = {}
    changed: dict[Place, list[str]] = {}
    places: dict[str, int] = {}  # id -> index, made where it is needed

    def find(example: str) -> int:
        if not places:
            places.update((readable_id(source, job.kind.name, i), i) for i in range(len(source)))
        return places.get(example, -1)

    for place, notes in shards:
        members: dict[str, str] = notes.pop("members")
        without, again = set(notes["without_record"]), set(notes.get("again", ()))
        indices = _expected(job, source, notes["indices"], members)
        indices = [find(example) for example in members] if indices is None else indices
        here, forgotten = [i for i in indices if i >= 0], set()
        with ThreadPoolExecutor(_THREADS) as pool:
            versions = dict(zip(here, pool.map(lambda i: version_of(source, i), here), strict=True))
        for (example, version), index in zip(members.items(), indices, strict=True):
            if index >= 0 and versions[index] == version and example not in again:
                covered[index] = True
            elif example in without:
                forgotten.add(example)
            else:
                (gone if index < 0 else changed).setdefault(place, []).append(example)
        notes["failures"] = [f for f in notes["failures"] if f["id"] not in forgotten]
        for name in ("without_record", "again"):
            notes[name] = [example for example in notes.get(name, ()) if example not in forgotten]
        if forgotten == members.keys():
            idle.add(place)
        done[place] = notes
    if gone or changed:
        raise _other_images(job, gone, changed)
    return covered, done, idle


def _expected(job: Job, source: Source, runs: Sequence[Sequence[int]], members: Mapping[str, str]) -> list[int] | None:
    """The indices of the members if they are where they were when the shard was made."""
    indices = [i for first, end in runs for i in range(first, end)]
    if len(indices) != len(members) or max(indices) >= len(source):
        return None
    here = (readable_id(source, job.kind.name, i) for i in indices)
    return indices if all(a == b for a, b in zip(here, members, strict=True)) else None


def _other_images(job: Job, gone: dict[Place, list[str]], changed: dict[Place, list[str]]) -> UserError:
    found = []
    for where, what in ((gone, "no longer in the data"), (changed, "not what was annotated")):
        examples = [example for listed in where.values() for example in listed]
        if examples:
            named = ", ".join(examples[:_NAMED]) + (", ..." if len(examples) > _NAMED else "")
            count = f"{len(examples)} images with records are" if len(examples) > 1 else "1 image with a record is"
            found.append(f"{count} {what} ({named})")
    shards = sorted(gone.keys() | changed.keys())
    names = [f"{job.path(place).with_suffix('')}.*" for place in shards]
    do = f"delete {' and '.join(names)}" if len(names) <= _NAMED else f"delete {job.path(shards[0]).parent}"
    return user_error(
        "; ".join(found),
        "every image that has a record, unchanged",
        f"put them back, or {do}: the other images in there are then annotated again",
    )


def _by_split(job: Job, source: Source, indices: Int[np.ndarray, " n"]) -> dict[str, Int[np.ndarray, " m"]]:
    """The indices of each split of the records; an image that cannot be read is told of in `train`."""
    if not job.held_out_share:
        return {job.splits[0]: indices}
    apart = np.zeros(len(indices), bool)
    with progress("held-out share", len(indices), "img") as advance:
        for row, index in enumerate(indices.tolist()):
            apart[row] = held_out(source, index, job.held_out_share)
            advance(1)
    return {TRAIN: indices[~apart], TEST: indices[apart]}
