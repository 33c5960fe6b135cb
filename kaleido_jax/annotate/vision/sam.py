"""Segment Anything masks: SAM (Kirillov et al. 2023), SAM-HQ or SAM 2 (Ravi et al. 2024) of Hugging Face."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool

from kaleido_jax.annotate.torch_models import folder_fingerprint, load_local, read_config
from kaleido_jax.annotate.vision.masker import Masker
from kaleido_jax.array_types import Boxes, Image
from kaleido_jax.errors import user_error

# model_type of config.json -> classes. A SAM 2 checkpoint for video holds the image model too.
_CLASSES = {
    "sam": ("SamModel", "SamProcessor"),
    "sam_hq": ("SamHQModel", "SamHQProcessor"),
    "sam2": ("Sam2Model", "Sam2Processor"),
    "sam2_video": ("Sam2Model", "Sam2Processor"),
}


def open_sam(folder: Path) -> tuple[Masker, dict[str, str]]:
    """A masker that prompts SAM with all boxes of an image at once, one mask each, and its metadata.

    Raises:
      UserError: torch or transformers are missing, or the folder holds no such model.
    """
    kind = read_config(folder).get("model_type")
    if kind not in _CLASSES:
        raise user_error(f"{folder} holds a {kind!r}", f"one of {', '.join(_CLASSES)}", "name SAM's folder")
    model, processor, torch = load_local(folder, *_CLASSES[kind])

    def masks(image: Image, boxes: Boxes) -> Bool[np.ndarray, "n h w"]:
        inputs = processor(images=image, input_boxes=[np.asarray(boxes).tolist()], return_tensors="pt")
        given = {
            name: value.to(model.device) for name, value in inputs.items() if name in ("pixel_values", "input_boxes")
        }
        with torch.inference_mode():
            logits = model(**given, multimask_output=False).pred_masks.cpu()
        sizes = [inputs["original_sizes"]]
        if "reshaped_input_sizes" in inputs:  # SAM keeps the shape and pads, SAM 2 stretches
            sizes.append(inputs["reshaped_input_sizes"])
        found = processor.post_process_masks(logits, *sizes)[0]
        return found[:, 0].numpy().astype(bool)

    return masks, {"model": str(kind), "version": folder_fingerprint(folder)}
