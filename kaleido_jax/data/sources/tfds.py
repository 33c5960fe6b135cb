"""TFDS data sets in ArrayRecord files, read without TensorFlow: ImageNet, COCO's captions and others."""

from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError

from kaleido_jax.data.images import decode_photo
from kaleido_jax.data.sources import register
from kaleido_jax.data.sources.base import Example, SourceSettings, check_index, no_classes, row_id
from kaleido_jax.data.sources.imagenet import class_caption, warn_of_shared
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.files import fingerprint, refuse_lfs_pointer

_INFO = "dataset_info.json"  # in the folder of each prepared version
_FORMAT = "array_record"  # TFDS's word for it
# What TFDS raises for a folder that is damaged, was written before TFDS 4, or has features that are not installed.
_DAMAGED = (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ImportError, ParseError)
# What reading an example raises if its shard is cut off or damaged, or holds something else.
_UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, LookupError, DecodeError)


class TfdsSource:
    """The examples of one split of a prepared data set, in the order of its files.

    config.data.tfds names the features. A class is captioned by its name, ImageNet's as in imagenet.py. Of several
    captions the shortest is the caption and the longest the description, as with COCO. TFDS hands over images encoded,
    since decode_photo also turns them upright and says what is wrong with a broken one.
    """

    def __init__(self, settings: SourceSettings) -> None:
        """Reads what the data set is, none of its examples.

        Raises:
          UserError: there is no data set, it is not in ArrayRecord files or some are missing, or it lacks the split or
            a feature.
        """
        import tensorflow_datasets as tfds  # a second, and most runs have another source

        keys = settings.data.tfds
        builder = _open_builder(_find_version(settings.root, keys.folder))
        info, kinds = builder.info, _kinds(builder.info.features)
        self._keys, self._name, self._split = keys, info.name, _check_split(builder, settings.data.split)
        for field, wanted in (("image", ("image",)), ("caption", ("class", "text")), ("description", ("text",))):
            path = getattr(keys, field)
            if kinds.get(path) not in wanted and (path or field != "description"):
                usable = ", ".join(sorted(name for name, kind in kinds.items() if kind in wanted)) or "it has none"
                found = f"config.data.tfds.{field} = {path!r} for {builder.data_dir}"
                raise user_error(found, f"one of its features of {' or '.join(wanted)} ({usable})", "set it")

        names = info.features[keys.caption].names if kinds[keys.caption] == "class" else []
        self._captions = [_class_caption(name) for name in names]
        warn_of_shared(((n, c) for n, c in zip(names, self._captions, strict=True) if c), Path(builder.data_dir))
        self.class_names = tuple(c or name for c, name in zip(self._captions, names, strict=True))
        encoded = {name: tfds.decode.SkipDecoding() for name, kind in kinds.items() if kind == "image"}
        self._examples = builder.as_data_source(self._split, decoders=encoded)
        size = (info.splits[self._split].shard_lengths, int(info.splits[self._split].num_bytes))
        parts = ("tfds", info.full_name, self._split, keys.image, keys.caption, keys.description, repr(size))
        self.fingerprint = fingerprint("\n".join([*parts, *self.class_names]))

    def __len__(self) -> int:
        return len(self._examples)

    def id(self, index: int) -> str:
        """The id of one example, e.g. "tfds/imagenet2012/train/00000017"."""
        return row_id(f"tfds/{self._name}", self._split, check_index(index, len(self)), 8)

    def label(self, index: int) -> int:
        """Index into class_names of one example.

        Raises:
          UserError: the data set has captions instead, or the example cannot be read.
        """
        if not self.class_names:
            raise no_classes("an example with captions")
        return self._class(self._read(index))

    def version(self, index: int) -> str:
        """Changes with the data set: its examples are prepared all at once."""
        check_index(index, len(self))
        return self.fingerprint

    def image_bytes(self, index: int) -> bytes:
        """The encoded image in the example."""
        return self._read(index)[self._keys.image]

    def __getitem__(self, index: int) -> Example:
        example = self._read(index)
        if self.class_names:
            texts = [self._captions[self._class(example)] or ""]
        else:
            texts = sorted(_texts(example, self._keys.caption), key=len)
        if not any(texts):
            do = "leave it out, or name another feature in data.tfds.caption"
            raise user_error("an example without a caption", f"words in the feature {self._keys.caption}", do)
        told = sorted(_texts(example, self._keys.description), key=len) if self._keys.description else []
        return Example(
            id=self.id(index),
            image=decode_photo(example[self._keys.image]),
            caption=texts[0],
            description=told[-1] if told else texts[-1] if len(texts) > 1 else None,
        )

    def _read(self, index: int) -> dict[str, Any]:
        index = check_index(index, len(self))
        do = "copy or prepare its file again"
        try:
            example = self._examples[index]
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())[:120]
            raise user_error(f"an example that cannot be read ({reason})", "a whole ArrayRecord file", do) from error
        # A file that was cut off seems to hold empty records; their features are all None.
        if any(example.get(path, "") is None for path in (self._keys.image, self._keys.caption)):
            raise user_error("an example that is empty", "a whole ArrayRecord file", do)
        return example

    def _class(self, example: dict[str, Any]) -> int:
        number = int(example[self._keys.caption])
        if not 0 <= number < len(self.class_names):  # -1 where the classes are kept secret, as in ImageNet's test split
            raise user_error(f"an example of class {number}", f"0 to {len(self.class_names) - 1}", "use another split")
        return number


# ------------------------------------------------------------------------------------- what the data set is
def _find_version(root: Path, folder: str) -> Path:
    """The folder of a prepared version: root/FOLDER itself, or the only one inside it, such as FOLDER/1.0.0."""
    top = root / folder
    if (top / _INFO).is_file():
        return top
    found = sorted(info.parent for depth in ("*", "*/*", "*/*/*") for info in top.glob(f"{depth}/{_INFO}"))
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(root)) for path in found[:10])
        have = f"{len(found)} data sets or versions in {top} ({names})" if found else f"no {_INFO} in {top}"
        do = "name one in data.tfds.folder" if found else "correct data.root or data.tfds.folder"
        raise user_error(have, "one folder that TFDS has prepared", do)
    return found[0]


def _open_builder(folder: Path) -> Any:
    """TFDS's builder of a prepared folder; needs neither the data set's own code nor the network."""
    import tensorflow_datasets as tfds

    try:
        refuse_lfs_pointer(folder / _INFO)
        builder = tfds.builder_from_directory(folder)
        formats = sorted(found.value for found in builder.info.available_file_formats())
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:200]
        raise user_error(f"{folder} ({reason})", "a folder that TFDS 4 has prepared", "prepare it again") from error
    if _FORMAT not in formats:
        do = f"`tfds convert_format --dataset_version_dir={folder} --out_file_format={_FORMAT}` adds them"
        raise user_error(f"{folder} is prepared as {', '.join(formats) or 'nothing'}", f"{_FORMAT} files", do)
    builder.info.set_file_format(_FORMAT, override=True, override_if_initialized=True)  # it may have several
    return builder


def _check_split(builder: Any, split: str) -> str:
    """The split's name; "" stands for the only one."""
    splits = builder.info.splits
    if not split and len(splits) == 1:
        split = next(iter(splits))
    if split not in list(splits):  # `in` alone also takes "train[:10%]", which is no name for shards
        found = f"config.data.split = {split!r} for {builder.data_dir}"
        raise user_error(found, f"one of {', '.join(splits)}", "set it")
    missing = [path.name for path in splits[split].filepaths if not path.is_file()]
    if missing or not splits[split].num_examples:
        found = f"{len(missing)} files of split {split} missing in {builder.data_dir} ({', '.join(missing[:3])})"
        found = found if missing else f"no example in split {split} of {builder.data_dir}"
        raise user_error(found, "all of the split", "prepare or copy the data set again")
    return split


def _kinds(features: Any, above: str = "", several: bool = False) -> dict[str, str]:
    """The path of each feature that can be used -> "image", "class" or "text".

    Args:
      features: a FeaturesDict.
      above: path of the feature that holds it, with its slash.
      several: whether an example has several of it.
    """
    from tensorflow_datasets import features as tf

    kinds = {}
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)  # what a sequence holds
        if isinstance(inner, tf.FeaturesDict):
            kinds |= _kinds(inner, f"{above}{name}/", several or inner is not feature)
        elif isinstance(feature, tf.Image) and not above:
            kinds[name] = "image"
        elif isinstance(feature, tf.ClassLabel) and not above:
            kinds[name] = "class"
        elif isinstance(inner, tf.Tensor) and inner.np_dtype is np.dtype(object) and (inner is feature or not several):
            kinds[f"{above}{name}"] = "text"
    return kinds


def _class_caption(name: str) -> str | None:
    try:
        return class_caption(name)
    except UserError:  # a name without a word: the images of this class fail, the others are used
        return None


# --------------------------------------------------------------------------------------- what an example says
def _texts(example: dict[str, Any], path: str) -> list[str]:
    """The texts of one feature that are not empty."""
    value: Any = example
    for part in path.split("/"):
        value = value[part]
    several = [value] if isinstance(value, bytes) else [] if value is None else value
    try:
        texts = [text.decode() for text in several]
    except UnicodeDecodeError as error:
        raise user_error("a caption that is not UTF-8", "text in UTF-8", "leave it out") from error
    return [text.strip() for text in texts if text.strip()]


register("tfds", TfdsSource)
