"""ONNX image models, run by onnxruntime (an optional package): opening and input normalization."""

import glob
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from kaleido_jax.array_types import Image
from kaleido_jax.errors import user_error
from kaleido_jax.runtime.files import fingerprint, refuse_lfs_pointer

NORMALIZATION_FILE = "preprocessor_config.json"  # Hugging Face's name and keys


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """A model with one image input of shape (1 or any, 3, height, width)."""

    session: Any  # onnxruntime.InferenceSession
    input_name: str
    height: int  # px, of the input
    width: int
    outputs: tuple[tuple[int | str | None, ...], ...]  # shapes as in the file; anything but a number is an open size
    fingerprint: str  # 16 hex digits that change with the file, or the weights stored beside it

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
    """Opens a model of images, for all accelerators of the installed onnxruntime, then the CPU.

    Args:
      path: the .onnx file.
      side_px: side of the input if the file leaves it open.

    Raises:
      UserError: onnxruntime or the file is missing, the file is not an ONNX model, or its input is not an RGB image.
    """
    session, version = open_session(path)
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else None
    if shape is None or len(shape) != 4 or shape[1] != 3 or shape[0] not in (1, None) and not isinstance(shape[0], str):
        raise user_error(
            f"{path} takes {[tuple(i.shape) for i in inputs]}", "one input (1, 3, height, width)", "export it with one"
        )
    height, width = (side if isinstance(side, int) else side_px for side in shape[2:])
    return OnnxModel(
        session=session,
        input_name=inputs[0].name,
        height=height,
        width=width,
        outputs=tuple(tuple(output.shape) for output in session.get_outputs()),
        fingerprint=version,
    )


def open_session(path: Path | str) -> tuple[Any, str]:
    """(onnxruntime.InferenceSession, 16 hex digits that change with the file or the weights stored beside it).

    It runs on all accelerators of the installed onnxruntime, then the CPU.

    Raises:
      UserError: onnxruntime or the file is missing, or the file is not an ONNX model.
    """
    path = Path(path)
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError as error:
        do = "pip install onnxruntime"
        raise user_error("onnxruntime is not installed", "it, to run ONNX models", do) from error
    if not path.is_file():
        raise user_error(f"no file {path}", "an ONNX model", "correct the path or fetch the weights")
    refuse_lfs_pointer(path)
    external = sorted(path.parent.glob(f"{glob.escape(path.name)}[._]data"))  # where exporters put large weights
    for weights in external:
        refuse_lfs_pointer(weights)
    content = path.read_bytes()
    if content[:64].lstrip()[:1] == b"<":
        raise user_error(f"{path} is a web page", "an ONNX model", "download the raw file, not the page that shows it")
    options = onnxruntime.SessionOptions()
    # Waiting threads sleep: images are decoded on the same cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # By path, since weights may be in files beside it.
        session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
    except (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NoSuchFile,
        errors.NotImplemented,
        errors.RuntimeException,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        do = "compare its size with the original's, or export it again"
        raise user_error(f"{path} is not a model that runs ({reason})", "a whole ONNX file", do) from error
    return session, fingerprint(content, *(weights.read_bytes() for weights in external))


def read_normalization(folder: Path) -> Normalization:
    """The image_mean, image_std and rescale_factor of preprocessor_config.json in a model's folder, or ImageNet's.

    Raises:
      UserError: the file exists but cannot be read.
    """
    path = folder / NORMALIZATION_FILE
    if not path.exists():
        return Normalization()
    standard = Normalization()
    try:
        fields = json.loads(path.read_bytes())
        if not isinstance(fields, Mapping):
            raise TypeError("no JSON object")
        mean, std = (tuple(map(float, fields.get(f"image_{k}", getattr(standard, k)))) for k in ("mean", "std"))
        scale = float(fields.get("rescale_factor", standard.scale))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise user_error(
            f"{path} ({error})", "image_mean, image_std, rescale_factor", "correct or delete it"
        ) from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise user_error(f"{path}: mean {mean}, std {std}", "three numbers each, std above 0", "correct or delete it")
    return Normalization(mean=mean, std=std, scale=scale)


def normalize(image: Image, normalization: Normalization) -> Float32[np.ndarray, "3 h w"]:
    """Normalized pixels, channels first."""
    mean, std = np.float32(normalization.mean), np.float32(normalization.std)
    pixels = (image.astype(np.float32) * normalization.scale - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)
