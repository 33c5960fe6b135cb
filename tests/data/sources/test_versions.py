"""What records can follow: the version of each example, and the bytes of its image."""

import json

import pytest

from kaleido_jax.data.held_out import held_out, is_held_out
from kaleido_jax.data.images import decode_photo
from kaleido_jax.data.sources.base import GrowingSource
from kaleido_jax.errors import UserError
from tests.data.sources.opening import open_source, photo, write
from tests.data.sources.test_tar import example, shard


def folder(root):
    for name in ("cat/1.png", "cat/2.png", "dog/3.png"):
        photo(root / name, tone=int(name[4]))


def table(root):
    for number in range(3):
        photo(root / f"{number}.png", tone=number)
    write(root / "t.csv", "image,caption\n" + "".join(f"{n}.png,a photo {n}\n" for n in range(3)))


def lines(root):
    table(root)
    (root / "t.csv").unlink()
    rows = ({"image": f"{n}.png", "caption": f"a photo {n}"} for n in range(3))
    write(root / "t.jsonl", "\n".join(map(json.dumps, rows)))


def gbc(root):
    for number in range(3):
        photo(root / f"{number}.png", tone=number)
    rows = ({"img_path": f"{n}.png", "short_caption": f"a photo {n}", "vertices": []} for n in range(3))
    write(root / "t.jsonl", "\n".join(map(json.dumps, rows)))


def coco(root):
    for number in range(3):
        photo(root / "images" / f"{number}.png", tone=number)
    images = [{"id": n, "file_name": f"{n}.png", "captions": [f"a photo {n}"]} for n in range(3)]
    write(root / "annotations.json", {"images": images, "annotations": [], "categories": []})


SOURCES = {"folder": folder, "table": table, "lines": lines, "gbc": gbc, "coco": coco}
LABELS = {"table": "t.csv", "lines": "t.jsonl", "gbc": "t.jsonl", "coco": "annotations.json"}


def opened(kind, root):
    return open_source("table" if kind == "lines" else kind, root=root)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_version_changes_with_the_labels_and_the_file_of_its_example_alone(kind, tmp_path):
    SOURCES[kind](tmp_path)
    source = opened(kind, tmp_path)
    assert isinstance(source, GrowingSource)
    before = [source.version(index) for index in range(3)]
    assert before == [opened(kind, tmp_path).version(index) for index in range(3)]
    paths = sorted(tmp_path.rglob("*.png"))
    assert [source.image_bytes(index) for index in range(3)] == [path.read_bytes() for path in paths]
    photo(paths[1], width=200, height=90)
    after = [opened(kind, tmp_path).version(index) for index in range(3)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    if kind == "folder":
        (tmp_path / "dog").rename(tmp_path / "fox")
    else:
        labels = tmp_path / LABELS[kind]
        labels.write_text(labels.read_text().replace("a photo 2", "a photograph 2"))
    last = [opened(kind, tmp_path).version(index) for index in range(3)]
    assert [a == b for a, b in zip(after, last, strict=True)] == [True, True, False]


@pytest.mark.parametrize("kind", SOURCES)
def test_a_missing_file_has_a_version_and_no_bytes(kind, tmp_path):
    SOURCES[kind](tmp_path)
    source = opened(kind, tmp_path)
    before = source.version(1)
    sorted(tmp_path.rglob("*.png"))[1].unlink()
    assert source.version(1) != before
    with pytest.raises(UserError, match="No such file"):
        source.image_bytes(1)
    assert not held_out(source, 1, 1.0)


def test_bad_rows_have_a_version_too(tmp_path):
    write(tmp_path / "t.csv", "image,caption\n1.png,a,b\n/etc/passwd,x\n")
    source = open_source("table", root=tmp_path)
    assert len({source.version(index) for index in range(2)}) == 2


def test_examples_of_a_tar_change_with_their_shard(tmp_path):
    shard(tmp_path / "0.tar", example("a", "a dog") + example("b", "a cat"))
    shard(tmp_path / "1.tar", example("c", "a fox", 30))
    source = open_source("tar", root=tmp_path)
    before = [source.version(index) for index in range(3)]
    assert decode_photo(source.image_bytes(2)).shape == (8, 12, 3)
    shard(tmp_path / "2.tar", example("d", "a hen"))
    shard(tmp_path / "1.tar", example("c", "another fox", 30))
    after = [open_source("tar", root=tmp_path).version(index) for index in range(3)]
    assert after[:2] == before[:2] and after[2] != before[2]


def test_the_held_out_share_is_about_that_and_a_larger_one_holds_out_the_same_and_more():
    images = [str(number).encode() for number in range(2000)]
    small, large = ({image for image in images if is_held_out(image, share)} for share in (0.05, 0.2))
    assert 60 < len(small) < 140 and 330 < len(large) < 470 and small < large
    assert not any(is_held_out(image, 0.0) for image in images)
