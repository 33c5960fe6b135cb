"""Registry of the segments that latents are made of, in their order inside z (paper, appendix A)."""

import contextlib
import difflib
from collections.abc import Iterator

from kaleido_jax.latents.segments import bbox, blob, text, voken
from kaleido_jax.latents.segments.base import Segment
from kaleido_jax.latents.validity import latents_error

# Names that mean something else where segments are named: in Latents, and in the lengths that records list.
_TAKEN = ("replace", "to_json", "from_json", "caption")
_SEGMENTS: dict[str, Segment] = {s.name: s for s in (text.SEGMENT, bbox.SEGMENT, blob.SEGMENT, voken.SEGMENT)}


def register(segment: Segment) -> None:
    """Adds a kind of latents behind those there are; every process that reads or writes such latents must do it.

    Raises:
      LatentsError: its name is taken or is no identifier in small letters.
    """
    if segment.name in (*_SEGMENTS, *_TAKEN):
        raise latents_error(f"a second segment {segment.name!r}", "a name that is not taken", "choose another")
    if not (segment.name.isidentifier() and segment.name.islower()):
        raise latents_error(f"segment name {segment.name!r}", "an identifier in small letters", "choose another")
    _SEGMENTS[segment.name] = segment


@contextlib.contextmanager
def registered(segment: Segment) -> Iterator[None]:
    """Registers a segment for the length of a with statement."""
    register(segment)
    try:
        yield
    finally:
        del _SEGMENTS[segment.name]


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
