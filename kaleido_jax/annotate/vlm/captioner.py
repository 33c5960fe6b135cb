"""Detailed captions from a vision-language model: the text segment, 50 to 80 words (paper, appendix A)."""

from collections.abc import Sequence

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.vlm import prompts
from kaleido_jax.annotate.vlm.answers import Answer, description_of
from kaleido_jax.annotate.vlm.model import VisionModel, ask_about
from kaleido_jax.annotate.vlm.open_model import open_model
from kaleido_jax.config.schema import Annotate
from kaleido_jax.data.sources.base import Example
from kaleido_jax.latents.types import Latents

VERSION = "captioner/4"  # stored with every record; raise it when a rule for reading answers changes
MAX_TOKENS = 256  # of an answer; 80 words are about 110, and much longer answers are rejected anyway


class Captioner:
    """Text from a vision-language model; an Annotator."""

    segments = ("text",)
    needs = ()
    sees = "view"

    def __init__(self, model: VisionModel, *, instruction: str = "caption", image_size: int = 448) -> None:
        """`instruction` is a key of prompts.TEXT; `image_size` px is the side of the picture shown."""
        self.model, self._image_size = model, image_size
        self._prompt = model.own_prompts.get("text", prompts.TEXT[instruction])
        self.metadata = {
            **model.metadata,
            "rules": VERSION,
            "prompt": prompts.prompt_hash(self._prompt),
            "picture": f"{image_size} px",
        }

    def __call__(self, examples: Sequence[Example], so_far: Sequence[Latents]) -> list[Latents | Failure]:
        """See Annotator.

        Raises:
          UserError: no image can be described (no server, no weights).
        """
        filled = [prompts.fill(self._prompt, example.caption) for example in examples]
        return ask_about(self.model, "text", examples, filled, image_size=self._image_size, read=_read)


def open_captioner(config: Annotate) -> Captioner:
    """The captioner of a config whose annotate.text.kind is "openai" or "transformers".

    Raises:
      UserError: no server or key is named, a package or the folder of weights is missing.
    """
    text = config.text
    model = open_model(config, text, max_tokens=MAX_TOKENS)
    return Captioner(model, instruction=text.instruction, image_size=text.image_size)


def _read(answer: Answer) -> Latents:
    return Latents(text=description_of(answer))
