"""What captioner and grounder ask of a vision-language model, wherever it runs."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.vlm.answers import Answer
from kaleido_jax.data.sources.base import Example
from kaleido_jax.latents.types import Latents

Reader = Callable[[Answer], Latents]  # raises UnusableAnswer
LOG_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt about one image."""

    id: str  # of the example; seeds what is random
    image: UInt8[np.ndarray, "s s 3"]  # the square crop
    image_size: int  # px, side of the picture that the model is shown
    prompt: str

    def picture(self) -> Image.Image:
        """The crop at the size shown; made when it is needed, since a batch of them is large."""
        picture = Image.fromarray(self.image)
        if picture.width == self.image_size:
            return picture
        return picture.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """Why a question has no answer after all tries; one line."""

    reason: str


class VisionModel(Protocol):
    """A model that answers about images: Endpoint or LocalModel."""

    metadata: Mapping[str, str]  # provenance: "model", "version" where it is known
    own_prompts: Mapping[str, str]  # segment -> prompt, of a model that follows only those it was trained with

    def ask(self, questions: Sequence[Question], read: Reader) -> list[Latents | Unanswered]:
        """What `read` made of each answer, or why there is none, in order; unusable answers are asked for again.

        Raises:
          UserError: no question can be answered at all.
        """
        ...


def ask_about(
    model: VisionModel,
    segment: str,
    examples: Sequence[Example],
    prompts: Sequence[str],
    *,
    image_size: int,
    read: Reader,
) -> list[Latents | Failure]:
    """One answer an example; an image that no model could be shown is a failure by itself.

    Raises:
      UserError: no question can be answered at all.
    """
    results: list[Latents | Failure | None] = [_bad_image(segment, example.image) for example in examples]
    asked = [index for index, failure in enumerate(results) if failure is None]
    questions = [
        Question(id=examples[i].id, image=examples[i].image, image_size=image_size, prompt=prompts[i]) for i in asked
    ]
    for index, answer in zip(asked, model.ask(questions, read), strict=True):
        if isinstance(answer, Unanswered):
            answer = Failure(segment=segment, reason=answer.reason)
        results[index] = answer
    return results


def _bad_image(segment, image):
    shape, dtype = np.shape(image), getattr(image, "dtype", type(image).__name__)
    if dtype == np.uint8 and len(shape) == 3 and shape[0] == shape[1] > 0 and shape[2] == 3:
        return None
    return Failure(segment=segment, reason=f"image of shape {shape} and type {dtype}, wanted a square RGB crop, uint8")


class Pace:
    """Says when to log again: a call is a few seconds, a job days."""

    def __init__(self):
        self._next = -np.inf  # monotonic seconds

    def due(self) -> bool:
        """True at the first call and then once a minute."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + LOG_EVERY_S
        return True


def one_line(text: object, limit: int = 200) -> str:
    """A message as one line of at most `limit` characters."""
    return " ".join(str(text)[: 4 * limit].split())[:limit]


def seed_of(id: str, number: int) -> int:
    """0..2**31-1, a function of the example's id and a number: the same on every machine and in every batch."""
    return int.from_bytes(hashlib.sha256(f"{id}/{number}".encode()).digest()[:4]) >> 1
