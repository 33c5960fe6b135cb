"""Grammar of the latents: z <-> one line, "text | bbox | blob | voken"; each segment writes and reads its own part."""

from collections.abc import Sequence

from kaleido_jax.latents import segments as registry
from kaleido_jax.latents.types import Latents, check_segments, select, validate
from kaleido_jax.latents.validity import LatentsError, latents_error

SEPARATOR = "|"


def serialize(z: Latents, segments: Sequence[str]) -> str:
    """The segments of z in one line; parse() returns exactly these.

    Raises:
      LatentsError: z is invalid or lacks a segment.
    """
    z = validate(select(z, segments))
    return f" {SEPARATOR} ".join(registry.get(s).write(getattr(z, s)) for s in segments)


def parse(string: str, segments: Sequence[str]) -> Latents:
    """The latents in a line that holds exactly these segments.

    Raises:
      LatentsError: what is wrong with the line.
    """
    segments = check_segments(segments)
    parts = string.split(SEPARATOR) if segments else []
    if len(parts) != len(segments):
        raise wrong_count(len(parts), segments)
    pairs = zip(segments, parts, strict=True)
    return validate(Latents(**{s: registry.get(s).read(part.strip()) for s, part in pairs}))


def wrong_count(found: int, segments: Sequence[str]) -> LatentsError:
    """The error for a line or sequence with another number of segments."""
    return latents_error(
        f"{found} segments", f"{len(segments)} ({', '.join(segments)})", "check the ' | ' between them"
    )
