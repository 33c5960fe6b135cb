"""Folders of samples: one for each recipe, none overwritten, the same again found; and what is sampled by default."""

import dataclasses
import json
import logging

import pytest
from PIL import Image

from kaleido_jax.data import records
from kaleido_jax.data.sources.emoji import KINDS
from kaleido_jax.errors import UserError
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.latents.vocabulary import vocabulary_of
from kaleido_jax.sampling import gallery
from kaleido_jax.sampling.gallery import captions_to_sample, write_samples
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.recipe import load_recipe
from kaleido_jax.sampling.tokens import caption_tokens
from tests.emoji import make_records
from tests.sampling.test_call import CONFIG, pipe  # noqa: F401
from tests.tiny import tiny_config

SMALL = dataclasses.replace(
    CONFIG.sample, captions=("fruit",), latents_per_caption=2, images_per_caption=1, num_steps=1, grammar=True
)


@pytest.fixture
def small(pipe):  # noqa: F811
    """A pipeline of a small grid; and another one with other settings."""

    def make(**settings):
        config = dataclasses.replace(pipe.config, sample=dataclasses.replace(SMALL, **settings))
        return KaleidoPipeline(config, pipe.params, pipe.codec, step=7)

    return make


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_each_recipe_has_a_folder_and_none_is_overwritten(small, tmp_path, caplog):
    caplog.set_level(logging.INFO, "kaleido_jax")
    parent = tmp_path / "samples" / "step_00000007"
    first = write_samples(small(), tmp_path, gammas=[4.0], seed=1)
    assert first == parent / "gamma4_seed1" / "grid.png"
    kept = content(first.parent)
    assert set(kept) >= {"recipe.json", "grid.png", "00-fruit-0.png", "01-fruit-0.png", "00-fruit.json"}
    # Another seed, another gamma, other steps, other captions: other folders.
    assert write_samples(small(), tmp_path, gammas=[4.0], seed=2).parent.name == "gamma4_seed2"
    assert write_samples(small(gamma=1.5), tmp_path, seed=1).parent.name == "gamma1.5_seed1"
    steps = write_samples(small(num_steps=2), tmp_path, gammas=[4.0], seed=1).parent
    words = write_samples(small(), tmp_path, captions=["bird"], gammas=[4.0], seed=1).parent
    assert steps.name.startswith("gamma4_seed1_") and words.name.startswith("gamma4_seed1_") and steps != words
    # The same again: found, in whichever order.
    assert write_samples(small(num_steps=2), tmp_path, gammas=[4.0], seed=1).parent == steps
    assert "holds the samples of this recipe" in caplog.text
    assert write_samples(small(), tmp_path, gammas=[4.0], seed=1) == first and content(first.parent) == kept
    assert len(list(parent.iterdir())) == 5  # nothing half-written is left


def test_a_caption_has_several_z(small, tmp_path):
    folder = write_samples(small(latents_per_caption=3), tmp_path, captions=["fruit", "bird"]).parent
    rows = load_recipe(folder / "recipe.json")["rows"]
    assert [row["caption"] for row in rows] == ["fruit"] * 3 + ["bird"] * 3
    assert [row["latents_index"] for row in rows] == list(range(6))


def test_several_gammas_are_one_picture_of_folders_that_are_kept(small, tmp_path):
    alone = write_samples(small(), tmp_path, gammas=[4.0], seed=1)
    kept = content(alone.parent)
    grid = write_samples(small(), tmp_path, gammas=[1.0, 4.0, 4.0], seed=1)
    assert grid.name == "gamma1-4_seed1.png" and content(alone.parent) == kept
    with Image.open(grid) as both, Image.open(alone) as one:
        assert both.size == (max(one.width, both.width), both.size[1]) and both.height > one.height
    before = grid.read_bytes()
    assert write_samples(small(), tmp_path, gammas=[1.0, 4.0], seed=1) == grid and grid.read_bytes() == before
    other = write_samples(small(num_steps=2), tmp_path, gammas=[1.0, 4.0], seed=1)
    assert other != grid and other.name.startswith("gamma1-4_seed1_") and grid.read_bytes() == before


@pytest.mark.parametrize(("steps", "folders"), [(1, 1), (2, 2)])
def test_a_run_that_another_overtakes_takes_its_samples_or_another_name(small, tmp_path, monkeypatch, steps, folders):
    save, kept = gallery.KaleidoOutput.save, []

    def overtaken(output, folder):
        monkeypatch.setattr(gallery.KaleidoOutput, "save", save)
        kept.append(write_samples(small(num_steps=steps), tmp_path))  # of one recipe, or of another with this name
        kept.append(content(kept[0].parent))
        return save(output, folder)

    monkeypatch.setattr(gallery.KaleidoOutput, "save", overtaken)
    grid = write_samples(small(), tmp_path)
    assert (grid == kept[0]) == (folders == 1) and content(kept[0].parent) == kept[1]
    assert len(list(grid.parent.parent.iterdir())) == folders and grid.exists()
    assert load_recipe(grid.parent / "recipe.json")["sample"]["num_steps"] == 1


def test_what_a_folder_lost_is_made_again(small, tmp_path, caplog, monkeypatch):
    grid = write_samples(small(), tmp_path)
    kept = content(grid.parent)
    grid.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(KaleidoPipeline, "__call__", lambda *_, **__: pytest.fail("sampled"))
        assert write_samples(small(), tmp_path) == grid and content(grid.parent) == kept
    for name in ("grid.png", "01-fruit-0.png"):
        (grid.parent / name).unlink()
    (grid.parent / "notes.txt").write_text("mine")
    assert write_samples(small(), tmp_path) == grid
    assert content(grid.parent) == kept | {"notes.txt": b"mine"}
    assert "gamma3_seed0 lost 2 of its files (grid.png, 01-fruit-0.png): sampling all again" in caplog.text
    assert len(list(grid.parent.parent.iterdir())) == 1


def test_what_cannot_be_written_is_not_sampled(small, tmp_path, monkeypatch):
    monkeypatch.setattr(KaleidoPipeline, "__call__", lambda *_, **__: pytest.fail("sampled"))
    (tmp_path / "samples").write_text("a file")
    with pytest.raises(UserError, match=r"nothing can be written to --workdir=.*samples.*; expected a folder to write"):
        write_samples(small(), tmp_path)


def test_a_damaged_folder_is_left_alone(small, tmp_path):
    folder = write_samples(small(), tmp_path).parent
    (folder / "recipe.json").write_text('{"model": {}, "rows": []}')  # of a version without a format
    again = write_samples(small(), tmp_path).parent
    assert again != folder and again.name.startswith(folder.name) and len(content(folder)) == len(content(again))
    (again / "00-fruit-0.png").write_bytes(b"")
    with pytest.raises(UserError, match="00-fruit-0.png cannot be read .*; remove"):
        gallery.grid_of([again])


@pytest.mark.parametrize("lost", ["latents_index", "files", "latents", "problem"])
def test_a_recipe_that_lost_an_optional_field_is_another_one_or_told(small, tmp_path, lost):
    folder = write_samples(small(), tmp_path).parent
    recipe = json.loads((folder / "recipe.json").read_text())
    for row in recipe["rows"]:
        del row[lost]
    (folder / "recipe.json").write_text(json.dumps(recipe))
    again = write_samples(small(), tmp_path).parent
    assert (again != folder) == (lost == "latents_index")
    if lost == "files":
        with pytest.raises(UserError, match="recipe.json without the files of row 0; .*; remove"):
            gallery.grid_of([folder])
    else:
        assert gallery.grid_of([folder]).size[0] > 0


def test_characters_that_the_vocabulary_lacks_are_told(small, tmp_path, caplog):
    write_samples(small(), tmp_path, captions=["bär"])
    assert "caption 'bär': the vocabulary has no 'ä'; read as <unk>" in caplog.text
    caplog.clear()
    write_samples(small(), tmp_path, captions=["bird"])
    assert "vocabulary" not in caplog.text


def test_a_caption_is_read_in_the_form_that_records_have(tmp_path):
    (tmp_path / "spiece.model").write_bytes(vocabulary_of(["un café rouge"] * 5))
    tokenizer = load_tokenizer(str(tmp_path / "spiece.model"), 64)
    spellings = ("un café", "un\xa0café", "un\ncafe\u0301 ")
    rows = caption_tokens(spellings, tokenizer, 8)
    assert (rows == rows[0]).all() and tokenizer.unk_id not in rows


def test_a_caption_that_is_too_long_is_shown_whole_if_it_has_few_characters():
    tokenizer = load_tokenizer("emoji", 64)
    with pytest.raises(UserError, match="caption 'dinosaur' of 10 tokens; expected at most 8"):
        caption_tokens(["dinosaur"], tokenizer, 8)
    with pytest.raises(UserError, match=r"caption '(bird ){8}\.\.\.' of"):
        caption_tokens(["bird " * 200], tokenizer, 8)


def test_a_caption_that_is_too_long_is_told_before_anything_is_sampled(small, tmp_path):
    with pytest.raises(UserError, match="max_caption_tokens"):
        write_samples(small(), tmp_path, captions=["bird", "bird " * 200])
    assert not (tmp_path / "samples").exists()


def test_the_grid_has_the_captions_asked_for_or_the_class_names(tmp_path, monkeypatch):
    assert captions_to_sample(tiny_config(sample__captions=()), tmp_path) == list(KINDS)
    assert captions_to_sample(tiny_config(sample__captions=("a dog",)), tmp_path) == ["a dog"]
    monkeypatch.setattr(records, "class_names", lambda config, workdir: ["crane", "bird", "crane"])
    assert captions_to_sample(tiny_config(sample__captions=()), tmp_path) == ["crane", "bird"]
    monkeypatch.undo()
    with pytest.raises(UserError, match="sample.captions"):
        captions_to_sample(tiny_config(sample__captions=(), data__source="records"), tmp_path)


def test_without_class_names_the_captions_of_some_records_are_sampled(tmp_path, monkeypatch):
    config = tiny_config(sample__captions=(), data__source="records", data__records=str(tmp_path))
    make_records(tmp_path, tokenizer=load_tokenizer("emoji", 64), num_examples=80, codebook_size=8, fit_examples=40)
    assert captions_to_sample(config, tmp_path) == list(KINDS)
    monkeypatch.setattr(records, "class_names", lambda config, workdir: [])
    names = captions_to_sample(config, tmp_path)
    assert 1 < len(names) <= gallery.MOST_CAPTIONS and len(set(names)) == len(names)
    monkeypatch.setattr(records, "class_names", lambda config, workdir: [f"class {i}" for i in range(1000)])
    names = captions_to_sample(config, tmp_path)
    assert len(names) == gallery.MOST_CAPTIONS and names[0] == "class 0" and names[-1] == "class 916"
