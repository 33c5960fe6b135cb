"""Tables of captions; bad rows are failures of their own."""

import json
import os
import pickle

import pytest

from kaleido_jax.config.schema import DataTable
from kaleido_jax.errors import UserError
from tests.data.sources.opening import open_source, outcomes, photo, write


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
def test_tables_of_captions(tmp_path, kind):
    rows = [
        ("a/1.png", 'says "hi", twice', "long"),
        ("a/2.png", "plain", ""),
        ("a/1.png", " ", ""),
        ("/x.png", "c", ""),
    ]
    if kind.startswith("json"):
        objects = [dict(zip(("image", "caption", "description"), row, strict=True)) for row in rows]
        text = json.dumps(objects, indent=2) if kind == "json" else "\n".join(map(json.dumps, objects))
    else:
        comma = "," if kind == "csv" else "\t"  # TSV has no quoting
        quoted = [
            comma.join('"' + cell.replace('"', '""') + '"' if kind == "csv" else cell for cell in r) for r in rows
        ]
        text = "\n".join([comma.join(("image", "caption", "description")), *quoted])
    write(tmp_path / f"train.{kind}", text)
    photo(tmp_path / "pictures" / "a" / "1.png")
    source = open_source("table", "train", root=str(tmp_path), images="pictures")
    first = source[0]
    assert (first.id, first.caption, first.description) == ("table/train/00000000", 'says "hi", twice', "long")
    for index, message in ((1, "No such file"), (2, "without a caption"), (3, "not a file name")):
        with pytest.raises(UserError, match=message):
            source[index]
    assert len(source) == 4 and pickle.loads(pickle.dumps(source)).id(3) == source.id(3)


def test_a_table_without_the_columns_or_alone_of_its_kind_is_reported(tmp_path):
    write(tmp_path / "a.csv", "file,words\n1.png,hello\n")
    with pytest.raises(UserError, match="columns file, words; expected a column image"):
        open_source("table", root=str(tmp_path))
    source = open_source("table", root=str(tmp_path), table=DataTable(columns=("file", "words", "")))
    assert len(source) == 1
    write(tmp_path / "b.csv", "file,words\n")
    with pytest.raises(UserError, match="a.csv, b.csv in .*; expected one"):
        open_source("table", root=str(tmp_path))
    with pytest.raises(UserError, match="no row"):
        open_source("table", root=str(tmp_path), labels=("b.csv",), table=DataTable(columns=("file", "words", "")))


@pytest.mark.parametrize("separator", [";", "|", "\t"])
def test_another_separator_between_the_cells(tmp_path, separator):
    write(tmp_path / "a.csv", f"image{separator}caption\na.png{separator}a, b\n")
    photo(tmp_path / "a.png")
    mine = {"root": tmp_path, "table": DataTable(separator=separator)}
    assert outcomes(open_source("table", **mine)) == ["a, b"]
    with pytest.raises(UserError, match="separator = ';;'; expected one character"):
        open_source("table", root=tmp_path, table=DataTable(separator=";;"))


def _with(folder, name, text):
    for image in ("a", "b", "c"):
        photo(folder / f"{image}.png")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_a_quote_in_a_tsv_is_a_character_as_any_other(tmp_path):
    rows = 'image\tcaption\na.png\t"A start of a quote\nb.png\tsays "hi" twice\r\nc.png\tthe\u2028cat\r\n'
    source = open_source("table", root=_with(tmp_path, "train.tsv", rows))
    assert outcomes(source) == ['"A start of a quote', 'says "hi" twice', "the\u2028cat"]


def test_a_quote_that_swallows_a_csv_to_its_end_is_refused_with_its_line(tmp_path):
    rows = 'image,caption\nb.png,first\na.png,"A start of a quote\nb.png,second\nc.png,the cat\n'
    with pytest.raises(UserError, match="train.csv line 3 opens a quoted cell that never ends"):
        open_source("table", root=_with(tmp_path, "train.csv", rows))


def test_rows_whose_cells_are_not_the_headers_fail_alone(tmp_path):
    rows = [
        r'a.png,"says \"hi\" twice"',  # cut at the second quote, were it read
        "b.png,a dog, and a cat",  # a comma that is not quoted
        'c.png,"two ""q"" and\nlines",',  # as CSV wants it; an empty cell too many is none
        "c.png",
    ]
    source = open_source("table", root=_with(tmp_path, "train.csv", "\n".join(["image,caption", *rows])))
    first, second, third, fourth = outcomes(source)
    assert first.startswith("UserError: line 2 is not a row of CSV") and third == 'two "q" and\nlines'
    assert second.startswith("UserError: a row of 3 cells; expected 2") and "without caption" in fourth


def test_spaces_before_cells_are_none_of_them_unless_they_separate(tmp_path):
    photo(tmp_path / "b.png")
    root = _with(tmp_path, "train.csv", 'caption, image\n"a, b", a.png\n c, "b.png"\n')
    assert outcomes(open_source("table", root=root)) == ["a, b", "c"]
    write(tmp_path / "train.csv", 'image caption\na.png "a b"\n')
    assert outcomes(open_source("table", root=root, table=DataTable(separator=" "))) == ["a b"]


def test_windows_paths_lead_to_the_same_files_and_never_out(tmp_path):
    root = _with(tmp_path / "data", "train.csv", "image,caption\n.\\a.png,x\ni\\b.png,y\n..\\a.png,z\n\\a.png,z\n")
    photo(root / "i" / "b.png")
    photo(tmp_path / "a.png")
    good, inner, *out = outcomes(open_source("table", root=root))
    assert (good, inner) == ("x", "y") and all("not a file name" in said for said in out)
    (root / "i" / "b.png").rename(root / "i\\b.png")
    assert outcomes(open_source("table", root=root))[1] == "y"


def test_long_cells_are_read(tmp_path):
    words = "word " * 40_000
    root = _with(tmp_path, "train.csv", f'image,caption,description\na.png,x,"{words}"\n')
    assert open_source("table", root=root)[0].description == words.strip()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"image": "a\\u0000.png", "caption": "y"}', "not a file name"),
        ('{"image": "a\\ud83d.png", "caption": "y"}', "not a file name"),
        ('{"image": ["a.png"], "caption": "y"}', "not a file name"),
        ('{"image": "a.png", "caption": ["y"]}', "without a caption"),
        ("[" * 100_000, "too many brackets"),
    ],
)
def test_one_odd_line_is_a_failure_of_that_line(tmp_path, row, reason):
    root = _with(tmp_path, "train.jsonl", f'{row}\n{{"image": "a.png", "caption": "y"}}\n')
    bad, good = outcomes(open_source("table", root=root))
    assert bad.startswith("UserError") and reason in bad and good == "y"


def test_a_column_of_half_a_character_is_a_column_as_others(tmp_path):
    root = _with(tmp_path, "a.jsonl", '{"image": "a.png", "\\ud83d": "x"}\n')
    assert outcomes(open_source("table", root=root, table=DataTable(columns=("image", "\ud83d", "")))) == ["x"]


def test_a_list_in_json_is_a_table_where_no_other_is(tmp_path):
    root = _with(
        tmp_path, "a.json", '\ufeff[{"image": "a.png", "caption": "x"}, 7, {"image": "a.png", "caption": "y"}]'
    )
    (root / "b.csv").write_text("image,caption\na.png,z\n")
    assert outcomes(open_source("table", root=root)) == ["z"]
    listed = open_source("table", root=root, labels=("a.json",))
    first, bad, last = outcomes(listed)
    assert (first, last) == ("x", "y") and "a row that is not a JSON object" in bad
    versions = [listed.version(i) for i in range(3)]
    assert len({*versions}) == 3
    for text, said in (('{"image": "a.png"}', "without a list of rows"), ("[{", "that is not JSON")):
        (root / "a.json").write_text(text)
        with pytest.raises(UserError, match=f"a.json {said}"):
            open_source("table", root=root, labels=("a.json",))
    with pytest.raises(UserError, match="all .jsonl or all .json"):
        open_source("table", root=root, labels=("a.json", "b.csv"))


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.json"])
def test_a_git_lfs_pointer_is_named_for_what_it_is(tmp_path, name):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    with pytest.raises(UserError, match=f"{name} is a git-LFS pointer.*git lfs pull"):
        open_source("table", root=_with(tmp_path, name, pointer))
    root = _with(tmp_path / "images", "train.tsv", "image\tcaption\na.png\tx\n")
    (root / "a.png").write_bytes(pointer)
    with pytest.raises(UserError, match="image file that is a git-LFS pointer.*git lfs pull"):
        open_source("table", root=root)[0]


def test_hidden_tables_are_none(tmp_path):
    root = _with(tmp_path, "train.tsv", "image\tcaption\na.png\tx\n")
    (root / "._train.tsv").write_bytes(b"\0\5\x16\7")
    assert outcomes(open_source("table", root=root)) == ["x"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("train.csv", "image;caption\na.png;x\n", "set data.table.separator"),
        ("train.tsv", "image,caption\na.png,x\n", "set data.table.separator"),
        ("train.csv", "image,caption,caption\na.png,x,y\n", "2 columns caption; expected one"),
    ],
)
def test_a_header_that_cannot_be_used_says_what_to_do(tmp_path, name, text, said):
    with pytest.raises(UserError, match=said):
        open_source("table", root=_with(tmp_path, name, text))


def test_a_row_of_other_names_or_too_many_cells_says_what_to_do(tmp_path):
    root = _with(tmp_path / "json", "train.jsonl", '{"file_name": "a.png", "text": "x"}\n')
    assert (
        "without image (it has file_name, text); expected a column image; set data.table.columns"
        in (outcomes(open_source("table", root=root))[0])
    )
    root = _with(tmp_path / "tsv", "train.tsv", "image\tcaption\na.png\tone\tmore\n")
    assert "remove the tabs inside cells" in outcomes(open_source("table", root=root))[0]


def test_a_pipe_in_place_of_an_image_is_a_failure_and_is_not_waited_for(tmp_path):
    root = _with(tmp_path, "train.tsv", "image\tcaption\npipe\tx\nb.png\ty\n")
    os.mkfifo(root / "pipe")
    bad, good = outcomes(open_source("table", root=root))
    assert "a folder, pipe or device" in bad and good == "y"


@pytest.mark.parametrize("split", ["", "Train", "tables/Train"])
def test_suffixes_in_capitals_are_the_same_formats(tmp_path, split):
    photo(tmp_path / "a.png")
    name = f"{split or 'Train'}.JSONL"
    write(tmp_path / name, '{"image": "a.png", "caption": "x"}\n')
    assert outcomes(open_source("table", root=tmp_path, labels=(name,))) == ["x"]
    assert outcomes(open_source("table", split, root=tmp_path)) == ["x"]
    with pytest.raises(UserError, match="no table in"):
        open_source("table", "none/val", root=tmp_path)
