"""Visual questions: what captioner and grounder ask a vision-language model, and the protocol of such a model."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.vlm.answers import Answer
from kaleido_jax.array_types import SquareImage
from kaleido_jax.data.sources.base import Example
from kaleido_jax.latents.types import Latents

RETRY_TEMPERATURE = 0.7  # the first answer is greedy; after an unusable one, greedy would give the same again
LOG_EVERY_SEC = 60.0
MAX_MESSAGE = 200


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt about one image."""

    id: str  # of the example; seeds what is random
    image: SquareImage  # the square crop
    image_size: int  # px, side of the picture shown to the model
    prompt: str

    def picture(self) -> Image.Image:
        """The crop at the size shown; made on demand, since a batch of them is large."""
        picture = Image.fromarray(self.image)
        if picture.width == self.image_size:
            return picture
        return picture.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """Why a question has no answer after all attempts; one line."""

    reason: str
    again: bool = False  # a server alone is to blame, and may answer later


@runtime_checkable
class AnswerReader(Protocol):
    """Reads an answer as latents."""

    def __call__(self, answer: Answer) -> Latents:
        """The latents in the answer.

        Raises:
          UnusableAnswer: there are none; the model will be asked again.
        """
        ...


@runtime_checkable
class VisionModel(Protocol):
    """A model that answers questions about images: Endpoint or LocalModel."""

    metadata: Mapping[str, str]  # provenance: "model", and "version" if it is known
    own_prompts: Mapping[str, str]  # segment -> prompt, for a model that follows only its training prompts

    def ask(self, questions: Sequence[Question], read: AnswerReader) -> list[Latents | Unanswered]:
        """The result of `read` for each question, in order, or the failure; asks again after unusable answers.

        Raises:
          UserError: no question can be answered.
        """
        ...


def ask_about(
    model: VisionModel,
    segment: str,
    examples: Sequence[Example],
    prompts: Sequence[str],
    *,
    image_size: int,
    read: AnswerReader,
) -> list[Latents | Failure]:
    """One answer per example; an image that cannot be shown to a model is a failure of its own.

    Raises:
      UserError: no question can be answered.
    """
    results: list[Latents | Failure | None] = [_bad_image(segment, example.image) for example in examples]
    asked = [index for index, failure in enumerate(results) if failure is None]
    questions = [
        Question(id=examples[i].id, image=examples[i].image, image_size=image_size, prompt=prompts[i]) for i in asked
    ]
    for index, answer in zip(asked, model.ask(questions, read), strict=True):
        if isinstance(answer, Unanswered):
            answer = Failure(segment=segment, reason=answer.reason, again=answer.again)
        results[index] = answer
    return results


def _bad_image(segment: str, image: object) -> Failure | None:
    shape, dtype = np.shape(image), getattr(image, "dtype", type(image).__name__)
    if dtype == np.uint8 and len(shape) == 3 and shape[0] == shape[1] > 0 and shape[2] == 3:
        return None
    return Failure(segment=segment, reason=f"image of shape {shape} and type {dtype}, wanted a square RGB crop, uint8")


class Pace:
    """Limits log lines to one per minute: a call takes seconds, a job days."""

    def __init__(self) -> None:
        self._next_sec = -np.inf  # monotonic

    def due(self) -> bool:
        """True at the first call and then once a minute."""
        now = time.monotonic()
        if now < self._next_sec:
            return False
        self._next_sec = now + LOG_EVERY_SEC
        return True


def one_line(text: object) -> str:
    """A message as one line of at most MAX_MESSAGE characters."""
    return " ".join(str(text)[: 4 * MAX_MESSAGE].split())[:MAX_MESSAGE]


def seed_of(id: str, number: int) -> int:
    """0..2**31-1 from the example's id and a number: the same on every machine and in every batch."""
    return int.from_bytes(hashlib.sha256(f"{id}/{number}".encode("utf-8", "surrogatepass")).digest()[:4]) >> 1
