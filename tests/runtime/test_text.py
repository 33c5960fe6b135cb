"""Captions in one form, and as parts of file names."""

import sys

import pytest

from kaleido_jax.runtime.text import file_stem, uniform


@pytest.mark.parametrize(
    "caption", ["un café", "un\xa0café", "un\ncafé", "un \tcafé", "un\u3000café", " un cafe\u0301\r\n", "un\u2028café"]
)
def test_captions_that_look_the_same_are_the_same(caption):
    assert uniform(caption) == "un café"


@pytest.mark.parametrize(
    ("caption", "stem"),
    [
        ("A small banana, top!", "a-small-banana-top"),
        ("Größe", "größe"),
        ("Gro\u0308ße", "größe"),  # the same, as some keyboards and file systems write it
        ("一只猫", "一只猫"),
        ("नमस्ते दुनिया", "नमस्ते-दुनिया"),
        ("../_/\\:\0*", ""),
        ("a" * 39 + " b", "a" * 39),
    ],
)
def test_a_caption_of_any_script_is_part_of_a_file_name(caption, stem):
    assert file_stem(caption) == stem


def test_letters_that_file_names_cannot_have_are_left_out(monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert file_stem("Müller's 猫 cat") == "mller-s-cat"
