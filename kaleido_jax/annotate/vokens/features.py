"""Image features for the vokens' quantizer: one vector per image.

A feature is a plain callable with a fingerprint of everything that its values depend on. It sees one image at a time,
so a vector never depends on the batch.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image as PillowImage

from kaleido_jax.annotate.vision.onnx_model import normalize, open_onnx, read_normalization
from kaleido_jax.annotate.vokens.tiny_autoencoder import open_encoder
from kaleido_jax.array_types import Image
from kaleido_jax.errors import user_error
from kaleido_jax.runtime.files import fingerprint

FEATURE_SIDE_PX = 16  # of "pixels"
_AUTOENCODER_PX = 64  # the paper's first resolution; a latent every 8 px, hence 64 of them
_ONNX_PX = 224  # if the model's input has no fixed size


@runtime_checkable
class FeatureFunction(Protocol):
    """Computes a feature."""

    def __call__(self, image: Image) -> Float[np.ndarray, "f"]:
        """The feature vector of one image."""
        ...


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A named function image -> vector."""

    name: str
    version: str  # changes with the weights and the rule
    of: FeatureFunction

    def __call__(self, images: Iterable[Image]) -> Float[np.ndarray, "n f"]:
        """One float64 row per image."""
        return np.stack([np.asarray(self.of(image), np.float64) for image in images])


def pixel_features(image: Image) -> Float[np.ndarray, "768"]:
    """The whole image as 16x16 RGB, 0..1, each value the mean of its pixels."""
    small = PillowImage.fromarray(image).resize((FEATURE_SIDE_PX,) * 2, PillowImage.Resampling.BOX)
    return np.asarray(small, np.float64).ravel() / 255


PIXELS = Feature(name="pixels", version="1", of=pixel_features)


def open_feature(name: str, model: str | None = None) -> Feature:
    """A feature by its name.

    Args:
      name: "pixels", "autoencoder" (latents of the image at 64 px), "onnx" (the first output of an
        image model, averaged over positions if it has any) or "transformers" (a Hugging Face vision model's pooled
        output, or the mean over its tokens).
      model: for the last three: file (npz, safetensors or torch; ONNX) or folder of weights. Nothing is downloaded.

    Raises:
      UserError: unknown name, or a model that is missing, not given or not of that kind.
    """
    if name == PIXELS.name:
        if model is not None:
            raise user_error(f"feature {name!r} with a model", "none", "leave config.annotate.voken.feature_model out")
        return PIXELS
    if name not in _WITH_MODEL:
        known = ", ".join((PIXELS.name, *_WITH_MODEL))
        raise user_error(f"feature {name!r}", f"one of {known}", "correct config.annotate.voken.feature")
    if model is None:
        raise user_error(f"feature {name!r} without weights", "a path", "set config.annotate.voken.feature_model")
    return _WITH_MODEL[name](Path(model))


# ------------------------------------------------------------------------------------- features with weights
def _autoencoder(path: Path) -> Feature:
    encoder = open_encoder(path)

    def of(image: Image) -> Float[np.ndarray, "f"]:
        small = PillowImage.fromarray(image).resize((_AUTOENCODER_PX,) * 2, PillowImage.Resampling.BICUBIC)
        return encoder(np.asarray(small)).ravel()

    return Feature(name="autoencoder", version=encoder.fingerprint, of=of)


def _onnx(path: Path) -> Feature:
    model = open_onnx(path, side_px=_ONNX_PX)
    normalization = read_normalization(path.parent)

    def of(image: Image) -> Float[np.ndarray, "f"]:
        small = PillowImage.fromarray(image).resize((model.width, model.height), PillowImage.Resampling.BICUBIC)
        output = model(normalize(np.asarray(small), normalization))[0]
        # A map (c, h, w) has its channels first, a row of tokens (t, c) last, as exporters write them.
        return output.mean(axis=(1, 2)) if output.ndim == 3 else output.mean(axis=0) if output.ndim == 2 else output

    version = fingerprint(model.fingerprint, json.dumps(dataclasses.astuple(normalization)))
    return Feature(name="onnx", version=version, of=of)


def _transformers(path: Path) -> Feature:
    from kaleido_jax.annotate.torch_models import folder_fingerprint, load_local

    model, processor, torch = load_local(path, "AutoModel", "AutoImageProcessor")
    # Of a model with two towers (CLIP, SigLIP), only the image tower.
    tower = getattr(model, "vision_model", model)

    def of(image: Image) -> Float[np.ndarray, "f"]:
        inputs = processor(images=PillowImage.fromarray(image), return_tensors="pt")
        with torch.inference_mode():
            out = tower(pixel_values=inputs["pixel_values"].to(model.device))
        pooled = getattr(out, "pooler_output", None)
        states = out.last_hidden_state
        vector = states.flatten(2).mean(-1) if states.ndim == 4 else states.mean(1)  # a map, or a row of tokens
        return (vector if pooled is None else pooled.flatten(1))[0].float().cpu().numpy()

    return Feature(name="transformers", version=folder_fingerprint(path), of=of)


_WITH_MODEL = {"autoencoder": _autoencoder, "onnx": _onnx, "transformers": _transformers}
