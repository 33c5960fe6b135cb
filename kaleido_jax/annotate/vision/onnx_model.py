"""Image models in ONNX files, run by onnxruntime (an optional package): opening one, and the pixels it wants."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from kaleido_jax.errors import user_error

NORMALIZATION_FILE = "preprocessor_config.json"  # Hugging Face's name and keys


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """A model with one image input of shape (1 or any, 3, height, width)."""

    session: Any  # onnxruntime.InferenceSession
    input_name: str
    height: int  # px, of the input
    width: int
    outputs: tuple[tuple, ...]  # shapes as the file tells them
    fingerprint: str  # 16 hex digits of the file's SHA-256

    def __call__(self, pixels: Float32[np.ndarray, "3 h w"]) -> list[np.ndarray]:
        """All outputs for one image, without the batch axis."""
        return [output[0] for output in self.session.run(None, {self.input_name: pixels[None]})]


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """pixels = (RGB * scale - mean) / std; the defaults are ImageNet's."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: float = 1 / 255


def open_onnx(path: Path | str, *, side_px: int) -> OnnxModel:
    """Opens a model for all the accelerators that the installed onnxruntime has, then the CPU.

    Args:
      path: the .onnx file.
      side_px: side of the input where the file leaves it open.

    Raises:
      UserError: onnxruntime or the file is missing, the file is no ONNX model, or its input is no RGB image.
    """
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError as error:
        do = "pip install 'kaleido_jax[annotate]'"
        raise user_error("onnxruntime is not installed", "it, to run ONNX models", do) from error
    path = Path(path)
    if not path.is_file():
        raise user_error(f"no file {path}", "an ONNX model", "correct the path or fetch the weights")
    content = path.read_bytes()
    options = onnxruntime.SessionOptions()
    # Waiting threads sleep: images are decoded on the same cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # By path, since weights may lie in files beside it.
        session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
    except (errors.Fail, errors.InvalidGraph, errors.InvalidProtobuf, errors.NotImplemented) as error:
        reason = " ".join(str(error).split())[:200]
        raise user_error(
            f"{path} is no model that runs ({reason})", "an ONNX file", "fetch or export it again"
        ) from error
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else None
    if shape is None or len(shape) != 4 or shape[1] != 3 or shape[0] not in (1, None) and not isinstance(shape[0], str):
        raise user_error(
            f"{path} takes {[tuple(i.shape) for i in inputs]}", "one input (1, 3, height, width)", "export it so"
        )
    height, width = (side if isinstance(side, int) else side_px for side in shape[2:])
    return OnnxModel(
        session=session,
        input_name=inputs[0].name,
        height=height,
        width=width,
        outputs=tuple(tuple(output.shape) for output in session.get_outputs()),
        fingerprint=hashlib.sha256(content).hexdigest()[:16],
    )


def read_normalization(folder: Path) -> Normalization:
    """What preprocessor_config.json in a model's folder says (image_mean, image_std, rescale_factor), or ImageNet's.

    Raises:
      UserError: the file is there and cannot be read.
    """
    path = folder / NORMALIZATION_FILE
    if not path.exists():
        return Normalization()
    standard = Normalization()
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, Mapping):
            raise TypeError("no JSON object")
        mean, std = (tuple(map(float, told.get(f"image_{k}", getattr(standard, k)))) for k in ("mean", "std"))
        scale = float(told.get("rescale_factor", standard.scale))
    except (TypeError, ValueError, UnicodeDecodeError) as error:
        raise user_error(f"{path} ({error})", "image_mean, image_std, rescale_factor", "mend or delete it") from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise user_error(f"{path}: mean {mean}, std {std}", "three numbers each, std above 0", "mend or delete it")
    return Normalization(mean=mean, std=std, scale=scale)


def normalize(image: UInt8[np.ndarray, "h w 3"], told: Normalization) -> Float[np.ndarray, "3 h w"]:
    """Float32 pixels as a model wants them, channels first."""
    pixels = (image.astype(np.float32) * told.scale - np.float32(told.mean)) / np.float32(told.std)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)
