"""Registry of segments, the kinds of latents, in their order inside z (paper, appendix A)."""

import contextlib
import difflib
from collections.abc import Iterator

from kaleido_jax.latents.segments import bbox, blob, text, voken
from kaleido_jax.latents.segments.base import Segment
from kaleido_jax.latents.validity import latents_error

_SEGMENTS: dict[str, Segment] = {s.name: s for s in (text.SEGMENT, bbox.SEGMENT, blob.SEGMENT, voken.SEGMENT)}
# The shipped ones, and names with another meaning in Latents or in the lengths that records list.
_TAKEN = (*_SEGMENTS, "replace", "to_json", "from_json", "caption")


def register(segment: Segment) -> None:
    """Adds a kind of latents after the registered ones; every process that reads or writes such latents must do so.

    A config file is a good place, since every verb runs it. It may run twice: a later segment of the same name replaces
    the earlier one.

    Raises:
      LatentsError: the name is taken or is not a lowercase identifier.
    """
    if segment.name in _TAKEN:
        raise latents_error(f"a second segment {segment.name!r}", "a name that is not taken", "choose another")
    if not (segment.name.isidentifier() and segment.name.islower()):
        raise latents_error(f"segment name {segment.name!r}", "a lowercase identifier", "choose another")
    _SEGMENTS[segment.name] = segment


@contextlib.contextmanager
def registered(segment: Segment) -> Iterator[None]:
    """Registers a segment for the duration of a with statement."""
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
      LatentsError: no segment has that name.
    """
    if name not in _SEGMENTS:
        near = difflib.get_close_matches(name, _SEGMENTS, n=1)
        do = f"did you mean {near[0]!r}?" if near else "correct the name"
        raise latents_error(f"segment {name!r}", f"one of {', '.join(_SEGMENTS)}", do)
    return _SEGMENTS[name]
