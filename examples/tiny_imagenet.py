"""Tiny ImageNet's images as folders for a sweep, and as COCO's JSON for training: superclasses hide their subclasses.

    python examples/tiny_imagenet.py --npz=FILE --out=DIR

FILE holds JPEG bytes with `offset`, `label` and `box` of each, and `name`, `super_of_label` and `super_name`. Writes
DIR/images/SUPERCLASS/SUBCLASS/NAME.jpeg and DIR/annotations.json, where the caption of an image is its superclass and
its box is named by its subclass. ImageNet's images are for non-commercial research alone.
"""

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.files import new_folder, write_atomically

FIELDS = ("jpeg", "offset", "label", "box", "filename", "name", "super_of_label", "super_name")


def write(npz: Path, out: Path) -> int:
    """Writes the folder; returns how many images it has.

    Raises:
      UserError: the file is none of these, or the folder is there already.
    """
    try:
        with np.load(npz, allow_pickle=False) as arrays:
            data = {name: arrays[name] for name in FIELDS}
    except (OSError, ValueError, KeyError) as error:
        raise user_error(f"{npz} ({error})", f"an .npz with {', '.join(FIELDS)}", "name another file") from error
    names = [str(name).split(",")[0] for name in data["name"]]
    with new_folder(out, "--out") as folder:
        images, annotations = [], []
        for i, label in enumerate(data["label"]):
            jpeg = data["jpeg"][data["offset"][i] : data["offset"][i + 1]].tobytes()
            caption = str(data["super_name"][data["super_of_label"][label]])
            path = Path(caption) / names[label] / str(data["filename"][i])
            write_atomically(folder / "images" / path, jpeg)
            with Image.open(io.BytesIO(jpeg)) as image:
                size = {"width": image.width, "height": image.height}
            images.append({"id": i, "file_name": str(path), "captions": [caption]} | size)
            x0, y0, x1, y1 = (int(edge) for edge in data["box"][i])  # both ends are inside
            if x1 > x0 and y1 > y0:
                box = [x0, y0, x1 + 1 - x0, y1 + 1 - y0]
                annotations.append({"id": i, "image_id": i, "category_id": int(label), "bbox": box})
        categories = [{"id": i, "name": name} for i, name in enumerate(names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_atomically(folder / "annotations.json", json.dumps(content).encode())
    return len(images)


def main(argv: list[str]) -> None:
    """Parses the flags and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npz", type=Path, required=True, help="the packed images")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    flags = parser.parse_args(argv)
    sys.stdout.write(f"{write(flags.npz.expanduser(), flags.out.expanduser()):,} images in {flags.out}\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"tiny_imagenet: error: {error}")
