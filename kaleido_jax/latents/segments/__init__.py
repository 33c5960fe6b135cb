"""Registry of the segments that latents are made of, in their order inside z (paper, appendix A)."""

import contextlib
import difflib
from collections.abc import Iterator

from kaleido_jax.latents.segments import bbox, blob, text, voken
from kaleido_jax.latents.segments.base import Segment
from kaleido_jax.latents.validity import latents_error

_SEGMENTS: dict[str, Segment] = {s.name: s for s in (text.SEGMENT, bbox.SEGMENT, blob.SEGMENT, voken.SEGMENT)}
# The shipped ones, and names that mean something else in Latents or among the lengths that records list.
_TAKEN = (*_SEGMENTS, "replace", "to_json", "from_json", "caption")


def register(segment: Segment) -> None:
    """Adds a kind of latents behind those there are; every process that reads or writes such latents must do it.

    A config file is a good place, since every verb runs it. It may run twice, so that the later of one name counts.

    Raises:
      LatentsError: the name is taken or is no identifier in small letters.
    """
    if segment.name in _TAKEN:
        raise latents_error(f"a second segment {segment.name!r}", "a name that is not taken", "choose another")
    if not (segment.name.isidentifier() and segment.name.islower()):
        raise latents_error(f"segment name {segment.name!r}", "an identifier in small letters", "choose another")
    _SEGMENTS[segment.name] = segment


@contextlib.contextmanager
def registered(segment: Segment) -> Iterator[None]:
    """Registers a segment for the length of a with statement."""
    before = dict(_SEGMENTS)
    register(segment)
    try:
        yield
    finally:
        _SEGMENTS.clear()
        _SEGMENTS.update(before)


def names() -> tuple[str, ...]:
    """All segments, in order."""
    return tuple(_SEGMENTS)


def get(name: str) -> Segment:
    """The segment of that name.

    Raises:
      LatentsError: there is none.
    """
    if name not in _SEGMENTS:
        near = difflib.get_close_matches(name, _SEGMENTS, n=1)
        do = f"did you mean {near[0]!r}?" if near else "correct the name"
        raise latents_error(f"segment {name!r}", f"one of {', '.join(_SEGMENTS)}", do)
    return _SEGMENTS[name]
