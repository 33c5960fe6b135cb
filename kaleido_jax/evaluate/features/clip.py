"""CLIP by path: images and texts embedded by one model, for the CLIP score.

Two kinds of folders, both in Hugging Face's layout, and nothing is downloaded: ONNX files (vision_model.onnx,
text_model.onnx and tokenizer.json; in the folder or its subfolder onnx), or a model for transformers.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64
from PIL import Image as PillowImage

from kaleido_jax.annotate.vision.onnx_model import (
    NORMALIZATION_FILE,
    normalize,
    open_onnx,
    open_session,
    read_normalization,
)
from kaleido_jax.array_types import Image
from kaleido_jax.errors import user_error
from kaleido_jax.runtime.files import fingerprint

SIDE_PX = 224  # if the file leaves it open
MAX_TOKENS = 77  # of CLIP's text encoder
VISION, TEXT, TOKENIZER = "vision_model.onnx", "text_model.onnx", "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Two encoders into one space."""

    name: str
    weights: str  # 16 hex digits that change with both encoders, tokenizer and normalization
    image: Callable[[Image], Float32[np.ndarray, "d"]]
    text: Callable[[str], Float32[np.ndarray, "d"]]

    def images(self, images: Iterable[Image]) -> Float[np.ndarray, "n d"]:
        """Embeddings, not normalized."""
        return np.stack([self.image(image) for image in images])

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Embeddings of captions; each one is encoded once."""
        known = {text: self.text(text) for text in dict.fromkeys(texts)}
        return np.stack([known[text] for text in texts])


def open_clip(path: Path) -> Clip:
    """CLIP from a folder.

    Raises:
      UserError: what runs it is not installed, or files are missing, damaged or not CLIP's.
    """
    for folder in (path, path / "onnx"):
        if (folder / VISION).is_file():
            return _open_onnx(path, folder)
    return _open_transformers(path)


def _open_onnx(path: Path, folder: Path) -> Clip:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        do = "pip install 'kaleido_jax[eval]'"
        raise user_error("tokenizers is not installed", "it, to read captions for CLIP", do) from error
    tokens = path / TOKENIZER
    for file in (folder / TEXT, tokens, path / NORMALIZATION_FILE):
        if not file.is_file():
            raise user_error(
                f"no file {file}", "CLIP's text encoder, tokenizer and normalization", "fetch the whole folder"
            )
    vision, normalization = open_onnx(folder / VISION, side_px=SIDE_PX), read_normalization(path)
    session, text_version = open_session(folder / TEXT)
    try:
        tokenizer = Tokenizer.from_file(str(tokens))
    except Exception as error:  # noqa: BLE001  what the library raises is no more than that
        raise user_error(f"{tokens} cannot be read ({error})", "CLIP's tokenizer", "fetch it again") from error
    tokenizer.enable_truncation(MAX_TOKENS)

    def image(image: Image) -> Float32[np.ndarray, "d"]:
        small = PillowImage.fromarray(image).resize((vision.width, vision.height), PillowImage.Resampling.BICUBIC)
        return _output(vision.session, "image_embeds", vision(normalize(np.asarray(small), normalization)))

    def text(text: str) -> Float32[np.ndarray, "d"]:
        ids: Int64[np.ndarray, "1 t"] = np.asarray([tokenizer.encode(text).ids], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        wanted = {one.name for one in session.get_inputs()}
        if not {"input_ids"} <= wanted <= feeds.keys():
            raise user_error(f"{folder / TEXT} takes {sorted(wanted)}", "input_ids, attention_mask", "export it again")
        outputs = session.run(None, {name: feeds[name] for name in wanted})
        return _output(session, "text_embeds", [output[0] for output in outputs])

    parts = (vision.fingerprint, text_version, tokens.read_bytes(), json.dumps(dataclasses.astuple(normalization)))
    return Clip(name=f"onnx {path.name}", weights=fingerprint(*parts), image=image, text=text)


def _output(session: Any, name: str, outputs: list[np.ndarray]) -> Float32[np.ndarray, "d"]:
    """The output of that name, or else the first one."""
    names = [output.name for output in session.get_outputs()]
    return np.asarray(outputs[names.index(name) if name in names else 0], np.float32)


def _open_transformers(path: Path) -> Clip:
    from kaleido_jax.annotate.torch_models import folder_fingerprint, load_local

    model, processor, torch = load_local(path, "AutoModel", "AutoProcessor")
    if not hasattr(model, "get_text_features"):
        raise user_error(f"{path} is a {type(model).__name__}", "a model with an image and a text tower", "name a CLIP")

    def embedding(function: Callable[..., Any], **inputs: Any) -> Float32[np.ndarray, "d"]:
        with torch.inference_mode():
            out = function(**{name: value.to(model.device) for name, value in inputs.items()})
        return getattr(out, "pooler_output", out)[0].float().cpu().numpy()  # a tensor before transformers 5

    def image(image: Image) -> Float32[np.ndarray, "d"]:
        inputs = processor(images=PillowImage.fromarray(image), return_tensors="pt")
        return embedding(model.get_image_features, pixel_values=inputs["pixel_values"])

    def text(text: str) -> Float32[np.ndarray, "d"]:
        inputs = processor(text=[text], return_tensors="pt", truncation=True)
        return embedding(model.get_text_features, **inputs)

    return Clip(name=f"transformers {path.name}", weights=folder_fingerprint(path), image=image, text=text)
