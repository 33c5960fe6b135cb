"""The bbox segment through a vision-language model: phrases with boxes on the crop (paper, appendix A)."""

from collections.abc import Sequence

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.vlm import prompts
from kaleido_jax.annotate.vlm.answers import Answer, UnusableAnswer, without_thoughts
from kaleido_jax.annotate.vlm.endpoint import Endpoint
from kaleido_jax.annotate.vlm.local_model import LocalModel
from kaleido_jax.annotate.vlm.model import VisionModel, ask_about, one_line
from kaleido_jax.annotate.vlm.readers import read
from kaleido_jax.config.schema import Annotate
from kaleido_jax.data.sources.base import Example
from kaleido_jax.latents.types import Latents

VERSION = "grounder/1"  # stored with every record; raise it when a rule of reading answers changes
MAX_TOKENS = 1024  # of an answer; a JSON entry is about 40
_NOTHING = ("[]", "```json\n[]\n```")  # what a model writes that found nothing


class Grounder:
    """Boxes from a vision-language model; an Annotator.

    The picture shown is the square crop, so the answer's coordinates are the crop's, whatever its size.
    """

    segments = ("bbox",)
    needs = ()

    def __init__(
        self,
        model: VisionModel,
        *,
        instruction: str = "json",
        coordinates: str = "thousandths",
        image_size: int = 448,
        max_boxes: int = 10,
    ):
        """How to ask and how to read.

        Args:
          model: who is asked.
          instruction: a key of prompts.BBOX.
          coordinates: "thousandths" of the picture or its "pixels"; models with tokens for places do without.
          image_size: px, side of the picture shown. For pixels, one that the model's processor leaves as it is.
          max_boxes: so many are asked for and kept, the first named first.
        """
        self.model, self._image_size, self._max_boxes = model, image_size, max_boxes
        self._seen_px = (image_size, image_size) if coordinates == "pixels" else None
        self._prompt = model.own_prompts.get("bbox", prompts.BBOX[instruction])
        self.metadata = {
            **model.metadata,
            "rules": VERSION,
            "prompt": prompts.prompt_hash(self._prompt),
            "picture": f"{image_size} px",
            "boxes": f"{max_boxes}, {coordinates}",
        }

    def __call__(self, examples: Sequence[Example], so_far: Sequence[Latents]) -> list[Latents | Failure]:
        """See Annotator. What the image is told to show is its caption, not the text made before.

        Raises:
          UserError: no image can be grounded at all (no server, no weights).
        """
        filled = [prompts.fill(self._prompt, example.caption, max_boxes=self._max_boxes) for example in examples]
        return ask_about(self.model, "bbox", examples, filled, image_size=self._image_size, read=self._read)

    def _read(self, answer: Answer) -> Latents:
        # An answer cut off at the token limit is no loss: its last box is left out.
        text = without_thoughts(answer.text)
        if not text:
            raise UnusableAnswer("empty answer")
        reading = read(text, seen_px=self._seen_px)
        if not reading.objects and text not in _NOTHING:
            raise UnusableAnswer(one_line(f"no box in {text[:80]!r}; {', '.join(reading.remarks)}".rstrip("; ")))
        distinct = dict.fromkeys(reading.boxes())  # a model caught in a loop says the same again and again
        return Latents(bbox=tuple(distinct)[: self._max_boxes])


def open_grounder(config: Annotate) -> Grounder:
    """The grounder of a config whose annotate.bbox.kind is "openai" or "transformers".

    Raises:
      UserError: no server or key is named, a package or the folder of weights is missing.
    """
    bbox = config.bbox
    if bbox.kind == "openai":
        model = Endpoint(config.endpoint, max_tokens=MAX_TOKENS, model=bbox.model)
    else:
        model = LocalModel(bbox.model, max_tokens=MAX_TOKENS, batch_size=bbox.batch_size)
    return Grounder(
        model,
        instruction=bbox.instruction,
        coordinates=bbox.coordinates,
        image_size=bbox.image_size,
        max_boxes=bbox.max_boxes,
    )
