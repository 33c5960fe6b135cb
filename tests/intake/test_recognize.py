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


def captions(found):
    return sorted(look.caption for look in survey(found, max_boxes=3, show=False).looks)


def test_a_flat_folder_has_its_name_or_the_text_files_as_captions(tmp_path):
    root = photos(tmp_path / "garden", "1.jpg", "2.jpg", "3.jpg")
    found = recognize(root)
    assert fields(root) == {"source": "folder"} and "'garden'" in found.notes[0]
    write(root / "1.txt", "a tulip\nin  spring")
    with pytest.raises(UserError, match="1 of 3 photos in .* with a text file; expected one for each; write"):
        recognize(root)
    write(root / "2.caption", "Käfer")
    found = recognize(root)
    assert found.data.source == "text_files" and "1 of 3 photos have no text file" in found.notes[0]
    assert captions(found) == ["Käfer", "a tulip in spring"]


def test_a_photo_whose_name_is_not_utf_8_keeps_its_text(tmp_path):
    photos(tmp_path, "Käfer.png", "1.png")
    (tmp_path / "1.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    for name, text in ((b"caf\xe9", "a café"), ("Käfer".encode(), "a beetle")):
        write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".txt")), text)
    assert captions(recognize(tmp_path)) == ["a beetle", "a café"]


PARTS = {  # files of a layout -> the split that is taken, and what is told of it
    "splits": (("train/1.jpg", "valid/1.jpg"), "train", "splits: train, not valid (--split=NAME names another)"),
    "pictures": (("images/1.jpg", "masks/1.png", "labels/1.txt"), "images", "not used beside images: labels, masks"),
    "YOLO's": (("images/train/1.jpg", "images/val/1.jpg"), "images/train", "train, not val (--split=images/NAME names"),
    "VOC's": (("JPEGImages/1.jpg", "SegmentationClass/1.png", "ImageSets/Main/a.txt"), "JPEGImages", "ImageSets"),
}


@pytest.mark.parametrize("case", PARTS)
def test_splits_and_parts_of_a_data_set_are_no_classes(case, tmp_path):
    names, split, note = PARTS[case]
    root = tmp_path / "street"
    for name in names:
        photos(root, name) if Path(name).suffix != ".txt" else write(root / name, "0 .5 .5 .2 .2")
    found = recognize(root)
    assert fields(root) == {"source": "folder", "split": split} and note in " ".join(found.notes)
    assert captions(found) == ["street"] and "'street'" in found.notes[-1]


def test_class_folders_in_splits_and_classes_with_the_names_of_splits(tmp_path):
    root = photos(tmp_path / "a", "images/train/cat/1.jpg", "images/val/cat/1.jpg")
    assert fields(root) == {"source": "folder", "split": "images/train"} and captions(recognize(root)) == ["cat"]
    root = photos(tmp_path / "b", "train/1.jpg", "bus/1.jpg")
    assert fields(root) == {"source": "folder"} and captions(recognize(root)) == ["bus", "train"]


def test_splits_with_labels_of_their_own(tmp_path):
    labels = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], "categories": []}
    for split in ("train", "test"):
        write(photos(tmp_path / "a", f"{split}/1.jpg") / split / "_annotations.coco.json", labels)
        write(photos(tmp_path / "b", f"{split}/1.jpg") / split / "metadata.csv", f"file_name,text\n1.jpg,of {split}\n")
    found = recognize(tmp_path / "a")
    assert found.data.source == "coco" and found.data.root.endswith("train") and "train, not test" in found.notes[0]
    assert captions(recognize(tmp_path / "b")) == ["of train"]
    assert captions(recognize(tmp_path / "b", split="test")) == ["of test"]
    with pytest.raises(UserError, match="no pictures recognized in .*none"):
        recognize(tmp_path / "b", split="none")
    (tmp_path / "b" / "train" / "metadata.csv").unlink()  # the other split is not taken in its place
    assert fields(tmp_path / "b") == {"source": "folder", "split": "train"}


def test_text_files_in_folders_are_captions_if_nearly_all_photos_have_one(tmp_path):
    for number in range(10):  # as img2dataset's files and kohya's folders
        write(photos(tmp_path, f"0000{number % 2}/{number}.jpg") / f"0000{number % 2}/{number}.txt", f"no. {number}")
    assert captions(recognize(tmp_path)) == [f"no. {number}" for number in range(10)]
    for number in range(4):
        (tmp_path / f"0000{number % 2}/{number}.txt").unlink()
    found = recognize(tmp_path)
    assert found.data.source == "folder" and found.notes == ("not used: 6 text files, since 4 photos have none",)


@pytest.mark.parametrize("image, text", [("1.JPG", "1.TXT"), ("1.jpg", "1.jpg.txt"), ("1.Png", "1.Caption")])
def test_text_files_are_found_whatever_the_case_and_behind_the_suffix_too(image, text, tmp_path):
    write(photos(tmp_path, image) / text, "a tulip")
    found = recognize(tmp_path)
    assert found.data.source == "text_files" and captions(found) == ["a tulip"]


@pytest.mark.parametrize("mark", [",", "\t"])
def test_a_table_in_a_text_file_as_kaggle_ships_flickr8k(mark, tmp_path):
    root = photos(tmp_path, "Images/1_a.jpg", "Images/2_b.jpg")
    rows = [["image", "caption"], ["1_a.jpg", "a child"], ["1_a.jpg", "a girl"], ["2_b.jpg", "two dogs"]]
    write(root / "captions.txt", "".join(mark.join(row) + "\n" for row in rows))
    write(root / "readme.txt", "Photos, see 1_a.jpg,\nof Flickr,\nby their owners,\nfor research\n")
    found = recognize(root)
    assert fields(root) == {"source": "table", "labels": ("captions.txt",), "images": "Images"}
    assert captions(found) == ["a child", "a girl", "two dogs"] and found.notes == ()
    write(root / "captions.txt", "1_a.jpg#0\ta child\n1_a.jpg#1\ta girl\n")
    with pytest.raises(UserError, match="captions.txt without a header; .*correct names such as 1.jpg#0, or take it"):
        recognize(root)


@pytest.mark.parametrize("folder", ["", "photos"])
@pytest.mark.parametrize("table", ["t.csv", "t.jsonl"])
def test_a_table_of_images_without_their_suffix_is_no_reason_to_take_a_folders_name(table, folder, tmp_path):
    root = photos(tmp_path / "data", *(str(Path(folder, f"{n}.jpg")) for n in range(2)))
    rows = {
        "t.csv": "id,caption\n0,cap 0\n1,cap 1\n",
        "t.jsonl": '{"id": 0, "caption": "a"}\n{"id": 1, "caption": "b"}',
    }
    write(root / table, rows[table])
    with pytest.raises(UserError, match=f"{table} with images without their suffix in the column 'id'; expected file"):
        recognize(root)


def test_boxes_in_yolos_form_are_no_captions(tmp_path):
    root = photos(tmp_path / "street", "1.jpg", "2.jpg")
    write(root / "1.txt", "0 0.5 0.5 0.2 0.2\n11 0.1 .2 1e-3 0.4\n")
    write(root / "2.txt", "3 0 0 1 1")
    found = recognize(root)
    assert captions(found) == ["street", "street"] and "2 text files of boxes in YOLO's form" in found.notes[-1]


def test_folders_in_a_class_folder_are_told(tmp_path):
    root = photos(tmp_path, "animals/cat/1.jpg", "misc/1.jpg", "animals/dog/1.jpg")
    found = recognize(root)
    assert captions(found) == ["misc"] and "folders in animals are not used" in found.notes[0]
    assert captions(recognize(root, split="animals")) == ["cat", "dog"]


TABLES = {
    "excel": ("t.csv", "\ufeffDatei;Bildunterschrift\n1.jpg;a, b\n", ("Datei", "Bildunterschrift", ""), ";"),
    "hugging face": ("metadata.jsonl", '{"file_name": "1.jpg", "text": "a"}\n', ("file_name", "text", ""), ""),
    "a list": ("train.json", '[{"image_id": 7, "image": "1.jpg", "caption": "a"}]', ("image", "caption", ""), ""),
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


def test_of_several_columns_of_images_the_one_that_is_named_so_is_taken(tmp_path):
    write(photos(tmp_path, "1.jpg", "m/1.png") / "t.csv", "mask,Image,caption\nm/1.png,1.jpg,a\n")
    found = recognize(tmp_path)
    assert found.data.table.columns == ("Image", "caption", "")
    assert found.notes == ("images of the column Image, not mask (--columns names another)",)


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
    write(tmp_path / "export.json", {"images": [{"file_name": "far/1.jpg"}]})
    with pytest.raises(UserError, match="export.json is of photos such as 'far/1.jpg'; expected these below --data"):
        recognize(tmp_path)
    write(tmp_path / "notes.csv", "a,b\n1,2\n")
    with pytest.raises(UserError, match="notes.csv with the columns a, b"):
        recognize(tmp_path)


READ = {
    "long cells": ("t.csv", f'image,caption,description\n1.jpg,a,"{"word " * 40_000}"\n2.jpg,b,c\n'),
    "a comment": (
        "t.jsonl",
        '# made by me\n\n[]\n{"image": "1.jpg", "caption": "a"}\n{"image": "2.jpg", "caption": "b"}\n',
    ),
    "a list": ("t.json", '\n[7, {"image": "1.jpg", "caption": "a"}, {"image": "2.jpg", "caption": "b"}]'),
    "spaces before cells": ("t.csv", "caption, image\na, 1.jpg\nb, 2.jpg\n"),
    "spaces before quotes": ("t.csv", 'image,caption\n1.jpg, "a"\n2.jpg, "b"\n'),
    "a bad row": ("t.csv", 'image,caption\n3.jpg,"a "big" one"\n1.jpg,a\n2.jpg,b\n'),
    "windows": ("t.csv", "image,caption\n.\\1.jpg,a\n.\\2.jpg,b\n"),
    "a long name": ("t.csv", f"image,caption\n1.jpg,a\n2.jpg,b\n{'long ' * 60}.jpg,c\n"),
}


@pytest.mark.parametrize("case", READ)
def test_tables_as_people_have_them_are_read_by_init_and_by_their_source(case, tmp_path):
    name, text = READ[case]
    write(photos(tmp_path, "1.jpg", "2.jpg") / name, text)
    found = recognize(tmp_path)
    assert (found.data.source, found.notes) == ("table", ())
    assert sorted(look.caption for look in survey(found, max_boxes=3, show=False).looks) == ["a", "b"]


UNUSED = {
    "utf-16": (
        "t.csv",
        "image,caption\n1.jpg,a\n".encode("utf-16"),
        "is not UTF-8; expected text in UTF-8; convert it",
    ),
    "utf-16 without a mark": ("t.csv", "image,caption\n1.jpg,a\n".encode("utf-16-le"), "is not UTF-8"),
    "json": ("t.jsonl", '["1.jpg", "a"]\n', "has no JSON object in its first 50 lines"),
    "a list of lists": ("l.json", '[["1.jpg", "a"]]', "has no JSON object in its first 50 rows"),
    "half a list": ("l.json", '[{"image": "1.jpg", "caption": "a"},', "that is not JSON"),
    "two lines in a name": ("t.csv", 'x,"y\nz",w\n1.jpg,a,b\n', "columns x, y z, w; expected a column of image"),
    "half a character": (
        "l.jsonl",
        '{"image": "1.jpg", "\\ud83d": "a"}',
        "columns image, ; expected a column of image",
    ),
    "a list of other columns": ("l.json", '[{"x": "1.jpg", "y": "a", "z": "b"}]', "columns x, y, z; expected"),
    "a quote": ("t.csv", 'image,caption\n1.jpg,"a\n', "line 2 opens a quoted cell that never ends"),
    "quotes": ("t.csv", 'image,caption\n1.jpg,"a "big" one"\n', "line 2 is not a row of CSV"),
    "other columns": ("t.csv", "x,y,z\n1.jpg,a,b\n", r"columns x, y, z; expected .* name them by --columns"),
    "absolute": ("t.csv", "image,caption\n/1.jpg,a\n", "image files, as paths below --data"),
    "above": ("t.csv", "image,caption\n../2.jpg,a\n", "image files, as paths below --data"),
    "long": ("t.csv", f"image,caption\n{'long ' * 60}.jpg,a\n", "image files, as paths below --data"),
    "pointer": ("t.csv", "version https://git-lfs.github.com/spec/v1\noid 0\n", "is a git-LFS pointer"),
    "coco": (
        "t.json",
        json.dumps({"images": [{"file_name": "/9.jpg"}]}),
        "photos such as '/9.jpg'; expected these below",
    ),
}


@pytest.mark.parametrize("case", UNUSED)
@pytest.mark.parametrize("folder", ["", "photos"])
def test_a_table_that_cannot_be_used_is_no_reason_to_take_a_folders_name(case, folder, tmp_path):
    name, content, reason = UNUSED[case]
    root = photos(tmp_path / "data", str(Path(folder, "1.jpg")), "../2.jpg")
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"{name}.*{reason}") as error:
        recognize(root)
    assert "\n" not in str(error.value) and str(error.value).endswith("take it away to do without its captions")
    (root / folder / "1.txt").write_text("a tulip")  # captions of their own
    captioned = recognize(root) if not folder else recognize(photos(root, "b/1.jpg"))
    assert captioned.data.source == ("folder" if folder else "text_files")
    note = captioned.notes[-1]
    assert note.startswith("not used: ") and name in note


def test_tables_in_other_places_are_told(tmp_path):
    row = "image,caption\n1.jpg,a\n"
    write(photos(tmp_path / "a", "first/1.jpg") / "first" / "metadata.csv", row)
    with pytest.raises(UserError, match="metadata.csv is in a folder of images; .* try --data with its folder"):
        recognize(tmp_path / "a")
    assert recognize(tmp_path / "a" / "first").data.source == "table"
    write(photos(tmp_path / "b", "train/1.jpg") / "captions.csv", "image,caption\ntrain/1.jpg,a\n")
    with pytest.raises(UserError, match="captions.csv is not of --split=train; .* or leave --split out"):
        recognize(tmp_path / "b", split="train")
    root = photos(tmp_path / "c", "1.jpg")
    for name in "tuvwxy":
        write(root / f"{name}.csv", row if name == "t" else "price,when\n1,2\n")
    assert recognize(root).data.labels == ("t.csv",)
    assert "u.csv with the columns price, when" in recognize(root).notes[0] and len(recognize(root).notes) == 4
    (root / "t.csv").unlink()  # the others name no image
    assert recognize(root).data.source == "folder" and "2 more tables" in recognize(root).notes[-1]


def test_a_list_that_names_no_image_is_told_and_changes_nothing(tmp_path):
    write(photos(tmp_path, "1.jpg") / "tags.json", [{"tag": "red"}, {"tag": "blue"}])
    found = recognize(tmp_path)
    assert found.data.source == "folder" and "tags.json with the columns tag" in found.notes[-1]
    write(tmp_path / "settings.json", {"a": 1})
    assert recognize(tmp_path).notes == found.notes


def test_what_belongs_to_one_photo_alone_is_no_table(tmp_path):
    write(photos(tmp_path, "2.jpg") / "2.json", [{"image": "1.jpg", "caption": "a"}])
    write(photos(tmp_path, "1.jpg") / "1.json", {"images": [{"file_name": "other.jpg"}]})
    assert len(recognize(tmp_path).notes) == 1


def test_lvis_and_images_without_a_name(tmp_path):
    address = "http://images.cocodataset.org/val2017/1.jpg"
    images = [
        {"id": 1, "coco_url": address},
        {"id": 2},
        None,
        {"id": 3, "file_name": 5},
        {"id": 4, "file_name": "1.jpg"},
    ]
    labels = {"images": images, "annotations": [], "categories": []}
    write(photos(tmp_path, "val2017/1.jpg") / "lvis_v1_val.json", labels)
    assert fields(tmp_path) == {"source": "coco", "labels": ("lvis_v1_val.json",), "images": "val2017"}


def test_a_folder_of_photos_that_are_not_read_is_told_as_such(tmp_path):
    for name in ("1.HEIC", "2.heic", "raw/3.DNG", "4.mov", "._5.heic"):
        write(tmp_path / "album" / name, "")
    expected = r"3 photos in .*album, whose formats are not read \(.dng, .heic\); expected one of .jpg, .*; make JPEGs"
    with pytest.raises(UserError, match=expected):
        recognize(tmp_path / "album")


def test_most_photos_beside_the_folders_of_classes_are_not_passed_over(tmp_path):
    photos(tmp_path / "album", "1.jpg", "2.jpg", "3.jpg", "old/4.jpg", "old/5.jpg")
    expected = r"3 photos in .*album beside folders with 2 \(old\); expected most photos in folders, or all outside; "
    with pytest.raises(UserError, match=expected):
        recognize(tmp_path / "album")
    photos(tmp_path / "album", "old/6.jpg")
    assert recognize(tmp_path / "album").what == "one folder for each class"
