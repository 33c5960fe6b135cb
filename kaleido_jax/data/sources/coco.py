"""COCO's JSON: captions, boxes and masks that people drew.

Either COCO's own layout (annotations/instances_SPLIT.json, annotations/captions_SPLIT.json, SPLIT/*.jpg) or files named
by `labels`; of several files the images, annotations and captions are put together by image id. A file may also carry
its captions as a list in each image ("captions").
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from kaleido_jax.data.sources.base import Example, LabeledObject, below, check_index, read_image
from kaleido_jax.data.sources.masks import decode_segmentation
from kaleido_jax.errors import user_error


class CocoSource:
    """Images in the order of their ids; crowds are left out, since no one box or ellipse is theirs.

    The caption is the shortest of an image's and the description the longest, so that the text segment says more than
    the condition. Without captions the caption is "" and there is no description.
    """

    class_names = ()

    def __init__(
        self, root: Path, *, split: str = "", labels: Sequence[str] = (), images: str = "", licenses: Sequence[int] = ()
    ):
        """Reads all labels into memory.

        Args:
          root: folder of the data set.
          split: e.g. "val2017"; in files where images carry a "split", only those.
          labels: files below root; () = annotations.json, or COCO's own layout.
          images: folder of the photos below root; "" = images, or COCO's own SPLIT.
          licenses: ids of the licenses to keep; () = all.

        Raises:
          UserError: files that are missing or damaged, or nothing left.
        """
        files = _label_files(root, split, labels)
        self._photos = _photo_folder(root, split, images)
        tables = [_read(path) for path in files]
        self.fingerprint = hashlib.sha256(b"".join(digest for _, digest in tables)).hexdigest()[:16]
        self._images, self._objects, self._captions, self._names, self._licenses = {}, {}, {}, {}, {}
        for path, (table, _) in zip(files, tables, strict=True):
            self._add(path, table)
        chosen = [i for i in self._images.values() if not split or i.get("split", split) == split]
        if licenses:
            chosen = [i for i in chosen if i.get("license") in licenses]
        if not chosen:
            what = f"split {split!r}" + (f" under licenses {tuple(licenses)}" if licenses else "")
            do = "change data.split or data.coco.licenses"
            raise user_error(f"no image of {what} in {files[0]}", "at least one", do)
        self._order = sorted(chosen, key=lambda image: image["id"])
        self._split = split

    def __len__(self) -> int:
        return len(self._order)

    def id(self, index: int) -> str:
        """The id of one example, e.g. "coco/val2017/000000000139"."""
        image = self._order[check_index(index, len(self))]
        split = image.get("split", self._split)
        return "/".join(["coco", *([split] if split else []), f"{image['id']:012d}"])

    def label(self, index: int) -> int:
        """Raises UserError: a photo of many things has no one class."""
        raise user_error("the class of a COCO photo", "a source with classes", "use its captions")

    def __getitem__(self, index: int) -> Example:
        image = self._order[check_index(index, len(self))]
        pixels = read_image(below(self._photos, image["file_name"]))
        height, width = pixels.shape[:2]
        if (image.get("width", width), image.get("height", height)) != (width, height):
            raise user_error(
                f"a photo of {width}x{height} px whose labels are for {image['width']}x{image['height']}",
                "equal sizes",
                "fetch the photos that belong to these labels",
            )
        captions = sorted((str(c).strip() for c in self._captions.get(image["id"], ())), key=len)
        return Example(
            id=self.id(index),
            image=pixels,
            caption=captions[0] if captions else "",
            description=captions[-1] if captions else None,
            objects=tuple(self._object(a, height, width) for a in self._objects.get(image["id"], ())),
            credit=self._credit(image),
        )

    def _add(self, path, table):
        try:
            self._names |= {c["id"]: c["name"] for c in table.get("categories", ())}
            self._licenses |= {entry["id"]: entry["name"] for entry in table.get("licenses", ())}
            for image in table["images"]:
                if not isinstance(image["id"], int) or "file_name" not in image:
                    raise ValueError(f"image {image['id']!r}")
                self._images[image["id"]] = image
                self._captions.setdefault(image["id"], []).extend(image.get("captions", ()))
            for annotation in table.get("annotations", ()):
                if "caption" in annotation:
                    self._captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
                elif not annotation.get("iscrowd"):
                    self._objects.setdefault(annotation["image_id"], []).append(annotation)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            told = f"{path} is no table of COCO's ({type(error).__name__}: {error})"
            raise user_error(told, "images, annotations and categories", "correct the file") from error

    def _object(self, annotation, height, width):
        try:
            x, y, w, h = map(float, annotation["bbox"])
            phrase, segmentation = self._names[annotation["category_id"]], annotation.get("segmentation")
        except (KeyError, TypeError, ValueError) as error:
            raise user_error("an annotation without bbox or category", "both", "correct the labels") from error
        mask = decode_segmentation(segmentation, height, width) if segmentation else None
        return LabeledObject(phrase=phrase, box=(x, y, x + w, y + h), mask=mask)

    def _credit(self, image):
        license = self._licenses.get(image.get("license"))
        address = image.get("flickr_url") or image.get("coco_url")
        return ", ".join(part for part in (address, license) if part)


def _label_files(root, split, labels):
    if labels:
        return [root / name for name in labels]
    if (root / "annotations.json").exists():
        return [root / "annotations.json"]
    found = [root / "annotations" / f"{kind}_{split}.json" for kind in ("instances", "captions")]
    if not split or not any(path.exists() for path in found):
        have = sorted(p.stem.removeprefix("instances_") for p in root.glob("annotations/instances_*.json"))
        do = f"set data.split to one of {', '.join(have)}" if have else "correct data.root or set data.labels"
        raise user_error(f"no labels of split {split!r} in {root}", "annotations.json or annotations/*.json", do)
    return [path for path in found if path.exists()]


def _photo_folder(root, split, images):
    for folder in (root / images,) if images else (root / "images", root / split):
        if folder.is_dir():
            return folder
    raise user_error(f"no folder of photos in {root}", images or f"images or {split or 'the split'}", "set data.images")


def _read(path):
    try:
        content = path.read_bytes()
        table = json.loads(content)
    except OSError as error:
        raise user_error(f"{path}: {error.strerror}", "a file of labels", "correct data.labels") from error
    except ValueError as error:
        raise user_error(f"{path} is damaged ({error})", "JSON", "fetch it again") from error
    return table, hashlib.sha256(content).digest()
