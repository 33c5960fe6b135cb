"""Tiny ImageNet's images as folders for a sweep, and as COCO's JSON for training: superclasses hide their subclasses.

    python examples/tiny_imagenet.py --npz=FILE --out=DIR [--side=32] [--per_class=400]

FILE holds JPEG bytes with `offset`, `label` and `box` of each, and `name`, `super_of_label` and `super_name`. Writes
DIR/images/SUPERCLASS/SUBCLASS/NAME.jpeg and DIR/annotations.json, where the caption of an image is its superclass and
its box is named by its subclass, and DIR/spiece.model, a vocabulary of these names and of numbers. With --side the
images are cropped and shrunk to what the model sees. ImageNet's images are for non-commercial research alone.
"""

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from kaleido_jax.data.crop import square_crop
from kaleido_jax.data.images import decode_photo
from kaleido_jax.data.sources.base import Example, LabeledObject
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.latents.grammar import serialize
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.vocabulary import vocabulary_of
from kaleido_jax.runtime.files import new_folder, write_atomically
from kaleido_jax.runtime.workdir import VOCABULARY

FIELDS = ("jpeg", "offset", "label", "box", "filename", "name", "super_of_label", "super_name")
QUALITY = 90  # of a shrunken JPEG, with colors at full resolution; Pillow's 75 is visible at 32 px

Corners = tuple[float, float, float, float]  # left, top, right, bottom, px


def write(npz: Path, out: Path, side: int | None = None, per_class: int | None = None) -> int:
    """Writes the folder; returns how many images it has.

    Args:
      npz: the packed images.
      out: a new folder.
      side: px of the square that each image becomes, cropped and shrunk as for a model of that size; None keeps the
        JPEG's own bytes.
      per_class: images of each class, the first ones; None = all.

    Raises:
      UserError: the file is none of these, the folder is there already, or a number below 1.
    """
    for flag, value in (("side", side), ("per_class", per_class)):
        if value is not None and value < 1:
            raise user_error(f"--{flag}={value}", "1 or more", "raise it, or leave it out")
    try:
        with np.load(npz, allow_pickle=False) as arrays:
            data = {name: arrays[name] for name in FIELDS}
    except (OSError, ValueError, KeyError) as error:
        raise user_error(f"{npz} ({error})", f"an .npz with {', '.join(FIELDS)}", "name another file") from error
    names = [str(name).split(",")[0] for name in data["name"]]
    captions = [str(data["super_name"][number]) for number in data["super_of_label"]]
    chosen = np.concatenate([np.flatnonzero(data["label"] == label)[:per_class] for label in range(len(names))])
    with new_folder(out, "--out") as folder:
        images, annotations = [], []
        for i in np.sort(chosen).tolist():
            label = int(data["label"][i])
            jpeg = data["jpeg"][data["offset"][i] : data["offset"][i + 1]].tobytes()
            x0, y0, x1, y1 = (float(edge) for edge in data["box"][i])  # both ends are inside
            boxes = [(x0, y0, x1 + 1, y1 + 1)] if x1 > x0 and y1 > y0 else []
            if side is not None:
                jpeg, boxes = _shrunken(jpeg, boxes, side)
            path = Path(captions[label]) / names[label] / str(data["filename"][i])
            write_atomically(folder / "images" / path, jpeg)
            with Image.open(io.BytesIO(jpeg)) as image:
                size = {"width": image.width, "height": image.height}
            images.append({"id": i, "file_name": str(path), "captions": [captions[label]]} | size)
            for left, top, right, bottom in boxes:
                box = [left, top, right - left, bottom - top]
                annotations.append({"id": i, "image_id": i, "category_id": label, "bbox": box})
        categories = [{"id": i, "name": name} for i, name in enumerate(names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_atomically(folder / "annotations.json", json.dumps(content).encode())
        boxes_of_all = (Latents(bbox=(Box(phrase=name, box=(0, 10, 500, 1000)),)) for name in names)
        lines = [serialize(z, ("bbox",)) for z in boxes_of_all]
        write_atomically(folder / VOCABULARY, vocabulary_of([*captions, *names, *lines]))
    return len(images)


def _shrunken(jpeg: bytes, boxes: list[Corners], side: int) -> tuple[bytes, list[Corners]]:
    objects = tuple(LabeledObject(phrase="", box=box) for box in boxes)
    crop = square_crop(Example(id="", image=decode_photo(jpeg), caption="", objects=objects), side)
    with io.BytesIO() as buffer:
        Image.fromarray(crop.image).save(buffer, "jpeg", quality=QUALITY, subsampling=0)
        return buffer.getvalue(), [found.box for found in crop.objects]


def main(argv: list[str]) -> None:
    """Parses the flags and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npz", type=Path, required=True, help="the packed images")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--side", type=int, help="px of the square that each image is cropped and shrunk to")
    parser.add_argument("--per_class", type=int, help="only so many images of each class")
    flags = parser.parse_args(argv)
    number = write(flags.npz.expanduser(), flags.out.expanduser(), flags.side, flags.per_class)
    sys.stdout.write(f"{number:,} images in {flags.out}\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"tiny_imagenet: error: {error}")
