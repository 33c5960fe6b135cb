"""Captions in one form, and as parts of file names."""

import sys

import pytest

from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.runtime.text import file_stem, uniform

T5 = load_tokenizer("t5", 8192)


@pytest.mark.parametrize(
    "caption", ["un café", "un\xa0café", "un\ncafé", "un \tcafé", "un\u3000café", " un cafe\u0301\r\n", "un\u2028café"]
)
def test_captions_that_look_the_same_are_the_same(caption):
    assert uniform(caption) == "un café"


@pytest.mark.parametrize("hidden", ["\xad", "\u200b", "\u200e", "\u202b", "\u2060", "\ufeff", "\U000e0067"])
def test_what_shows_nothing_is_no_part_of_a_caption_and_no_space(hidden):
    assert uniform(f"{hidden}ca{hidden}fe{hidden}\u0301 {hidden} noir") == "café noir"


@pytest.mark.parametrize(
    "word", ["\u0645\u06cc\u200c\u062e\u0648", "\u0915\u094d\u200d\u0937", "\U0001f469\u200d\U0001f680"]
)
def test_joiners_stay_inside_words_and_only_there(word):
    assert uniform(f"{word}\u200d \u200c {word}") == f"{word} {word}" and uniform("\u200d") == ""


def test_t5_reads_the_uniform_form_as_it_reads_the_text():
    spaces = [chr(code) for code in range(0x3001) if chr(code).isspace()]
    assert len(spaces) > 20
    for space in spaces:
        for text in (f"a{space}dog", f" a {space}\tdog{space}"):
            assert T5.encode(uniform(text)) == T5.encode(text), repr(space)


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
