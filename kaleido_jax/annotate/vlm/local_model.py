"""Local vision-language model: transformers and torch in this process, from a local folder; nothing is downloaded."""

import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kaleido_jax.annotate.torch_models import folder_fingerprint, load_local, read_config
from kaleido_jax.annotate.vlm.answers import Answer, UnusableAnswer
from kaleido_jax.annotate.vlm.model import (
    RETRY_TEMPERATURE,
    AnswerReader,
    Pace,
    Question,
    Unanswered,
    one_line,
    seed_of,
)
from kaleido_jax.errors import user_error
from kaleido_jax.latents.types import Latents

log = logging.getLogger(__name__)

RETRIES = 2  # after an unusable answer; these are sampled, since the greedy answer would be the same

# Models that follow task prompts instead of a chat: model_type -> segment -> prompt ({caption} as in prompts.py).
OWN_PROMPTS = {
    "florence2": {"text": "<MORE_DETAILED_CAPTION>", "bbox": "<CAPTION_TO_PHRASE_GROUNDING>{caption}"},
    "kosmos-2": {"text": "Describe this image in detail:", "bbox": "<grounding>Describe this image in detail:"},
}


class LocalModel:
    """Answers in batches of `batch_size`, greedily; the weights are loaded with the first question.

    The questions of a batch share only their padding, which is masked: up to rounding (matrix products of other sizes
    add in another order) an answer does not depend on the others.
    """

    def __init__(self, folder: str | Path | None, *, max_tokens: int, batch_size: int) -> None:
        """Weights in `folder`; answers of at most `max_tokens`.

        Raises:
          UserError: there is no such folder, it holds no model, or a package is missing.
        """
        if folder is None:
            do = "download the model there and set config.annotate's text.model or bbox.model"
            raise user_error("no model is named", "a folder with config.json and weights", do)
        self._folder, self._max_tokens, self._batch_size = Path(folder), max_tokens, batch_size
        config = read_config(self._folder)
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                do = "pip install torch torchvision 'kaleido_jax[annotate]'"
                raise user_error(f"the package {package} is missing", "it installed", do)
        self.own_prompts: Mapping[str, str] = OWN_PROMPTS.get(str(config.get("model_type")), {})
        # Only the folder's name, so that records from two machines agree.
        self.metadata = {"model": self._folder.resolve().name, "version": folder_fingerprint(self._folder)}
        self._model = self._processor = self._torch = None
        self._pace = Pace()

    def ask(self, questions: Sequence[Question], read: AnswerReader) -> list[Latents | Unanswered]:
        """See VisionModel.

        Raises:
          UserError: the weights cannot be read, or a batch does not fit the device's memory.
        """
        if not questions:
            return []
        self._load()
        start, results = time.monotonic(), []
        for first in range(0, len(questions), self._batch_size):
            batch = questions[first : first + self._batch_size]
            for question, answer in zip(batch, self._generate(batch), strict=True):
                results.append(self._settle(question, answer, read))
        taken = time.monotonic() - start
        if self._pace.due():
            log.info("%s: %d images in %.1f s", self.metadata["model"], len(results), taken)
        return results

    def _settle(self, question: Question, answer: Answer, read: AnswerReader) -> Latents | Unanswered:
        for attempt in range(RETRIES + 1):
            try:
                return read(answer)
            except UnusableAnswer as error:
                reason = str(error)
            if attempt < RETRIES:  # one by one, since sampling in a batch would depend on the others
                [answer] = self._generate([question], seed=seed_of(question.id, attempt + 1))
        return Unanswered(reason=one_line(f"{reason} ({RETRIES + 1} tries)"))

    # ---------------------------------------------------------------------------------------- transformers
    def _load(self) -> None:
        if self._model is not None:
            return
        model, processor, torch = load_local(self._folder, "AutoModelForImageTextToText", "AutoProcessor", half=True)
        if not self.own_prompts and not getattr(processor, "chat_template", None):
            raise user_error(f"{self._folder} has no chat template", "an instruction-tuned model", "use another")
        # The answer is appended to the prompt, so the padding goes before it.
        processor.tokenizer.padding_side = "left"
        self._model, self._processor, self._torch = model, processor, torch

    def _inputs(self, questions: Sequence[Question]) -> Any:
        prompts, more = [question.prompt for question in questions], {}
        if not self.own_prompts:
            content = [[{"type": "image"}, {"type": "text", "text": prompt}] for prompt in prompts]
            chats = [[{"role": "user", "content": parts}] for parts in content]
            prompts = self._processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
            bos = self._processor.tokenizer.bos_token
            more = {"add_special_tokens": False} if bos and prompts[0].startswith(bos) else {}
        pictures = [[question.picture()] for question in questions]
        return self._processor(text=prompts, images=pictures, padding=True, return_tensors="pt", **more)

    def _generate(self, questions: Sequence[Question], seed: int | None = None) -> list[Answer]:
        """The answers; greedy without a seed, sampled with one."""
        torch, device = self._torch, self._model.device
        inputs = self._inputs(questions).to(device, dtype=self._model.dtype)
        how = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if seed is not None:
            how = {"do_sample": True, "temperature": RETRY_TEMPERATURE}
        try:
            with torch.inference_mode(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed or 0)
                tokens = self._model.generate(**inputs, max_new_tokens=self._max_tokens, **how)
        except torch.OutOfMemoryError as error:
            do = "lower batch_size or image_size in config.annotate"
            raise user_error(f"no memory for {len(questions)} images", f"enough on {device}", do) from error
        encoder_decoder = self._model.config.is_encoder_decoder
        prompt_length = 1 if encoder_decoder else inputs["input_ids"].shape[1]
        return [self._answer(row) for row in tokens[:, prompt_length:].tolist()]

    def _answer(self, tokens: list[int]) -> Answer:
        config = self._model.generation_config
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        end = next((i for i, token in enumerate(tokens) if token in ends), None)
        tokenizer = self._processor.tokenizer
        frame = (tokenizer.bos_token_id, tokenizer.pad_token_id)
        # Other special tokens stay: some models mark phrases and boxes with them.
        kept = [token for token in tokens[:end] if token not in frame]
        return Answer(text=tokenizer.decode(kept, skip_special_tokens=False), cut_off=end is None)
