"""What a folder of somebody's data is."""

import json
import os
import tarfile
from pathlib import Path

import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.intake.recognize import recognize
from kaleido_jax.intake.survey import survey
from tests.data.sources.opening import photo, write


def photos(folder, *names):
    for name in names:
        photo(folder / name)
    return folder


def fields(root, **choice):
    """The fields of data that are not defaults, without root."""
    data = recognize(root, **choice).data
    return {k: v for k in ("source", "split", "labels", "images") if (v := getattr(data, k))}


def test_a_folder_for_each_class_with_splits_or_without(tmp_path):
    assert fields(photos(tmp_path / "a", "cat/1.jpg", "dog/2.png", ".cache/x.jpg")) == {"source": "folder"}
    root = photos(tmp_path / "b", "train/cat/1.jpg", "val/cat/1.jpg")
    assert fields(root) == {"source": "folder", "split": "train"}
    assert "splits: train, not val (--split=NAME names another)" in recognize(root).notes
    assert fields(root, split="val") == {"source": "folder", "split": "val"}
    photos(tmp_path / "c", "old/cat/1.jpg", "new/cat/1.jpg")
    with pytest.raises(UserError, match="several splits: new, old; expected one of them; name it by --split=NAME"):
        recognize(tmp_path / "c")


def test_a_flat_folder_has_its_name_or_the_text_files_as_captions(tmp_path):
    root = photos(tmp_path / "garden", "1.jpg", "2.jpg", "3.jpg")
    found = recognize(root)
    assert fields(root) == {"source": "folder"} and "'garden'" in found.notes[0] and not found.captions
    write(root / "1.txt", "a tulip\nin  spring")
    write(root / "2.txt", "Käfer")
    found = recognize(root)
    assert [json.loads(line) for line in found.captions.splitlines()] == [
        {"image": "1.jpg", "caption": "a tulip in spring"},
        {"image": "2.jpg", "caption": "Käfer"},
    ]
    assert found.data.source == "table" and "1 photos without a .txt" in found.notes[0]


def test_a_photo_whose_name_is_not_utf_8_keeps_its_text(tmp_path):
    photos(tmp_path, "Käfer.png", "1.png")
    (tmp_path / "1.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    for name, text in ((b"caf\xe9", "a café"), ("Käfer".encode(), "a beetle")):
        write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".txt")), text)
    found = recognize(tmp_path)
    assert '"Käfer.png"' in found.captions
    assert sorted(look.caption for look in survey(found, max_boxes=3, show=False).looks) == ["a beetle", "a café"]


TABLES = {
    "excel": ("t.csv", "\ufeffDatei;Bildunterschrift\n1.jpg;a, b\n", ("Datei", "Bildunterschrift", ""), ";"),
    "hugging face": ("metadata.jsonl", '{"file_name": "1.jpg", "text": "a"}\n', ("file_name", "text", ""), ""),
    "tabs": ("t.tsv", "img\ttitle\tdescription\n1.jpg\ta\tlong\n", ("img", "title", "description"), ""),
    "tabs in csv": ("t.csv", "img\tlabel\n1.jpg\ta\n", ("img", "label", ""), "\t"),
    "two columns": ("t.csv", "x,y\n1.jpg,a\n", ("x", "y", ""), ""),
    "more columns": ("t.csv", "id,x,caption,when\n7,1.jpg,a,2024\n", ("x", "caption", ""), ""),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_with_their_columns_and_separator(case, tmp_path):
    name, text, columns, separator = TABLES[case]
    write(photos(tmp_path, "photos/1.jpg") / name, text)
    data = recognize(tmp_path).data
    assert (data.source, data.labels, data.images) == ("table", (name,), "photos")
    assert (data.table.columns, data.table.separator) == (columns, separator)


def test_a_table_that_is_not_clear_says_what_to_do(tmp_path):
    write(photos(tmp_path, "1.jpg") / "t.csv", "x,y,z\n1.jpg,a,b\n")
    photos(tmp_path, "1.jpg").joinpath("1.jpg").unlink()
    with pytest.raises(UserError, match=r"columns x, y, z; expected .* name them by --columns=IMAGE,CAPTION"):
        recognize(tmp_path)
    photos(tmp_path, "1.jpg")
    assert recognize(tmp_path, columns=["x", "z"]).data.table.columns == ("x", "z", "")
    with pytest.raises(UserError, match="no columns x, w in t.csv"):
        recognize(tmp_path, columns=["x", "w"])


def test_several_tables(tmp_path):
    for name in ("train", "val"):
        write(photos(tmp_path, "1.jpg") / f"{name}.csv", "image,caption\n1.jpg,a\n")
    assert fields(tmp_path) == {"source": "table", "labels": ("train.csv",)}
    assert fields(tmp_path, split="val") == {"source": "table", "labels": ("val.csv",)}


def test_coco_in_its_layouts(tmp_path):
    labels = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], "categories": []}
    write(photos(tmp_path / "a", "images/1.jpg") / "annotations.json", labels)
    assert fields(tmp_path / "a") == {"source": "coco"}
    for split in ("train2017", "val2017"):
        write(photos(tmp_path / "b", f"{split}/1.jpg") / "annotations" / f"instances_{split}.json", labels)
    assert fields(tmp_path / "b") == {"source": "coco", "split": "train2017"}
    write(photos(tmp_path / "c", "1.jpg") / "export.json", labels)  # as labeling tools write it
    assert fields(tmp_path / "c") == {"source": "coco", "labels": ("export.json",), "images": "."}
    write(tmp_path / "d" / "annotations" / "instances_val2017.json", labels)
    with pytest.raises(UserError, match="labels of val2017 in .*; expected photos in .*val2017; fetch them"):
        recognize(tmp_path / "d")


def test_gbc_and_tar_shards(tmp_path):
    write(photos(tmp_path / "a", "img/1.jpg") / "x.jsonl", json.dumps({"vertices": [], "img_path": "1.jpg"}) + "\n")
    assert fields(tmp_path / "a") == {"source": "gbc", "labels": ("x.jsonl",), "images": "img"}
    (tmp_path / "b" / "train").mkdir(parents=True)
    tarfile.open(tmp_path / "b" / "train" / "0.tar", "w").close()
    assert fields(tmp_path / "b") == {"source": "tar", "split": "train"}


def test_what_is_not_recognized_is_one_line(tmp_path):
    with pytest.raises(UserError, match="--data=.*none; expected a folder"):
        recognize(tmp_path / "none")
    with pytest.raises(UserError, match="no pictures recognized in .*; expected a folder for each class"):
        recognize(tmp_path)
    write(tmp_path / "notes.csv", "a,b\n1,2\n")
    with pytest.raises(UserError, match="notes.csv with the columns a, b"):
        recognize(tmp_path)


def test_a_table_whose_paths_no_source_would_follow_is_none(tmp_path):
    root = photos(tmp_path / "data", "1.jpg", "../2.jpg")
    for name in (root / "1.jpg", "../2.jpg", f"{'long ' * 60}.jpg"):
        write(root / "t.csv", f"image,caption\n{name},a\n")
        assert recognize(root).data.source == "folder"
