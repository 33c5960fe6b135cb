"""YOLOX detector (Ge et al. 2021) in an ONNX file, for the bbox segment: any size, as YOLOX's exporter writes it.

The model sees BGR 0..255 scaled into the upper left of its input, grey (114) elsewhere, and gives, for each cell of
the strides 8, 16 and 32, (x, y, log w, log h, objectness, one score a class) in units of the stride.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int
from PIL import Image as PillowImage

from kaleido_jax.annotate.annotator import Failure, Sees
from kaleido_jax.annotate.vision.onnx_model import OnnxModel, open_onnx
from kaleido_jax.array_types import Boxes, Image
from kaleido_jax.config.schema import Annotate
from kaleido_jax.data.sources.base import Example, class_lines
from kaleido_jax.errors import user_error
from kaleido_jax.latents.geometry import box_iou, round_box, to_thousandths
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.validity import clean_phrase

STRIDES = (8, 16, 32)
NMS_IOU = 0.45  # of two boxes of a class that overlap more, the better one stays; YOLOX's own value
_PADDING_TONE = 114
_SIDE_PX = 640  # of YOLOX-S and larger, if the file leaves the size open


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What a detector found in one image, best first."""

    boxes: Float[np.ndarray, "n 4"]  # (x1, y1, x2, y2) in px of the image, within it
    scores: Float[np.ndarray, " n"]  # objectness times class probability, 0..1
    classes: Int[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class Detector:
    """The annotator of the bbox segment; the phrase is the class's name."""

    model: OnnxModel
    class_names: tuple[str, ...]
    threshold: float
    max_boxes: int
    segments: tuple[str, ...] = ("bbox",)
    needs: tuple[str, ...] = ()
    sees: Sees = "view"

    @property
    def metadata(self) -> dict[str, str]:
        """Provenance."""
        return {"model": "yolox", "version": self.model.fingerprint, "threshold": str(self.threshold)}

    def __call__(self, examples: Sequence[Example], so_far: Sequence[Latents]) -> list[Latents | Failure]:
        """Latents with the max_boxes most confident boxes, best first.

        An empty tuple if nothing reaches the threshold, which is not a failure.
        """
        return [Latents(bbox=self._boxes(example.image)) for example in examples]

    def detect(self, image: Image) -> Detections:
        """The detector's own answer in px, before conversion to 0..1000."""
        pixels, scale = letterbox(image, self.model.height, self.model.width)
        output = decode(self.model(pixels)[0], self.model.height, self.model.width)
        return pick(output, scale, image.shape[:2], self.threshold)

    def _boxes(self, image: Image) -> tuple[Box, ...]:
        found = self.detect(image)
        height, width = image.shape[:2]
        boxes = to_thousandths(found.boxes, (width, height, width, height))
        named = zip(boxes[: self.max_boxes], found.classes[: self.max_boxes], strict=True)
        return tuple(Box(phrase=self.class_names[c], box=round_box(box)) for box, c in named)


def open_detector(config: Annotate) -> Detector:
    """The detector of a config whose bbox.kind is "onnx".

    Raises:
      UserError: onnxruntime, model or names are missing, or model and names do not match.
    """
    settings = config.bbox
    if settings.model is None:
        raise user_error("config.annotate.bbox.model is not set", "a YOLOX model's .onnx file", "set it")
    path = Path(settings.model)
    model = open_onnx(path, side_px=_SIDE_PX)
    if any(side % max(STRIDES) for side in (model.height, model.width)):
        found = f"{path} with an input of {model.height}x{model.width}"
        raise user_error(found, f"multiples of {max(STRIDES)}, as YOLOX has", "name a YOLOX model")
    names = class_names(path)
    cells = sum((model.height // stride) * (model.width // stride) for stride in STRIDES)
    shape, expected = model.outputs[0], (1, cells, 5 + len(names))
    # An open size is not a number in the file.
    if len(shape) != 3 or any(isinstance(a, int) and a != b for a, b in zip(shape, expected, strict=True)):
        raise user_error(f"{path} gives {shape}", f"{expected}, for {len(names)} names", "correct the .names file")
    return Detector(model=model, class_names=names, threshold=settings.threshold, max_boxes=settings.max_boxes)


def letterbox(image: Image, height: int, width: int) -> tuple[Float32[np.ndarray, "3 H W"], float]:
    """The model's input, and its scale: input pixels per image pixel."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = (int(image.shape[1] * scale), int(image.shape[0] * scale))
    canvas = np.full((height, width, 3), _PADDING_TONE, np.uint8)
    canvas[: size[1], : size[0]] = PillowImage.fromarray(image).resize(size, PillowImage.Resampling.BILINEAR)
    return np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1), np.float32), scale


def decode(output: Float[np.ndarray, "cells c"], height: int, width: int) -> Float[np.ndarray, "cells c"]:
    """Cell units -> (center x, center y, w, h) in pixels of the input; scores are not changed."""
    grids, strides = [], []
    for stride in STRIDES:
        rows, columns = height // stride, width // stride
        y, x = np.divmod(np.arange(rows * columns), columns)
        grids.append(np.stack([x, y], axis=1))
        strides.append(np.full((rows * columns, 1), stride))
    grid, stride = np.concatenate(grids), np.concatenate(strides)
    return np.concatenate([(output[:, :2] + grid) * stride, np.exp(output[:, 2:4]) * stride, output[:, 4:]], axis=1)


def pick(
    decoded: Float[np.ndarray, "cells c"], scale: float, image_size: tuple[int, int], threshold: float
) -> Detections:
    """The cells that reach the threshold, each with its best class, after suppression; boxes clipped to the image."""
    classes = decoded[:, 5:].argmax(axis=1)
    scores = decoded[:, 4] * decoded[np.arange(len(decoded)), 5 + classes]
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= threshold]
    half = decoded[order, 2:4] / 2
    boxes = np.concatenate([decoded[order, :2] - half, decoded[order, :2] + half], axis=1) / scale
    boxes = np.clip(boxes, 0, np.tile(image_size[::-1], 2))
    kept = _suppress(boxes, classes[order])
    return Detections(boxes=boxes[kept], scores=scores[order][kept], classes=classes[order][kept])


def _suppress(boxes: Boxes, classes: Int[np.ndarray, "n"]) -> Int[np.ndarray, "kept"]:
    """Non-maximum suppression in each class: the indices to keep, given boxes best first."""
    kept = []
    for i in range(len(boxes)):
        same = [k for k in kept if classes[k] == classes[i]]
        sized = np.prod(boxes[i, 2:] - boxes[i, :2]) > 0  # all of it may lie outside the image
        if sized and not (same and box_iou(boxes[same], boxes[i]).max() > NMS_IOU):
            kept.append(i)
    return np.array(kept, np.int64)


def class_names(path: Path) -> tuple[str, ...]:
    """The phrases of a detector's classes, as its boxes have them.

    They are the lines of MODEL.names beside MODEL.onnx, or of the folder's only .names file.

    Raises:
      UserError: there is no such file or there are several, or it cannot be read.
    """
    beside = path.with_suffix(".names")
    found = [beside] if beside.exists() else sorted(path.parent.glob("*.names"))
    if len(found) != 1:
        raise user_error(f"{len(found)} .names files for {path}", f"{beside.name}, one class a line", "put it there")
    try:
        content = found[0].read_bytes()
    except OSError as error:
        raise user_error(f"{found[0]} cannot be read ({error})", "one class a line", "correct it") from error
    return tuple(map(clean_phrase, class_lines(content, found[0])))
