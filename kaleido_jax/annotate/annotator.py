"""Annotator, the protocol of a part of q(z | x, c): it fills segments of z for a batch of examples.

Annotators run one after another on the square crop of the photo; each gets the segments made so far. Those that look
for words or objects see the crop at `annotate.view_size`, those that describe pixels see it as the records store it.
None of them raises for one bad image: it returns a Failure, which the job records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from kaleido_jax.data.sources.base import Example
from kaleido_jax.latents.types import Latents

Sees = Literal["view", "record"]  # the crop at annotate.view_size, or as the records store it


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an image has no latents of a segment; one line."""

    segment: str
    reason: str
    again: bool = False  # the same question may have an answer later: an image without a record is asked about again


@runtime_checkable
class Annotator(Protocol):
    """A part of q(z | x, c)."""

    segments: tuple[str, ...]  # that it fills
    needs: tuple[str, ...]  # segments that must exist before it runs, e.g. bbox for blob
    sees: Sees  # which image it is given
    metadata: Mapping[str, str]  # provenance: "model", "version", "prompt" (a hash) ...; no date, nothing that varies

    def __call__(self, examples: Sequence[Example], so_far: Sequence[Latents]) -> list[Latents | Failure]:
        """One answer per example: latents with only this annotator's segments, or the reason for a failure.

        The answer for an example does not depend on which others are in the batch.

        Raises:
          UserError: no image can be annotated (no server, no weights); the job stops without losing a shard.
        """
        ...
