"""Labels that others made, read one example at a time; bad rows are failures of their own."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.data.sources.base import open_source
from kaleido_jax.data.sources.imagenet import class_captions
from kaleido_jax.errors import UserError


def _photo(path, width=12, height=8, tone=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (tone, 0, 0)).save(path)


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


# -------------------------------------------------------------------------------------------------- COCO
@pytest.fixture
def coco(tmp_path):
    images = [
        {"id": 9, "file_name": "b.png", "width": 12, "height": 8, "license": 2, "flickr_url": "http://f/9"},
        {"id": 3, "file_name": "a.png", "width": 12, "height": 8, "license": 4},
        {"id": 11, "file_name": "../../secret.png", "width": 12, "height": 8, "license": 4},
        {"id": 12, "file_name": "b.png", "width": 99, "height": 8, "license": 4},
    ]
    objects = [
        {"id": 1, "image_id": 3, "category_id": 7, "bbox": [2, 1, 4, 6], "iscrowd": 0, "segmentation": []},
        {
            "id": 2,
            "image_id": 3,
            "category_id": 7,
            "bbox": [0, 0, 12, 8],
            "iscrowd": 1,
            "segmentation": {"size": [8, 12], "counts": [0, 96]},
        },
        {
            "id": 4,
            "image_id": 9,
            "category_id": 8,
            "bbox": [1, 1, 2, 2],
            "segmentation": {"size": [8, 12], "counts": [9, 2, 6, 2, 77]},
        },
    ]
    names = [{"id": 7, "name": "cat"}, {"id": 8, "name": "potted plant"}]
    licenses = [{"id": 2, "name": "NC"}, {"id": 4, "name": "BY"}]
    captions = [{"image_id": 3, "caption": c} for c in ("a short one ", "quite a long caption", "in the middle")]
    whole = {"images": images, "annotations": objects, "categories": names, "licenses": licenses}
    _write(tmp_path / "annotations" / "instances_val.json", whole)
    _write(tmp_path / "annotations" / "captions_val.json", {"images": images, "annotations": captions})
    for name in ("a.png", "b.png"):
        _photo(tmp_path / "val" / name)
    return tmp_path


def test_coco_in_its_own_layout(coco):
    source = open_source("coco", "val", root=str(coco))
    assert len(source) == 4 and source.id(0) == "coco/val/000000000003"
    example = source[0]
    assert (example.caption, example.description, example.credit) == ("a short one", "quite a long caption", "BY")
    assert [(o.phrase, o.box, o.mask) for o in example.objects] == [("cat", (2, 1, 6, 7), None)]  # no crowd
    other = source[1]
    assert other.caption == "" and other.description is None and other.credit == "http://f/9, NC"
    assert other.objects[0].phrase == "potted plant"
    expected = np.zeros((8, 12), bool)
    expected[1:3, 1:3] = True
    np.testing.assert_array_equal(other.objects[0].mask, expected)


def test_coco_keeps_to_the_licenses_asked_for(coco):
    assert len(open_source("coco", "val", root=str(coco), licenses=(2,))) == 1
    with pytest.raises(UserError, match=r"under licenses \(8,\)"):
        open_source("coco", "val", root=str(coco), licenses=(8,))


def test_coco_rows_that_are_bad_fail_alone(coco):
    source = open_source("coco", "val", root=str(coco))
    with pytest.raises(UserError, match="no name of a file"):
        source[2]
    with pytest.raises(UserError, match="12x8 px whose labels are for 99x8"):
        source[3]
    (coco / "val" / "a.png").unlink()
    with pytest.raises(UserError, match="image file: No such file") as error:
        source[0]
    assert str(coco) not in str(error.value)  # equal failures must count as one


def test_coco_in_one_file_with_splits_and_captions_inside(tmp_path):
    images = [{"id": n, "file_name": f"{n}.png", "split": s, "captions": ["it"]} for n, s in ((1, "a"), (2, "b"))]
    _write(tmp_path / "annotations.json", {"images": images, "annotations": [], "categories": []})
    for n in (1, 2):
        _photo(tmp_path / "images" / f"{n}.png")
    assert [open_source("coco", split, root=str(tmp_path)).id(0) for split in "ab"] == [
        "coco/a/000000000001",
        "coco/b/000000000002",
    ]
    assert len(open_source("coco", root=str(tmp_path))) == 2
    assert open_source("coco", "b", root=str(tmp_path))[0].caption == "it"


def test_coco_without_its_files_says_which_splits_there_are(coco):
    with pytest.raises(UserError, match="set data.split to one of val"):
        open_source("coco", "train", root=str(coco))
    with pytest.raises(UserError, match="config.data.root = None"):
        open_source("coco")
    for damage in ("{", '{"images": [{"id": "x"}]}', "[]"):
        (coco / "annotations" / "instances_val.json").write_text(damage)
        with pytest.raises(UserError, match="instances_val.json is"):
            open_source("coco", "val", root=str(coco))


# --------------------------------------------------------------------------------------------------- GBC
def _vertex(name, label, box, text=None):
    left, top, right, bottom = box
    edges = [] if text is None else [{"source": "", "text": text, "target": name}]
    box = {"left": left, "top": top, "right": right, "bottom": bottom, "confidence": 0.5}
    return {"vertex_id": name, "bbox": box, "label": label, "descs": [], "in_edges": edges, "out_edges": []}


@pytest.fixture
def gbc(tmp_path):
    vertices = [
        _vertex("", "image", (0, 0, 1, 1)),
        _vertex("snow", "entity", (0, 0.5, 1, 1), "snow"),
        _vertex("trees", "composition", (0, 0, 1, 0.5), "trees"),
        _vertex("trees_1", "entity", (0.25, 0, 0.5, 0.5), "tree 2"),
    ]
    row = {
        "vertices": vertices,
        "img_url": "http://h/1",
        "img_path": None,
        "original_caption": "alt text",
        "short_caption": "short",
        "detail_caption": "Much is said. ",
    }
    rows = [row, row | {"img_path": "x.png", "original_caption": None}, row | {"img_url": "http://h/none"}]
    rows.append(row | {"vertices": [{"label": "entity"}]})
    lines = [json.dumps(r) for r in rows] + ["{not json", "", "[1]"]
    _write(tmp_path / "part-0.jsonl", "\n".join(lines[:2]) + "\n")
    _write(tmp_path / "part-1.jsonl", "\n".join(lines[2:]))
    _write(tmp_path / "images.csv", "img_url,img_path\nhttp://h/1,y.png\n")
    _photo(tmp_path / "x.png", tone=1)
    _photo(tmp_path / "y.png", tone=2)
    return tmp_path


def test_gbc_regions_become_objects(gbc):
    source = open_source("gbc", root=str(gbc))
    first, second = source[0], source[1]
    assert len(source) == 6 and first.id == "gbc/00000000"
    assert (first.caption, first.description) == ("alt text", "Much is said.") and second.caption == "short"
    assert first.image[0, 0, 0] == 2 and second.image[0, 0, 0] == 1  # by address and by path
    assert [(o.phrase, o.box) for o in first.objects] == [("snow", (0, 4, 12, 8)), ("tree", (3, 0, 6, 4))]


def test_gbc_rows_that_are_bad_fail_alone(gbc):
    source = open_source("gbc", root=str(gbc))
    for index, told in ((2, "was not fetched"), (3, "not GBC's"), (4, "no JSON;"), (5, "no JSON object")):
        with pytest.raises(UserError, match=told):
            source[index]
    (gbc / "empty.jsonl").touch()
    with pytest.raises(UserError, match="no row"):
        open_source("gbc", root=str(gbc), labels=("empty.jsonl",))


# ------------------------------------------------------------------------------------------------ tables
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_tables_of_captions(tmp_path, kind):
    rows = [
        ("a/1.png", 'says "hi", twice', "long"),
        ("a/2.png", "plain", ""),
        ("a/1.png", " ", ""),
        ("/x.png", "c", ""),
    ]
    if kind == "jsonl":
        text = "\n".join(json.dumps(dict(zip(("image", "caption", "description"), r, strict=True))) for r in rows)
    else:
        comma = "," if kind == "csv" else "\t"
        quoted = [comma.join('"' + cell.replace('"', '""') + '"' for cell in r) for r in rows]
        text = "\n".join([comma.join(("image", "caption", "description")), *quoted])
    _write(tmp_path / f"train.{kind}", text)
    _photo(tmp_path / "pictures" / "a" / "1.png")
    source = open_source("table", "train", root=str(tmp_path), images="pictures")
    first = source[0]
    assert (first.id, first.caption, first.description) == ("table/train/00000000", 'says "hi", twice', "long")
    for index, told in ((1, "No such file"), (2, "without a caption"), (3, "no name of a file")):
        with pytest.raises(UserError, match=told):
            source[index]
    assert len(source) == 4 and pickle.loads(pickle.dumps(source)).id(3) == source.id(3)


def test_a_table_without_the_columns_or_alone_of_its_kind_is_told(tmp_path):
    _write(tmp_path / "a.csv", "file,words\n1.png,hello\n")
    with pytest.raises(UserError, match="columns file, words; expected a column image"):
        open_source("table", root=str(tmp_path))
    source = open_source("table", root=str(tmp_path), columns=("file", "words", ""))
    assert len(source) == 1
    _write(tmp_path / "b.csv", "file,words\n")
    with pytest.raises(UserError, match="a.csv, b.csv in .*; expected one"):
        open_source("table", root=str(tmp_path))
    with pytest.raises(UserError, match="no row"):
        open_source("table", root=str(tmp_path), labels=("b.csv",), columns=("file", "words", ""))


# ----------------------------------------------------------------------------------------------- folders
def test_folders_by_class(tmp_path):
    for path in ("train/n01/1.jpg", "train/n01/2.PNG", "train/red_fox/3.png", "train/red_fox/notes.txt"):
        (_write(tmp_path / path, "x") if path.endswith("txt") else _photo(tmp_path / path))
    _write(tmp_path / "names.tsv", "n01\ttench, Tinca tinca\nn02\tgoldfish\n")
    source = open_source("folder", "train", root=str(tmp_path), labels=("names.tsv",))
    assert source.class_names == ("tench", "red fox") and [source.label(i) for i in range(3)] == [0, 0, 1]
    assert source[2].caption == "red fox" and source.id(2) == "folder/train/red_fox/3.png"
    plain = open_source("folder", "train", root=str(tmp_path))
    assert plain.class_names == ("n01", "red fox") and plain.fingerprint != source.fingerprint
    with pytest.raises(UserError, match="no image in the folders"):
        open_source("folder", "test", root=str(tmp_path))


def test_imagenets_folders_have_the_captions_that_its_configs_train_on(tmp_path):
    for path in ("n01440764/1.jpg", "n02012849/1.jpg", "n03710721/1.jpg", "n03710637/1.jpg", "n99999999/1.jpg"):
        _photo(tmp_path / path)
    source = open_source("folder", root=str(tmp_path))
    assert source.class_names == ("tench", "crane", "maillot", "maillot, tank suit", "n99999999")
    assert set(source.class_names[:-1]) <= set(class_captions())


def test_a_fingerprint_follows_the_labels(coco, gbc, tmp_path):
    before = open_source("gbc", root=str(gbc)).fingerprint
    assert before == open_source("gbc", root=str(gbc)).fingerprint
    with (gbc / "part-1.jsonl").open("a") as file:
        file.write("\n{}")
    assert open_source("gbc", root=str(gbc)).fingerprint != before
