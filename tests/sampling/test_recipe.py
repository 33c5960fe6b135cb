"""Recipes: they draw the same bits again, also after an export, and hostile ones end in one line."""

import copy
import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file

from kaleido_jax.config.schema import Sample
from kaleido_jax.errors import UserError
from kaleido_jax.latents.types import Latents
from kaleido_jax.sampling.functional import weights_checksum
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.recipe import CHUNK, FORMAT, load_recipe, new_recipe, recipe_fingerprint
from tests.sampling.test_call import CAPTIONS, CONFIG, out, pipe  # noqa: F401
from tests.sampling.test_pipeline import random_params


@pytest.fixture(scope="module")
def recipe(out):  # noqa: F811
    """Of one image."""
    return out.recipe_of(1, 1)


@pytest.fixture
def spoiled(recipe):
    """A function that copies the recipe and sets what is at a path."""

    def spoil(*path, value):
        copied = copy.deepcopy(recipe)
        inner = copied
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return copied

    return spoil


def test_a_picture_draws_itself_again_bit_for_bit(pipe, out, tmp_path):  # noqa: F811
    out.save(tmp_path)
    for i, k in ((0, 0), (0, 1), (1, 0), (1, 1)):
        (path,) = tmp_path.glob(f"{i:02d}-{CAPTIONS[i]}-{k}.png")
        again = pipe.draw(load_recipe(path))
        np.testing.assert_array_equal(again.pixels[0, 0], np.asarray(Image.open(path)))
        assert again.recipe == load_recipe(path) | {"rows": again.recipe["rows"]}
        assert again.recipe["rows"][0]["pixels"] == load_recipe(path)["rows"][0]["pixels"]
        assert again.latents == [out.latents[i]]
    whole = pipe.draw(tmp_path / "recipe.json")
    np.testing.assert_array_equal(whole.pixels, out.pixels)


def test_a_z_with_padding_inside_draws_itself_again(pipe):  # noqa: F811
    out = pipe(["fruit"] * 16, grammar=False, seed=5, num_steps=1)  # noqa: F811
    row = next(i for i, one in enumerate(out.samples) if 0 in one.tokens)
    np.testing.assert_array_equal(pipe.draw(out.recipe_of(row, 0)).pixels[0], out.pixels[row])


def test_a_recipe_that_an_editor_on_windows_saved_is_read(recipe, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8-sig")
    assert load_recipe(tmp_path / "recipe.json") == load_recipe(recipe)


def test_the_batches_of_an_image_are_repeated_where_its_bits_are_not_those_remembered(pipe, recipe, monkeypatch):  # noqa: F811
    """Sums of floats may depend on the size of a batch; then the image is drawn at its place in such batches."""
    sizes, sample_images = [], type(pipe._batched).sample_images

    def counting(self, params, captions, bad, rows, *rest, **options):
        sizes.append((captions.states.shape[0], len(rows), rows[0]))
        return sample_images(self, params, captions, bad, rows, *rest, **options)

    monkeypatch.setattr(type(pipe._batched), "sample_images", counting)
    assert pipe.draw(recipe).recipe["rows"][0]["batch"] == [{"captions": [1, 0], "images": [1, 0], "tokens": 64}]
    other = copy.deepcopy(recipe)
    other["rows"][0]["pixels"] = ["0" * 16]
    drawn = pipe.draw(other)
    assert sizes == [(1, 1, 0), (1, 1, 0), (2, 4, 1)]
    assert drawn.recipe["rows"][0]["batch"] == recipe["rows"][0]["batch"]
    assert drawn.recipe["rows"][0]["pixels"] == recipe["rows"][0]["pixels"] != other["rows"][0]["pixels"]
    other["rows"][0]["batch"][0]["images"] = [10**9, 0]  # no batch of a size that nobody drew in
    pipe.draw(other)
    assert sizes[3:] == [(1, 1, 0)]


def test_one_image_of_a_large_call_is_edited_from_its_own_noise(pipe, out):  # noqa: F811
    edited = pipe.edit(out.recipe_of(1, 1), text="a small bird")
    np.testing.assert_array_equal(np.asarray(edited.before), out.pixels[1, 1])
    noise = pipe.sample_images(["bird"], [pipe.latents_tokens(edited.latents)], seed=3, indices=[3])
    np.testing.assert_allclose(128 * noise[0] + 127, np.asarray(edited.after, np.float32), atol=1)
    with pytest.raises(UserError, match="a recipe of 4 images; expected of one"):
        pipe.edit(out.recipe)


def test_an_exported_model_draws_the_same_bits_under_another_path(pipe, out, tmp_path):  # noqa: F811
    named = {name: np.asarray(leaf) for name, leaf in flatten_dict(pipe.params, sep="/").items()}
    save_file(named, tmp_path / "model.safetensors")
    t5 = dataclasses.replace(CONFIG.model.t5, checkpoint=str(tmp_path))
    (tmp_path / "config.json").write_text(
        dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, t5=t5)).to_json()
    )
    exported = KaleidoPipeline.from_pretrained(tmp_path)
    again = exported.draw(out.recipe_of(0, 0))
    np.testing.assert_array_equal(again.pixels[0, 0], out.pixels[0, 0])
    mine = exported.recipe(["fruit"], 1, 0, CONFIG.sample)
    assert str(tmp_path) not in json.dumps(mine) and mine["model"] == out.recipe["model"] | {"step": 0}


def test_a_recipe_of_other_weights_is_refused_by_name(pipe, recipe):  # noqa: F811
    params = jax.tree.map(lambda leaf: leaf + 1e-3, pipe.params)
    with pytest.raises(UserError, match=r"recipe of '.*' \(weights .*this is '.*' \(weights .*same model") as error:
        KaleidoPipeline(CONFIG, params, pipe.codec).draw(recipe)
    assert "\n" not in str(error.value)


def test_a_recipe_of_another_config_or_worse_model_is_refused_by_name(pipe, spoiled):  # noqa: F811
    for part in ("config", "worse"):
        with pytest.raises(UserError, match=f"recipe of 'x' .*{part}.* this is '{CONFIG.name}'"):
            other = spoiled("model", part, value="1" * 16)
            other["model"]["name"] = "x"
            pipe.draw(other)


def test_autoguidance_is_part_of_the_model(pipe):  # noqa: F811
    config = dataclasses.replace(CONFIG, sample=dataclasses.replace(CONFIG.sample, autoguidance_step=1))
    guided = KaleidoPipeline(config, pipe.params, pipe.codec, bad_params=random_params(pipe.codec, 1))
    cfg, worse = (
        guided.recipe(["fruit"], 1, 0, guided.override({"guidance": name})) for name in ("cfg", "autoguidance")
    )
    assert worse["model"] == cfg["model"] | {"worse": weights_checksum(guided.bad_params)} and not cfg["model"]["worse"]
    with pytest.raises(UserError, match="worse model"):
        pipe.draw(worse)


def test_an_edit_turns_autoguidance_on_and_off(pipe, out):  # noqa: F811
    config = dataclasses.replace(CONFIG, sample=dataclasses.replace(CONFIG.sample, autoguidance_step=1))
    guided = KaleidoPipeline(config, pipe.params, pipe.codec, step=7, bad_params=random_params(pipe.codec, 1))
    plain = out.recipe_of(0, 0)
    on = guided.edit(plain, guidance="autoguidance")
    assert on.recipe["model"]["worse"] == weights_checksum(guided.bad_params) and not plain["model"]["worse"]
    for settings in ({"guidance": "cfg"}, {"gamma": 1.0}):
        off = guided.edit(on.recipe, **settings)
        assert off.recipe["model"] == plain["model"] and off.recipe_before == on.recipe
    assert guided.draw(off.recipe).recipe == off.recipe


def test_latents_that_do_not_parse_and_a_hand_written_recipe_are_drawn(pipe, spoiled):  # noqa: F811
    free = pipe("fruit", seed=0, grammar=False)
    assert free.latents == [None]
    np.testing.assert_array_equal(pipe.draw(free.recipe).pixels, free.pixels)
    hand = spoiled("rows", 0, "tokens", value=None)
    for name in ("batch", "pixels", "problem", "latents_index"):
        del hand["rows"][0][name]
    assert pipe.draw(hand).latents == [Latents.from_json(hand["rows"][0]["latents"])]


def through_a_browser(value):
    """JSON as JavaScript writes it, which has one kind of numbers."""
    if isinstance(value, dict):
        return {name: through_a_browser(one) for name, one in value.items()}
    if isinstance(value, list):
        return [through_a_browser(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def test_a_picture_has_one_fingerprint_also_after_a_trip_through_a_browser(pipe, recipe):  # noqa: F811
    page = through_a_browser(recipe)
    assert json.dumps(page) != json.dumps(recipe)
    assert json.dumps(load_recipe(page)) == json.dumps(load_recipe(recipe)) == json.dumps(recipe)
    assert recipe_fingerprint(load_recipe(page)) == recipe_fingerprint(recipe)
    edited = pipe.edit(page, gamma=3)
    assert edited.recipe["history"][-1]["of"] == recipe_fingerprint(recipe)
    assert edited.recipe["sample"]["gamma"] == 3 and json.dumps(edited.recipe) == json.dumps(load_recipe(edited.recipe))


def test_the_fingerprint_of_a_saved_recipe_stays_what_it_was():
    model = {"name": "m", "step": 1, "config": "c", "weights": "w", "worse": None, "precision": "float32"}
    written = new_recipe(model, ["bird"], images_per_caption=1, seed=3, sample=Sample(), has_z=True)
    assert recipe_fingerprint(load_recipe(written)) == "3555154bf5ffbd0a"


@pytest.mark.parametrize("younger", ["cads_mix", "sampler", "gamma", "num_steps"])
def test_a_setting_that_is_younger_than_the_recipe_has_its_default(pipe, recipe, younger):  # noqa: F811
    older = copy.deepcopy(recipe)
    del older["sample"][younger]
    loaded = load_recipe(older)
    assert list(loaded["sample"]) == list(recipe["sample"])
    assert loaded["sample"][younger] == getattr(Sample(), younger)
    if younger != "num_steps":  # more than this process has
        assert pipe.draw(older).grid().width > 0


DEEP = '{"rows":' + "[" * 100_000 + "]" * 100_000 + "}"
HUGE = {"text": "a " * 40_000 + "a"}
HOSTILE = [
    (("format",), FORMAT + 1, "format 2; expected format 1"),
    (("format",), "one", "format 'one'"),
    (("seed",), -1, "seed = -1"),
    (("seed",), True, "seed of type bool"),
    (("seed",), 1.5, "seed of type float"),
    (("seed",), 10**30, "seed = 1"),
    (("sead",), 1, "unknown field 'sead'; expected 'seed'"),
    (("model",), "x", "model of type str; expected an object"),
    (("model", "name"), None, "name of type NoneType"),
    (("model", "path"), "/etc/passwd", "unknown field 'path'"),
    (("rows",), [], "without images"),
    (("rows",), {}, "rows of type dict"),
    (("rows",), [{}], "rows.0. without caption, noise_indices"),
    (("rows", 0, "noise_indices"), [], "0 images"),
    (("rows", 0, "noise_indices"), [2**31], "noise_indices.0. = "),
    (("rows", 0, "noise_indices"), list(range(2**17)), "of length 131,072"),
    (("rows", 0, "caption"), 3, "caption of type int"),
    (("rows", 0, "caption"), "a" * 10**5, "caption of length 100,000"),
    (("rows", 0, "pixels"), [], "pixels of 0 images"),
    (("rows", 0, "batch", 0, "images"), [1, 1], "a batch"),
    (("rows", 0, "batch", 0, "images"), [0, 0], "a batch"),
    (("rows", 0, "latents"), HUGE, "latents of 80,"),
    (("rows", 0, "latents"), {"text": ""}, "empty text"),
    (("rows", 0, "latents"), {"text": "a \ud800"}, "text with"),
    (("rows", 0, "latents"), {"txt": "a"}, "did you mean 'text'"),
    (("rows", 0, "latents"), {"bbox": [{"phrase": "a", "box": [0, 0, float("nan"), 1]}]}, "no JSON"),
    (("rows", 0, "latents"), {"bbox": [{"phrase": "a", "box": [0, 0, 1e9, 1]}]}, "whole numbers"),
    (("sample", "gamma"), float("inf"), "no JSON"),
    (("sample", "gamma"), "four", "config.sample.gamma"),
    (("sample", "gama"), 4.0, "unknown setting 'gama'; expected 'gamma'"),
    (("sample", "autoguidance_workdir"), "/etc", "unknown setting"),
    (("sample", "sampler"), "ddmi", "did you mean"),
    (("history",), [{}], "history.0. without"),
    (("history",), {b"a": 1}, "no JSON"),
    (("history",), {1, 2}, "no JSON"),
]


@pytest.mark.parametrize(("path", "value", "message"), HOSTILE)
def test_a_hostile_recipe_is_refused_in_one_line(spoiled, path, value, message):
    with pytest.raises(UserError, match=message) as error:
        load_recipe(spoiled(*path, value=value))
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("rows", 0, "tokens"), [2**20], "tokens are not those of its latents"),
        (("rows", 0, "tokens"), [5, 6, 1], "tokens are not those of its latents"),
        (("rows", 0, "latents"), None, "1 to 128, ids 0.."),
        (("rows", 0, "caption"), "a fruit " * 40, "tokens"),
        (("rows", 0, "caption"), "a \ud800", "text of Unicode"),
        (("sample", "num_steps"), 10**9, "sampling steps"),
    ],
)
def test_what_only_the_model_knows_is_refused_too(pipe, spoiled, path, value, message):  # noqa: F811
    recipe = spoiled(*path, value=value)
    if value is None:
        recipe["rows"][0]["tokens"] = [5] * 500
    with pytest.raises(UserError, match=message) as error:
        pipe.draw(recipe)
    assert "\n" not in str(error.value)


def test_a_hostile_file_is_refused_in_one_line(recipe, tmp_path):
    text = json.dumps(recipe)
    files = {
        "nan.json": (text.replace('"seed": 3', '"seed": NaN').encode(), "number NaN"),
        "deep.json": (DEEP.encode(), "nests too deeply"),
        "digits.json": (b'{"rows": ' + b"9" * 5000 + b"}", "damaged"),
        "infinite.json": (text.replace('"seed": 3', '"seed": 1e999').encode(), "no JSON"),
        "latin.json": (b'{"rows": "\xff"}', "damaged"),
        "big.json": (b" " * (2**26 + 1), "a recipe of 67,108,865 characters"),
        "empty.json": (b"", "damaged"),
        "null.json": (b"null", "no recipe; expected a PNG or JSON that kaleido_jax saved; "),
        "cut.png": (b"\x89PNG\r\n\x1a\n\0\0", "damaged"),
        "text.png": (text.encode(), ""),  # what it holds decides, not its name
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        if not message:
            assert load_recipe(tmp_path / name) == recipe
            continue
        with pytest.raises(UserError, match=message) as error:
            load_recipe(tmp_path / name)
        assert "\n" not in str(error.value)
    for path in (tmp_path, "/dev/zero", "a\0b", "x" * 5000, "~nobody-of-this-name/x"):
        with pytest.raises(UserError, match="read|home folder"):
            load_recipe(path)


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_recipe_is_told_by_its_type(pipe, out):  # noqa: F811
    for given, name in ((out, "KaleidoOutput"), (None, "NoneType"), (5, "int"), ([out.recipe], "list")):
        for call in (pipe.draw, pipe.edit):
            with pytest.raises(UserError, match=f"a recipe of type {name}; expected a recipe, or the path of one; "):
                call(given)


def test_a_picture_that_would_fill_the_memory_is_refused(recipe, tmp_path):
    bomb = PngImagePlugin.PngInfo()
    bomb.add_text(CHUNK, " " * 2**25, zip=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "text.png", pnginfo=bomb)
    Image.new("1", (9000, 9000)).save(tmp_path / "pixels.png")
    for name, message in (("text.png", "damaged"), ("pixels.png", "9000 x 9000 px; expected at most")):
        with pytest.raises(UserError, match=message):
            load_recipe(tmp_path / name)
