"""Segmenter, the blob segment: a mask inside each box of the bbox segment, and the ellipse of the mask's moments.

Masks come from SAM or SAM 2 (Hugging Face, sam.py) or from any ONNX model that maps an image to a mask (onnx_masks).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image as PillowImage

from kaleido_jax.annotate.annotator import Failure, Sees
from kaleido_jax.annotate.vision.masker import Masker
from kaleido_jax.annotate.vision.onnx_model import normalize, open_onnx, read_normalization
from kaleido_jax.array_types import Boxes, Image, ImageMask
from kaleido_jax.config.schema import Annotate
from kaleido_jax.data.sources.base import Example
from kaleido_jax.errors import user_error
from kaleido_jax.latents.geometry import ellipse_to_blob, mask_to_ellipse, to_pixels
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.segments.blob import Blob
from kaleido_jax.latents.types import Latents

_SIDE_PX = 320  # of an ONNX model's input, if the file leaves it open
# Margin around a box, in its side lengths. U2-Net-p marks what is salient, so it needs background: on 80 objects of
# COCO in 256 px crops 0.4 gave a mean IoU of 0.485, 0.2 0.470 and 0.1 0.433. For large objects 0.1 and 0.25 are equal.
_MARGIN = 0.4
_FOREGROUND_FROM = 0.5  # threshold of the model's output, 0..1


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """The annotator of the blob segment; phrases and order come from bbox."""

    masks: Masker
    metadata: Mapping[str, str]
    segments: tuple[str, ...] = ("blob",)
    needs: tuple[str, ...] = ("bbox",)
    sees: Sees = "view"

    def __call__(self, examples: Sequence[Example], so_far: Sequence[Latents]) -> list[Latents | Failure]:
        """Latents with one ellipse per box; an object whose mask is empty is left out.

        An image without boxes has no blobs, which is not a failure; boxes whose masks are all empty are one.
        """
        return [self._blobs(example.image, z.bbox) for example, z in zip(examples, so_far, strict=True)]

    def _blobs(self, image: Image, objects: Sequence[Box] | None) -> Latents | Failure:
        if not objects:
            return Latents(blob=())
        height, width = image.shape[:2]
        boxes = to_pixels([item.box for item in objects], (width, height, width, height))
        blobs = tuple(
            Blob(phrase=item.phrase, blob=ellipse_to_blob(mask_to_ellipse(mask)))
            for item, mask in zip(objects, self.masks(image, boxes), strict=True)
            if mask.any()
        )
        return Latents(blob=blobs) if blobs else Failure(segment="blob", reason=f"no mask in any of {len(boxes)} boxes")


def open_segmenter(config: Annotate) -> Segmenter:
    """The segmenter of a config whose blob.kind is "sam" or "onnx".

    Raises:
      UserError: packages or weights are missing, or the model is not of that kind.
    """
    settings = config.blob
    if settings.model is None:
        raise user_error("config.annotate.blob.model is not set", "weights of SAM, or an .onnx file", "set it")
    path = Path(settings.model)
    if settings.kind == "sam":
        from kaleido_jax.annotate.vision.sam import open_sam

        masks, metadata = open_sam(path)
    else:
        masks, metadata = onnx_masks(path)
    return Segmenter(masks=masks, metadata=metadata)


def onnx_masks(path: Path) -> tuple[Masker, dict[str, str]]:
    """Masks by an ONNX model such as U2-Net: run on each box with a margin, its first output cut at 0.5.

    The model takes (1, 3, h, w) float32; the crop is resized to h x w (320 if the file leaves it open) and normalized
    by preprocessor_config.json beside the file, or else by ImageNet's mean and standard deviation. The first output is
    one map with values 0..1 (after the sigmoid). Outside its box a mask is empty.

    Raises:
      UserError: as open_onnx, or the output is not a map.
    """
    model = open_onnx(path, side_px=_SIDE_PX)
    normalization = read_normalization(path.parent)
    shape = model.outputs[0]
    if len(shape) not in (3, 4) or (len(shape) == 4 and isinstance(shape[1], int) and shape[1] != 1):
        raise user_error(f"{path} gives {shape}", "a map (1, 1, height, width) first", "name a mask model")

    def one(image: Image, box: Float[np.ndarray, "4"]) -> ImageMask:
        x1, y1, x2, y2 = _grown(box, image.shape[:2])
        crop = PillowImage.fromarray(image[y1:y2, x1:x2]).resize(
            (model.width, model.height), PillowImage.Resampling.BILINEAR
        )
        output = model(normalize(np.asarray(crop), normalization))[0]
        soft = PillowImage.fromarray(np.asarray(output, np.float32).reshape(output.shape[-2:]))
        soft = np.asarray(soft.resize((x2 - x1, y2 - y1), PillowImage.Resampling.BILINEAR))
        mask = np.zeros(image.shape[:2], bool)
        mask[y1:y2, x1:x2] = soft >= _FOREGROUND_FROM
        return mask & _inside(box, image.shape[:2])

    def masks(image: Image, boxes: Boxes) -> Bool[np.ndarray, "n h w"]:
        return np.stack([one(image, box) for box in boxes])

    return masks, {"model": "onnx", "version": model.fingerprint}


def _grown(box: Float[np.ndarray, "4"], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box with its margin, in whole px within the image; at least one."""
    margin = _MARGIN * np.tile(box[2:] - box[:2], 2) * (-1, -1, 1, 1)
    bounds = np.array((size[1], size[0]))
    low = np.clip(np.floor((box + margin)[:2]), 0, bounds - 1).astype(int)
    high = np.clip(np.ceil((box + margin)[2:]), low + 1, bounds).astype(int)
    return (*low.tolist(), *high.tolist())


def _inside(box: Float[np.ndarray, "4"], size: tuple[int, int]) -> ImageMask:
    """The pixels whose centers lie in the box."""
    rows, columns = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    x1, y1, x2, y2 = box
    return ((rows >= y1) & (rows <= y2))[:, None] & ((columns >= x1) & (columns <= x2))[None]
