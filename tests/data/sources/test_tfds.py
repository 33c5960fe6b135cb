"""TFDS: prepared ArrayRecord data sets without TensorFlow; what is missing is one line, what is bad fails alone."""

import io
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from kaleido_jax.config.schema import DataTfds
from kaleido_jax.errors import UserError
from tests.data.sources.opening import open_source, outcomes


def jpeg(tone=100):
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (tone, 0, 0)).save(file, "JPEG", quality=95)
    return file.getvalue()


def prepare(folder, features, splits, file_format="array_record"):
    """A data set as TFDS writes it: the features, the info, and a shard of each split.

    Args:
      folder: ends in NAME/VERSION.
      features: feature -> TFDS's feature.
      splits: split -> examples, each feature's path -> list of bytes or ints.
      file_format: as the info tells it.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    folder.mkdir(parents=True)
    tfds.features.FeaturesDict(features).save_config(folder)
    name, infos = folder.parent.name, []
    for split, examples in splits.items():
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for example in examples:
            lists = {
                path: tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=values))
                if all(isinstance(value, bytes) for value in values)
                else tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=values))
                for path, values in example.items()
            }
            proto = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=lists))
            writer.write(proto.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        lengths = {"name": split, "shardLengths": [str(len(examples))], "numBytes": "1", "filepathTemplate": template}
        infos.append(lengths)
    info = {"name": name, "version": folder.name, "fileFormat": file_format, "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def imagenet(tmp_path):
    from tensorflow_datasets import features as tf

    features = {
        "image": tf.Image(encoding_format="jpeg"),
        "label": tf.ClassLabel(names=["n01440764", "red_fox, Vulpes", "___"]),
        "file_name": tf.Text(),
    }
    rows = [(jpeg(), 0), (jpeg(200), 1), (jpeg()[:60], 1), (jpeg(), 2), (jpeg(), -1)]
    examples = [{"image": [i], "label": [c], "file_name": [b"x.JPEG"]} for i, c in rows]
    prepare(tmp_path / "imagenet2012" / "5.1.0", features, {"train": examples, "validation": examples[1:2]})
    return tmp_path


def test_classes_become_captions_and_images_are_random_access(imagenet):
    source = open_source("tfds", "train", root=imagenet)
    assert source.class_names[:2] == ("tench", "red fox")
    first, second, broken, unnamed, secret = outcomes(source)
    assert (first, second) == ("tench", "red fox")
    assert "cannot be decoded" in broken and "without a caption" in unnamed and "of class -1" in secret
    assert source[1].image.shape == (8, 12, 3) and abs(int(source[1].image[0, 0, 0]) - 200) < 4
    assert source[1].id == source.id(1) == "tfds/imagenet2012/train/00000001"
    assert [source.label(i) for i in range(4)] == [0, 1, 1, 2]
    copy = pickle.loads(pickle.dumps(source))  # as a worker process gets it
    assert copy[1].caption == "red fox" and copy.fingerprint == source.fingerprint
    with pytest.raises(IndexError):
        source[5]


def test_a_split_and_a_version_are_found_or_named(imagenet):
    assert len(open_source("tfds", "validation", root=imagenet, tfds=DataTfds(folder="imagenet2012"))) == 1
    assert len(open_source("tfds", "train", root=imagenet / "imagenet2012" / "5.1.0")) == 5
    for split in ("", "test", "train[:1]"):
        with pytest.raises(UserError, match="one of train, validation; set it"):
            open_source("tfds", split, root=imagenet)
    with pytest.raises(UserError, match="no dataset_info.json in .*coco; expected one folder"):
        open_source("tfds", "train", root=imagenet, tfds=DataTfds(folder="coco"))
    shutil.copytree(imagenet / "imagenet2012" / "5.1.0", imagenet / "imagenet2012" / "5.0.0")
    with pytest.raises(UserError, match="2 data sets or versions .*imagenet2012/5.0.0, .*name one in data.tfds.folder"):
        open_source("tfds", "train", root=imagenet)
    with pytest.raises(UserError, match="a folder; set it to the folder of the data"):
        open_source("tfds", "train", root=imagenet / "absent")


def test_several_captions_are_the_shortest_and_the_longest(tmp_path):
    from tensorflow_datasets import features as tf

    features = {
        "image": tf.Image(),
        "captions": tf.Sequence({"id": np.int64, "text": tf.Text()}),
        "alt": tf.Text(),
        "mask": tf.Image(shape=(None, None, 1)),
    }
    rows = [([b"a dog on grass", b" a dog ", b"  "], b"alt"), ([], b""), ([b"\xff"], b"x"), ([b"one"], b"y")]
    examples = [
        {
            "image": [jpeg()],
            "mask": [b"no image"],
            "captions/id": [1] * len(texts),
            "captions/text": texts,
            "alt": [alt],
        }
        for texts, alt in rows
    ]
    folder = prepare(tmp_path / "toy" / "1.0.0", features, {"train": examples})
    source = open_source("tfds", root=folder, tfds=DataTfds(caption="captions/text"))
    assert (source[0].caption, source[0].description) == ("a dog", "a dog on grass") and source.class_names == ()
    assert source[3].description is None
    _, none, not_utf8, _ = outcomes(source)
    assert "without a caption; expected words in the feature captions/text" in none and "not UTF-8" in not_utf8
    with pytest.raises(UserError, match="expected a source with classes"):
        source.label(0)

    told = open_source("tfds", root=folder, tfds=DataTfds(caption="alt", description="captions/text"))
    assert (told[0].caption, told[0].description) == ("alt", "a dog on grass")
    assert told.fingerprint != source.fingerprint
    for keys, usable in (
        (DataTfds(), "class or text .alt, captions/text"),
        (DataTfds(caption="captions/id"), "class or text"),
        (DataTfds(caption="alt", image="alt"), "image .image, mask"),
        (DataTfds(caption="alt", description="image"), "of text .alt, captions/text"),
    ):
        with pytest.raises(UserError, match=usable):
            open_source("tfds", root=folder, tfds=keys)


def test_other_formats_and_missing_files_are_told_in_one_line(imagenet):
    folder = imagenet / "imagenet2012" / "5.1.0"
    info = json.loads((folder / "dataset_info.json").read_text())

    def write(**changes):
        (folder / "dataset_info.json").write_text(json.dumps(info | changes))

    write(fileFormat="tfrecord")
    with pytest.raises(UserError, match="is prepared as tfrecord; expected array_record files; `tfds convert_format"):
        open_source("tfds", "train", root=imagenet)
    write(fileFormat="tfrecord", alternativeFileFormats=["array_record"])
    assert open_source("tfds", "train", root=imagenet)[0].caption == "tench"
    write()
    (folder / "features.json").rename(folder / "kept")
    with pytest.raises(UserError, match="a folder that TFDS 4 has prepared"):
        open_source("tfds", "train", root=imagenet)
    (folder / "kept").rename(folder / "features.json")
    shard = folder / "imagenet2012-train.array_record-00000-of-00001"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    found = outcomes(open_source("tfds", "train", root=imagenet))
    assert len(found) == 5 and all("that is empty; expected a whole ArrayRecord" in reason for reason in found)
    position = whole.index(b"Exif" if b"Exif" in whole else b"JFIF")
    shard.write_bytes(whole[:position] + b"\0" + whole[position + 1 :])
    damaged, *others = outcomes(open_source("tfds", "train", root=imagenet))
    assert "cannot be read (Corrupted" in damaged and others[0] == "red fox"
    shard.unlink()
    with pytest.raises(UserError, match="1 files of split train missing .*imagenet2012-train.array_record-00000-of-0"):
        open_source("tfds", "train", root=imagenet)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "label.labels.txt"])
def test_damaged_descriptions_are_a_user_error_or_harmless(imagenet, name):
    path = imagenet / "imagenet2012" / "5.1.0" / name
    whole = path.read_bytes()
    for damage in (b"", b"{", b"[]", b"5", b"\xff\xfe", whole[: len(whole) // 2], whole.replace(b"image", b"imago")):
        path.write_bytes(damage)
        try:
            outcomes(open_source("tfds", "train", root=imagenet))
        except UserError as error:
            assert "\n" not in str(error)


def test_tfds_is_imported_for_this_source_alone_and_never_tensorflow(imagenet):
    program = """
import sys
from kaleido_jax.config.schema import Data
from kaleido_jax.data import sources
sources.source_kind("tfds"), sources.source_kind("tar")
assert "tensorflow_datasets" not in sys.modules
source = sources.open_source(Data(source="tfds", split="train", root=sys.argv[1]))
assert source[0].caption == "tench" and "tensorflow_datasets" in sys.modules
print("tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program, imagenet], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
