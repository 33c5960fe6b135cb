"""Folders by class; what is hidden is no class."""

import os

import pytest

from kaleido_jax.data.sources.imagenet import class_captions
from kaleido_jax.errors import UserError
from tests.data.sources.opening import open_source, outcomes, photo, write


def test_folders_by_class(tmp_path):
    for path in ("train/n01/1.jpg", "train/n01/2.PNG", "train/red_fox/3.png", "train/red_fox/notes.txt"):
        (write(tmp_path / path, "x") if path.endswith("txt") else photo(tmp_path / path))
    write(tmp_path / "names.tsv", "n01\ttench, Tinca tinca\nn02\tgoldfish\n")
    source = open_source("folder", "train", root=str(tmp_path), labels=("names.tsv",))
    assert source.class_names == ("tench", "red fox") and [source.label(i) for i in range(3)] == [0, 0, 1]
    assert source[2].caption == "red fox" and source.id(2) == "folder/train/red_fox/3.png"
    plain = open_source("folder", "train", root=str(tmp_path))
    assert plain.class_names == ("n01", "red fox") and plain.fingerprint != source.fingerprint
    with pytest.raises(UserError, match="no image in the folders"):
        open_source("folder", "test", root=str(tmp_path))


def test_imagenets_folders_have_the_captions_that_its_configs_train_on(tmp_path):
    for path in ("n01440764/1.jpg", "n02012849/1.jpg", "n03710721/1.jpg", "n03710637/1.jpg", "n99999999/1.jpg"):
        photo(tmp_path / path)
    source = open_source("folder", root=str(tmp_path))
    assert source.class_names == ("tench", "crane", "maillot", "maillot, tank suit", "n99999999")
    assert set(source.class_names[:-1]) <= set(class_captions())


def test_what_is_hidden_or_without_images_is_no_class_and_no_image(tmp_path, caplog):
    hidden = (
        ".ipynb_checkpoints/1-checkpoint.png",
        "cat/._1.png",
        "__MACOSX/x.png",
        "@eaDir/x.png",
        "$RECYCLE.BIN/1.png",
    )
    for path in ("cat/1.png", "dog/1.png", *hidden):
        photo(tmp_path / path)
    (tmp_path / "lost+found").mkdir()
    source = open_source("folder", root=tmp_path)
    assert source.class_names == ("cat", "dog") and [source.id(i) for i in range(len(source))] == [
        "folder/cat/1.png",
        "folder/dog/1.png",
    ]
    assert "lost+found" in caplog.text
    told = len(caplog.records)
    open_source("folder", root=str(tmp_path))
    assert len(caplog.records) == told  # one verb opens a source several times


def test_names_that_are_no_utf8_work_or_fail_alone(tmp_path):
    photo(tmp_path / "cat" / "1.png")
    top, content = os.fsencode(tmp_path), (tmp_path / "cat" / "1.png").read_bytes()
    os.mkdir(top + b"/cl\xe9")
    for name in (b"/cat/caf\xe9.png", b"/cl\xe9/1.png"):
        with open(top + name, "wb") as file:
            file.write(content)
    source = open_source("folder", root=tmp_path)
    first, second, third = outcomes(source)
    assert (first, second) == ("cat", "cat") and "name is not a caption" in third
    assert source.id(1) == r"folder/cat/caf\xe9.png" and source.id(2) == r"folder/cl\xe9/1.png"
    assert source.fingerprint == open_source("folder", root=tmp_path).fingerprint


def test_a_class_name_without_a_word_fails_alone(tmp_path):
    for name in ("___", "cat"):
        photo(tmp_path / name / "1.png")
    bad, good = outcomes(open_source("folder", root=tmp_path))
    assert "name is not a caption" in bad and good == "cat"


def test_a_flat_folder_is_one_class_with_the_folders_name(tmp_path, caplog):
    for name in ("1.png", "2.png"):
        photo(tmp_path / "my_garden" / name)
    source = open_source("folder", root=tmp_path / "my_garden")
    assert source.class_names == ("my garden",) and outcomes(source) == ["my garden"] * 2
    assert source.id(1) == "folder/my_garden/2.png" and not caplog.text
    photo(tmp_path / "my_garden" / "tulip" / "3.png")
    assert open_source("folder", root=tmp_path / "my_garden").class_names == ("tulip",)
    assert "2 images beside the class folders" in caplog.text


def test_an_accent_that_a_file_system_took_apart_is_one_letter_again(tmp_path):
    photo(tmp_path / "Ka\u0308fer" / "1.png")
    assert open_source("folder", root=tmp_path).class_names == ("K\u00e4fer",)
