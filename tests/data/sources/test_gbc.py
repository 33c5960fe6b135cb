"""GBC: region captions; bad rows are failures of their own."""

import json

import pytest

from kaleido_jax.errors import UserError
from tests.data.sources.opening import open_source, outcomes, photo, write


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
    write(tmp_path / "part-0.jsonl", "\n".join(lines[:2]) + "\n")
    write(tmp_path / "part-1.jsonl", "\n".join(lines[2:]))
    write(tmp_path / "images.csv", "img_url,img_path\nhttp://h/1,y.png\n")
    photo(tmp_path / "x.png", tone=1)
    photo(tmp_path / "y.png", tone=2)
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
    assert source[3].objects == () and source[3].caption == "alt text"  # a vertex less is no reason to lose the photo
    for index, message in ((2, "was not fetched"), (4, "not JSON;"), (5, "not a JSON object")):
        with pytest.raises(UserError, match=message):
            source[index]
    (gbc / "empty.jsonl").touch()
    with pytest.raises(UserError, match="no row"):
        open_source("gbc", root=str(gbc), labels=("empty.jsonl",))


def test_a_fingerprint_follows_the_labels(gbc):
    before = open_source("gbc", root=str(gbc)).fingerprint
    assert before == open_source("gbc", root=str(gbc)).fingerprint
    with (gbc / "part-1.jsonl").open("a") as file:
        file.write("\n{}")
    assert open_source("gbc", root=str(gbc)).fingerprint != before


def test_a_vertex_without_box_or_name_costs_only_itself(gbc):
    good = _vertex("snow", "entity", (0, 0.5, 1, 1), "snow")
    odd = [
        None,
        5,
        good | {"bbox": None},
        good | {"bbox": good["bbox"] | {"left": 10**400}},
        good | {"in_edges": [{"text": None}]},
        good | {"vertex_id": "(", "in_edges": []},
    ]
    row = {"vertices": [*odd, good], "img_path": "x.png", "original_caption": "\ud83d half"}
    write(gbc / "odd.jsonl", json.dumps(row) + "\n" + json.dumps(row | {"vertices": None, "img_url": ["no"]}))
    source = open_source("gbc", root=gbc, labels=("odd.jsonl",))
    assert [o.phrase for o in source[0].objects] == ["snow"]
    assert "without GBC's vertices" in outcomes(source)[1]
