"""What every annotator offers: it fills segments of z for a batch of examples.

Annotators run one after the other on the square crop that the model is trained on, each seeing what those before it
made. None of them raises for one bad image: it answers with a Failure, and the job records it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kaleido_jax.data.sources.base import Example
from kaleido_jax.latents.types import Latents


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an image has no latents of a segment; one line."""

    segment: str
    reason: str


@runtime_checkable
class Annotator(Protocol):
    """A part of q(z | x, c)."""

    segments: tuple[str, ...]  # what it fills
    needs: tuple[str, ...]  # segments that must be there before it runs, e.g. blob from bbox
    metadata: Mapping[str, str]  # provenance: "model", "version", "prompt" (a hash) ...; no date, nothing that varies

    def __call__(self, examples: Sequence[Example], so_far: Sequence[Latents]) -> list[Latents | Failure]:
        """One answer an example: latents with this annotator's segments alone, or why there are none.

        The answer for an example does not depend on which others are in the batch.

        Raises:
          UserError: nothing can be annotated at all (no server, no weights); the job stops without losing a shard.
        """
        ...
