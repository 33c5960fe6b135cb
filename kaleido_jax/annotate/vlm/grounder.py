"""Grounded boxes from a vision-language model: the bbox segment, phrases with boxes on the crop (paper, appendix A)."""

import re
from collections.abc import Sequence

from kaleido_jax.annotate.annotator import Failure
from kaleido_jax.annotate.vlm import prompts
from kaleido_jax.annotate.vlm.answers import Answer, UnusableAnswer, fenced_blocks, final_text
from kaleido_jax.annotate.vlm.lenient_json import CUT_OFF, read_objects
from kaleido_jax.annotate.vlm.model import VisionModel, ask_about, one_line
from kaleido_jax.annotate.vlm.open_model import open_model
from kaleido_jax.annotate.vlm.readers import Reading, read
from kaleido_jax.config.schema import Annotate
from kaleido_jax.data.sources.base import Example
from kaleido_jax.latents.types import Latents

VERSION = "grounder/4"  # stored with every record; raise it when a rule for reading answers changes
MAX_TOKENS = 1024  # of an answer; a JSON entry is about 40
# What a model writes if it finds nothing: an empty list or object, or a list of empty objects, on its own lines or
# after a colon; or no list under a key that should have one.
_NOTHING = re.compile(
    r"(?:\A|\n)[ \t]*+(?:[-*\u2022>][ \t]++)?(?:[^\n\[\]{}]{0,80}:[*_]{0,2}[ \t]*+)?[`*\"']{0,3}"
    r"(?:[\[\uff3b](?:\s|,|\{\s*+\})*+[\]\uff3d]|\{\s*+\})"
    r"[`*\"'.,;!]{0,4}[ \t]*+(?=\r?+\n|\Z)"
    r"|[\"'](?:objects|boxes|bboxes|detections|results)[\"']\s*+:\s*+(?:null|None)\b"
)
_WORD_AFTER_BRACKETS = re.compile(r"[\]}][^\[\]{}]*+\Z")


class Grounder:
    """Boxes from a vision-language model; an Annotator.

    The picture shown is the square crop, so the answer's coordinates are the crop's, whatever its size.
    """

    segments = ("bbox",)
    needs = ()
    sees = "view"

    def __init__(
        self,
        model: VisionModel,
        *,
        instruction: str = "json",
        coordinates: str = "thousandths",
        image_size: int = 448,
        max_boxes: int = 10,
    ) -> None:
        """How to ask and how to read.

        Args:
          model: who is asked.
          instruction: a key of prompts.BBOX.
          coordinates: "thousandths" of the picture or its "pixels"; ignored for models with location tokens.
          image_size: px, side of the picture shown. For pixels, a size that the model's processor does not change.
          max_boxes: how many are asked for and kept, in the answer's order.
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
        """See Annotator. The prompt quotes the image's caption, not the text made before.

        Raises:
          UserError: no image can be grounded (no server, no weights).
        """
        filled = [prompts.fill(self._prompt, example.caption, max_boxes=self._max_boxes) for example in examples]
        return ask_about(self.model, "bbox", examples, filled, image_size=self._image_size, read=self._read)

    def _read(self, answer: Answer) -> Latents:
        text = final_text(answer)
        reading = read(text, seen_px=self._seen_px)
        # An answer cut off in its list only loses its last box. One cut off in prose may be thoughts without a tag,
        # whose boxes are drafts.
        if answer.cut_off and reading.format == "json" and _ends_in_prose(text, reading):
            raise UnusableAnswer("answer cut off at the token limit, outside of its list of boxes")
        if not reading.objects and not _says_nothing(text, reading):
            raise UnusableAnswer(one_line(f"no box in {text[:80]!r}; {', '.join(reading.remarks)}".rstrip("; ")))
        distinct = dict.fromkeys(reading.boxes())  # a model caught in a loop says the same again and again
        return Latents(bbox=tuple(distinct)[: self._max_boxes])


def open_grounder(config: Annotate) -> Grounder:
    """The grounder of a config whose annotate.bbox.kind is "openai" or "transformers".

    Raises:
      UserError: no server or key is named, a package or the folder of weights is missing.
    """
    bbox = config.bbox
    return Grounder(
        open_model(config, bbox, max_tokens=MAX_TOKENS),
        instruction=bbox.instruction,
        coordinates=bbox.coordinates,
        image_size=bbox.image_size,
        max_boxes=bbox.max_boxes,
    )


def _ends_in_prose(text: str, reading: Reading) -> bool:
    inside = any(remark.startswith(CUT_OFF) for remark in reading.remarks)
    tail = _WORD_AFTER_BRACKETS.search(text)
    return not inside and tail is not None and re.search(r"\w", tail[0]) is not None


def _says_nothing(text: str, reading: Reading) -> bool:
    """True for an empty list, alone, in a fence, after words or as the value of a key such as "objects"."""
    if reading.remarks:
        return False
    if any(_NOTHING.search(block) for block in (text, *fenced_blocks(text))):
        return True
    return any([] in found.values() for found in read_objects(text, remark=lambda kind: None))
