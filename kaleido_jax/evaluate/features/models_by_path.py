"""Image models of other makers as feature networks: ONNX files, and Hugging Face folders through transformers.

DINOv2, CLIP and others. Their features are the pooled output, or else the mean over the positions or tokens.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from kaleido_jax.annotate.vision.onnx_model import Normalization, open_onnx, read_normalization
from kaleido_jax.errors import user_error
from kaleido_jax.runtime.files import fingerprint

SIDE_PX = 224  # where neither the file nor the caller says another one
Resized = Float[np.ndarray, "b s s 3"]  # 0..255, not rounded


@dataclass(frozen=True, kw_only=True)
class ModelByPath:
    """resized images -> features."""

    name: str
    fingerprint: str
    side_px: int
    of: Callable[[Resized], Float[np.ndarray, "b d"]]


def open_onnx_features(path: Path, side_px: int | None) -> ModelByPath:
    """An ONNX image model; the first output is its features. preprocessor_config.json beside it says mean and std.

    Raises:
      UserError: onnxruntime or the file is missing, it is no image model, or its input has another size.
    """
    model = open_onnx(path, side_px=side_px or SIDE_PX)
    if model.height != model.width or side_px not in (None, model.width):
        expected = "a square one" if side_px is None else f"{side_px} px"
        raise user_error(f"{path} takes {model.height}x{model.width} px", expected, "export it with another size")
    normalization = read_normalization(path.parent)

    def of(images: Resized) -> Float[np.ndarray, "b d"]:
        # One by one: many files have a batch of one built in.
        outputs = [model(pixels)[0] for pixels in normalized(images, normalization)]
        return np.stack([_pooled(output) for output in outputs])

    return ModelByPath(
        name=f"onnx {path.stem}",
        fingerprint=fingerprint(model.fingerprint, json.dumps(dataclasses.astuple(normalization))),
        side_px=model.width,
        of=of,
    )


def open_transformers_features(path: Path, side_px: int | None) -> ModelByPath:
    """A Hugging Face folder of a vision model; of a model with two towers (CLIP, SigLIP), the image tower.

    Raises:
      UserError: torch or transformers are missing, or the folder holds no such model.
    """
    from kaleido_jax.annotate.torch_models import folder_fingerprint, load_local

    model, _, torch = load_local(path, "AutoModel", "AutoImageProcessor")
    tower: Any = getattr(model, "vision_model", model)
    normalization = read_normalization(path)

    def of(images: Resized) -> Float[np.ndarray, "b d"]:
        with torch.inference_mode():
            out = tower(pixel_values=torch.from_numpy(normalized(images, normalization)).to(model.device))
        pooled, states = getattr(out, "pooler_output", None), out.last_hidden_state
        vector = states.flatten(2).mean(-1) if states.ndim == 4 else states.mean(1)
        return (vector if pooled is None else pooled.flatten(1)).float().cpu().numpy()

    side_px = side_px or int(getattr(getattr(model.config, "vision_config", model.config), "image_size", SIDE_PX))
    return ModelByPath(name=f"transformers {path.name}", fingerprint=folder_fingerprint(path), side_px=side_px, of=of)


KINDS: dict[str, Callable[[Path, int | None], ModelByPath]] = {
    "onnx": open_onnx_features,
    "transformers": open_transformers_features,
}


def normalized(images: Resized, normalization: Normalization) -> Float[np.ndarray, "b 3 s s"]:
    """float32, channels first."""
    mean, std = np.float32(normalization.mean), np.float32(normalization.std)
    pixels = (np.asarray(images, np.float32) * np.float32(normalization.scale) - mean) / std
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)


def _pooled(output: Float[np.ndarray, "..."]) -> Float[np.ndarray, "d"]:
    # A map (c, h, w) has its channels first, a row of tokens (t, c) last, as exporters write them.
    return output.mean(axis=(1, 2)) if output.ndim == 3 else output.mean(axis=0) if output.ndim == 2 else output
