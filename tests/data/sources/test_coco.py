"""COCO: captions, boxes and masks; bad rows are failures of their own."""

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.config.schema import DataCoco
from kaleido_jax.errors import UserError
from tests.data.sources.opening import open_source, photo, write


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
    write(tmp_path / "annotations" / "instances_val.json", whole)
    write(tmp_path / "annotations" / "captions_val.json", {"images": images, "annotations": captions})
    for name in ("a.png", "b.png"):
        photo(tmp_path / "val" / name)
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
    assert len(open_source("coco", "val", root=str(coco), coco=DataCoco(licenses=(2,)))) == 1
    with pytest.raises(UserError, match=r"under licenses \(8,\)"):
        open_source("coco", "val", root=str(coco), coco=DataCoco(licenses=(8,)))


def test_coco_rows_that_are_bad_fail_alone(coco):
    source = open_source("coco", "val", root=str(coco))
    with pytest.raises(UserError, match="not a file name"):
        source[2]
    with pytest.raises(UserError, match="12x8 px whose labels are for 99x8"):
        source[3]
    (coco / "val" / "a.png").unlink()
    with pytest.raises(UserError, match="image file: No such file") as error:
        source[0]
    assert str(coco) not in str(error.value)  # equal failures must count as one


def test_coco_in_one_file_with_splits_and_captions_inside(tmp_path):
    images = [{"id": n, "file_name": f"{n}.png", "split": s, "captions": ["it"]} for n, s in ((1, "a"), (2, "b"))]
    write(tmp_path / "annotations.json", {"images": images, "annotations": [], "categories": []})
    for n in (1, 2):
        photo(tmp_path / "images" / f"{n}.png")
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
        with pytest.raises(UserError, match="instances_val.json"):
            open_source("coco", "val", root=str(coco))


def _one_photo(folder, annotation=None, **image):
    """A photo of 12x8 px with a caption, a good object and perhaps another annotation."""
    photo(folder / "images" / "a.png")
    good = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
    entry = {"id": 1, "file_name": "a.png", "width": 12, "height": 8, "captions": ["a cat"]} | image
    table = {"images": [entry], "annotations": [good], "categories": [{"id": 1, "name": "cat"}]}
    table["annotations"] += [good | annotation] if annotation else []
    return table


@pytest.mark.parametrize(
    "segmentation",
    [
        [[]],
        [[5, 5, 9, 7]],  # the box as a polygon
        [[1, 2, 3]],
        [["a", "b"] * 3],
        [[float("nan")] * 6],
        5,
        {"size": [8, 12], "counts": []},
        {"size": [12, 8], "counts": [0, 96]},
        {"size": [8, 12], "counts": "\x00"},
        {"counts": [0, 96]},
        {"size": [8, 12], "counts": [96]},  # of no pixel
        [[5, 5.55, 9, 5.55, 9, 5.95, 5, 5.95]],  # between the pixels' centers
        [[0.42, 0.63, 0.75, 0.63, 0.75, 0.88, 0.42, 0.88]],  # fractions of the image
        [[10**400, 5, 9, 5, 9, 7]],
    ],
)
def test_a_mask_that_cannot_be_read_costs_only_itself(tmp_path, segmentation):
    write(tmp_path / "annotations.json", _one_photo(tmp_path, {"bbox": [5, 5, 4, 2], "segmentation": segmentation}))
    example = open_source("coco", root=tmp_path)[0]
    assert [(o.box, o.mask is None) for o in example.objects] == [((1, 1, 5, 5), False), ((5, 5, 9, 7), True)]
    assert example.caption == "a cat"


def test_a_box_drawn_to_the_left_and_up_is_that_box(tmp_path):
    write(tmp_path / "annotations.json", _one_photo(tmp_path, {"bbox": [9, 7, -4, -2], "segmentation": []}))
    assert open_source("coco", root=tmp_path)[0].objects[1].box == (5, 5, 9, 7)


def test_of_several_polygons_only_the_bad_ones_are_dropped(tmp_path):
    polygons = [[1, 1], [2, 2, 6, 2, 6, 6, 2, 6]]
    write(tmp_path / "annotations.json", _one_photo(tmp_path, {"segmentation": polygons}))
    assert open_source("coco", root=tmp_path)[0].objects[1].mask.sum() == 16


def test_run_lengths_may_be_written_as_floats(tmp_path):
    rle = {"size": [8.0, 12.0], "counts": [8.0, 8.0, 80.0]}
    write(tmp_path / "annotations.json", _one_photo(tmp_path, {"segmentation": rle}))
    assert open_source("coco", root=tmp_path)[0].objects[1].mask[:, 1].all()


@pytest.mark.parametrize(
    "odd",
    [
        {"category_id": 99},
        {"category_id": [1]},
        {"category_id": None},
        {"bbox": None, "segmentation": None},
        {"bbox": [1, 2, 3], "segmentation": []},
        {"bbox": [float("nan")] * 4, "segmentation": []},
        {"bbox": [0, 0, 0, 0], "segmentation": []},
        {"bbox": [10**400, 2, 3, 4], "segmentation": []},
    ],
)
def test_an_object_without_box_or_category_costs_only_itself(tmp_path, odd):
    write(tmp_path / "annotations.json", _one_photo(tmp_path, odd))
    assert len(open_source("coco", root=tmp_path)[0].objects) == 1


@pytest.mark.parametrize(
    "box",
    [
        None,
        [0] * 4,
        [3, 3, 0, 5],
        [-1] * 4,
        [0.1, 0.1, 0.4, 0.5],
        [12, 0, 9, 9],
        [float("inf"), 1, 1, 1],
        [10**400] * 4,
    ],
)
def test_an_object_without_a_good_box_has_its_masks(tmp_path, box):
    write(tmp_path / "annotations.json", _one_photo(tmp_path, {"bbox": box}))
    assert open_source("coco", root=tmp_path)[0].objects[1].box == (1, 1, 5, 5)


@pytest.mark.parametrize("licenses", [None, 5, [None], [{"id": 4}], [{"name": "BY"}], [{"id": [4], "name": "BY"}]])
def test_licenses_that_cannot_be_read_are_done_without(tmp_path, licenses):
    table = _one_photo(tmp_path, license=[4], flickr_url=7) | {"licenses": licenses}
    write(tmp_path / "annotations.json", table)
    assert open_source("coco", root=tmp_path)[0].credit == ""


@pytest.mark.parametrize("kind", [str, float])
def test_ids_as_text_or_floats_are_those_numbers(tmp_path, kind):
    table = _one_photo(tmp_path, {"category_id": kind(1)}, license=kind(4)) | {"licenses": [{"id": 4, "name": "BY"}]}
    table["annotations"].append({"image_id": kind(1), "caption": "it"})
    write(tmp_path / "annotations.json", table)
    plain = open_source("coco", root=tmp_path, coco=DataCoco(licenses=(4,)))
    assert len(plain[0].objects) == 2 and (plain[0].caption, plain[0].credit) == ("it", "BY")
    table["images"][0]["id"], table["categories"][0]["id"] = kind(1), kind(1)
    table["licenses"][0]["id"] = kind(4)
    write(tmp_path / "annotations.json", table)
    other = open_source("coco", root=tmp_path, coco=DataCoco(licenses=(4,)))
    assert other.id(0) == plain.id(0) == "coco/000000000001"
    assert (len(other[0].objects), other[0].credit) == (2, "BY")


@pytest.mark.parametrize(("told", "objects"), [(0, 2), ("0", 2), (False, 2), (None, 2), (1, 1), ("1", 1), (True, 1)])
def test_a_crowd_is_told_by_one_in_any_type(tmp_path, told, objects):
    write(tmp_path / "annotations.json", _one_photo(tmp_path, {"iscrowd": told}))
    assert len(open_source("coco", root=tmp_path)[0].objects) == objects


def test_lvis_names_its_photos_by_address(tmp_path):
    table = _one_photo(tmp_path, file_name=None, coco_url="http://images.cocodataset.org/val2017/a.png")
    write(tmp_path / "annotations.json", table)
    assert open_source("coco", root=tmp_path)[0].caption == "a cat"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": [{"id": "a", "file_name": "a.png"}]}, r"images\[0\].id = 'a' \(str\); expected a whole number"),
        ({"images": [{"id": 1.5, "file_name": "a.png"}]}, r"images\[0\].id = '1.5' \(float\); expected a whole number"),
        ({"images": [{"file_name": "a.png"}]}, r"images\[0\] has no id"),
        ({"images": [{"id": 1}]}, r"images\[0\] has no file_name"),
        ({"images": [{"id": 1, "coco_url": "http://[x/a.png"}]}, r"images\[0\] has no file_name"),
        ({"images": ["a.png"]}, r"images\[0\] is not an object"),
        ({"images": None}, "no list images"),
        ({"annotations": [{"image_id": "one", "caption": "x"}]}, r"annotations\[0\].image_id = 'one' \(str\)"),
        ({"annotations": [{"image_id": "9" * 5000}]}, r"annotations\[0\].image_id = '9+' \(str\)"),
        ({"annotations": [{"image_id": True}]}, r"annotations\[0\].image_id = 'True' \(bool\)"),
        ({"annotations": [{"image_id": float("inf")}]}, r"annotations\[0\].image_id = 'inf' \(float\)"),
        ({"categories": [{"id": 1}]}, r"categories\[0\] has no name"),
        ({"categories": {"1": "cat"}}, "categories is not a list"),
        (
            {"categories": [{"id": 1, "name": n} for n in ("cat", "dog")]},
            r"categories\[1\].id = 1 is the id of cat and of",
        ),
        (
            {"images": [{"id": 1, "file_name": n} for n in ("a.png", "b.png")]},
            r"images\[1\].id = 1 is the id of a.png and",
        ),
    ],
)
def test_a_refusal_names_the_entry_and_the_field(tmp_path, change, said):
    write(tmp_path / "annotations.json", _one_photo(tmp_path) | change)
    with pytest.raises(UserError, match=said):
        open_source("coco", root=tmp_path)


def test_labels_of_a_photo_that_exif_turns_say_so(tmp_path):
    table, exif = _one_photo(tmp_path, file_name="a.jpg"), Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (12, 8)).save(tmp_path / "images" / "a.jpg", exif=exif)
    write(tmp_path / "annotations.json", table)
    with pytest.raises(
        UserError, match="8x12 px whose labels are for 12x8; .* by its EXIF orientation; turn the labels"
    ):
        open_source("coco", root=tmp_path)[0]
    write(tmp_path / "annotations.json", _one_photo(tmp_path, width=99))
    with pytest.raises(UserError, match="labels are for 99x8; expected equal sizes; fetch the photos"):
        open_source("coco", root=tmp_path)[0]


def test_a_size_of_zero_is_none(tmp_path):
    write(tmp_path / "annotations.json", _one_photo(tmp_path, width=0, height=0))
    assert open_source("coco", root=tmp_path)[0].caption == "a cat"


@pytest.mark.parametrize("width", [12.0, None])
def test_a_size_as_float_or_null_is_read(tmp_path, width):
    write(tmp_path / "annotations.json", _one_photo(tmp_path, width=width))
    assert open_source("coco", root=tmp_path)[0].image.shape == (8, 12, 3)


def test_a_size_as_text_is_named_as_such(tmp_path):
    write(tmp_path / "annotations.json", _one_photo(tmp_path, width="12"))
    with pytest.raises(UserError, match="whose width is '12'; expected a whole number"):
        open_source("coco", root=tmp_path)[0]


@pytest.mark.parametrize(("captions", "caption"), [("a dog", "a dog"), ([None, "it"], "it"), (None, ""), (7, "")])
def test_captions_that_are_no_text_are_none(tmp_path, captions, caption):
    table = _one_photo(tmp_path, captions=captions)
    table["annotations"].append({"image_id": 1, "caption": None})
    write(tmp_path / "annotations.json", table)
    assert open_source("coco", root=tmp_path)[0].caption == caption


def test_a_label_file_that_is_an_lfs_pointer_or_all_brackets_is_refused(tmp_path):
    _one_photo(tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for content, said in ((pointer, "git lfs pull"), ("[" * 100_000, "is damaged")):
        (tmp_path / "annotations.json").write_text(content)
        with pytest.raises(UserError, match=said):
            open_source("coco", root=tmp_path)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("train2017/1.png", "1.png"),  # COCO's own
        ("images/train2017/1.png", "1.png"),  # Ultralytics's, and CVAT's with the split "default"
        ("images/1.png", "1.png"),
        ("train2017/1.png", "train2017/1.png"),
    ],
)
def test_photos_are_found_where_tools_put_them(tmp_path, place, name):
    photo(tmp_path / place)
    (tmp_path / "train2017").mkdir(exist_ok=True)  # empty, where the photos lie elsewhere
    labels = {"images": [{"id": 1, "file_name": name}], "annotations": [], "categories": []}
    write(tmp_path / "annotations" / "instances_train2017.json", labels)
    source = open_source("coco", "train2017", root=str(tmp_path))
    assert source[0].image.ndim == 3
    (tmp_path / place).unlink()
    with pytest.raises(UserError, match="image file"):
        open_source("coco", "train2017", root=str(tmp_path))[0]
