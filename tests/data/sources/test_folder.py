"""Folders by class; what is hidden is no class."""

import os
import unicodedata

import pytest

from kaleido_jax.data.sources.imagenet import class_captions
from kaleido_jax.errors import UserError
from kaleido_jax.intake.recognize import recognize
from kaleido_jax.intake.survey import survey
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


@pytest.mark.parametrize("kind", ["folder", "text_files"])
def test_what_a_set_leaves_out_is_told(kind, tmp_path, caplog):
    for name in ("cat/1.jfif", "cat/2.png", "dog/1.png", "cat/old/3.png", "dog/.hidden/4.png"):
        photo(tmp_path / name)
    for name in ("cat/4.HEIC", "cat/5.heic", "5.dng", "cat/notes.txt", "dog/meta/5.json"):
        write(tmp_path / name, "x")
    source = open_source(kind, root=tmp_path)
    assert [source.id(i).partition("/")[2] for i in range(len(source))] == ["cat/1.jfif", "cat/2.png", "dog/1.png"]
    assert kind == "text_files" or source[0].image.shape == (8, 12, 3)
    assert f"3 photos in {tmp_path} are ignored, whose formats are not read (.dng, .heic); make JPEGs" in caplog.text
    assert f"images in 1 deeper folders of {tmp_path} are ignored: 'cat/old'; move them up" in caplog.text


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


def test_a_comma_is_a_part_of_a_folders_name(tmp_path):
    for name in ("1,000 islands", "Paris, France", "Paris, Texas", "n1"):
        photo(tmp_path / name / "1.png")
    write(tmp_path / "names.tsv", "n1\ttench, Tinca tinca\n")
    source = open_source("folder", root=tmp_path, labels=("names.tsv",))
    assert source.class_names == ("1,000 islands", "Paris, France", "Paris, Texas", "tench")


def test_classes_of_one_caption_are_told_and_counted_together(tmp_path, caplog):
    for path in ("red_apple/1.png", "red apple/1.png", "red apple/2.png", "pear/1.png", "x/1.png"):
        photo(tmp_path / path)
    found = survey(recognize(tmp_path), 3, show=False)
    assert found.class_counts == {"red apple": 3, "pear": 1, "x": 1}
    [told] = caplog.messages
    assert told == f"{tmp_path}: one caption for several classes: 'red apple' of 'red apple', 'red_apple'"
    caplog.clear()
    write(tmp_path / "names.tsv", "\ufeffred_apple\tapple\r\nx\tcrane, bird\r\n")
    source = open_source("folder", root=tmp_path, labels=("names.tsv",))
    assert source.class_names == ("pear", "red apple", "apple", "crane") and not caplog.messages
    for name in ("n02012849", "n03126707"):  # the cranes of ImageNet, which have one caption in WordNet
        photo(tmp_path / "imagenet" / name / "1.png")
    assert open_source("folder", root=tmp_path / "imagenet").class_names == ("crane",) * 2 and not caplog.messages


def test_rows_of_names_find_folders_however_accents_are_written_or_are_told(tmp_path, caplog):
    for name in (unicodedata.normalize("NFD", "K\u00e4fer"), "Hund", "n01440764"):
        photo(tmp_path / name / "1.png")
    write(tmp_path / "names.tsv", "K\u00e4fer\tbeetle\u2028big\nhund\tdog\n\n")
    source = open_source("folder", root=tmp_path, labels=("names.tsv",))
    assert source.class_names == ("Hund", "beetle big", "tench")
    assert caplog.messages == [
        f"{tmp_path / 'names.tsv'} names no folder in 1 rows ('hund'); folders without a row: 'Hund'"
    ]
    caplog.clear()
    write(tmp_path / "names.tsv", "K\u00e4fer\tbeetle\nHund\tdog\nabsent here\tcat\n")
    open_source("folder", root=tmp_path, labels=("names.tsv",))
    assert not caplog.messages
