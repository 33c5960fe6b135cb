"""The one call from captions to images, on random weights: whose noise, whose z, what it refuses, what it leaves."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kaleido_jax.config.codec import open_codec
from kaleido_jax.errors import UserError
from kaleido_jax.latents.types import Latents
from kaleido_jax.sampling import batched, pipeline
from kaleido_jax.sampling.functional import _bit_sum, _compiled_bit_sum, weights_checksum
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.recipe import load_recipe
from tests.sampling.test_pipeline import CONFIG, random_params

CAPTIONS = ["fruit", "bird"]


@pytest.fixture(scope="module")
def pipe():
    codec = open_codec(CONFIG)
    return KaleidoPipeline(CONFIG, random_params(codec, 0), codec, step=7)


@pytest.fixture(scope="module")
def out(pipe):
    return pipe(CAPTIONS, images_per_caption=2, seed=3)


def test_images_of_a_caption_share_its_latents_and_differ_in_noise(out):
    assert [len(row) for row in out.images] == [2, 2] and out.images[0][0].size == (8, 8)
    assert len(out.latents) == 2 and all(z is not None for z in out.latents)
    assert np.abs(out.x[:, 0] - out.x[:, 1]).max((1, 2, 3)).min() > 1e-2
    assert out.grid().height > 2 * 192


def test_given_latents_draw_from_the_noise_that_they_had(pipe, out):
    again = pipe("fruit", latents=out.latents[0], seed=3)
    np.testing.assert_allclose(again.x[0, 0], out.x[0, 0], atol=1e-5)
    assert again.latents == out.latents[:1] and again.recipe["rows"][0]["latents_index"] is None
    # the noise of row i, image k has the index i * images_per_caption + k
    other = pipe.sample_images(["bird"], [pipe.latents_tokens(out.latents[1])], seed=3, indices=[2])
    np.testing.assert_allclose(other[0], out.x[1, 0], atol=1e-5)


def test_latents_may_grow_beyond_the_bucket(pipe, out):
    limit = CONFIG.latents.max_latents_tokens
    z = out.latents[0].replace(text=" ".join(["fruit"] * limit))
    assert len(pipe.latents_tokens(z)) > limit
    edited = pipe("fruit", latents=z, seed=3)
    assert edited.latents == [z] and np.abs(edited.x[0, 0] - out.x[0, 0]).max() > 1e-3
    with pytest.raises(UserError, match="twice config.latents.max_latents_tokens"):
        pipe("fruit", latents=z.replace(text=" ".join(["fruit"] * 2 * limit)))


def test_one_row_of_a_call_is_what_it_is_alone(pipe, out):
    assert pipe("fruit", seed=3).latents == out.latents[:1]
    twice = pipe(["fruit", "fruit"], seed=3)
    assert twice.latents[0] == out.latents[0] != twice.latents[1]


def test_a_locked_text_stays_and_the_rest_is_sampled(pipe, out):
    text = Latents(text="a small fruit")
    varied = pipe(CAPTIONS, prefix=text, seed=1)
    assert [z.text for z in varied.latents] == ["a small fruit"] * 2 and varied.latents[0] != varied.latents[1]
    second = pipe(CAPTIONS, prefix=[None, text], seed=3)
    assert second.latents[0] == out.latents[0] and second.latents[1].text == "a small fruit"


def test_a_caption_is_encoded_once(pipe, monkeypatch):
    encode, seen = batched._encode_captions, []

    def counted(params, tokens, **options):
        seen.append(len(tokens))
        return encode(params, tokens, **options)

    monkeypatch.setattr(batched, "_encode_captions", counted)
    pipe(CAPTIONS, images_per_caption=2, seed=3)
    assert seen == [2]


def test_latents_that_do_not_parse_are_none_with_the_reason(pipe):
    out = pipe(CAPTIONS, seed=0, grammar=False)
    assert out.latents == [None, None] and all(out.problems)
    assert json.loads(json.dumps(out.recipe))["rows"][0]["latents"] is None
    assert out.grid().height > 2 * 192


def test_a_saved_image_carries_the_recipe_that_draws_it_again(pipe, out, tmp_path):
    out.save(tmp_path / "new" / "folder")
    (path,) = (tmp_path / "new" / "folder").glob("01-bird-1.png")
    recipe = load_recipe(path)
    (row,) = recipe["rows"]
    x = pipe.sample_images([row["caption"]], [row["tokens"]], seed=recipe["seed"], indices=row["noise_indices"])
    pixels = np.clip(x[0] * 128 + 127, 0, 255)
    np.testing.assert_allclose(pixels, np.asarray(Image.open(path), np.float32), atol=0.51)
    assert Latents.from_json(row["latents"]) == out.latents[1]
    assert recipe["model"] == {**recipe["model"], "step": 7, "weights": weights_checksum(pipe.params)}
    assert load_recipe(path.with_name("recipe.json"))["rows"][1]["files"] == ["01-bird-0.png", "01-bird-1.png"]


def test_files_without_a_recipe_are_named(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "plain.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "plain.png").read_bytes()[:40])
    (tmp_path / "list.json").write_text("[1]")
    reasons = {"plain.png": "no recipe", "cut.png": "damaged", "list.json": "no recipe", "x": "No such"}
    for name, message in reasons.items():
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            load_recipe(tmp_path / name)


def test_the_checksum_sees_every_bit_name_and_shape():
    params = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}, "c": np.ones(3, np.float32)}
    digits = weights_checksum(params)
    swapped = {**params, "a": {"b": params["a"]["b"][::-1]}}
    nudged = {**params, "c": np.nextafter(params["c"], np.float32([1, 1, 2]))}
    renamed = {"a": params["a"], "d": params["c"]}
    assert len({digits, *map(weights_checksum, (swapped, nudged, renamed))}) == 4
    assert weights_checksum(dict(reversed(params.items()))) == digits


def test_the_checksum_of_a_device_is_that_of_the_host():
    """Numpy sums what is in the host's memory, a compiled function what is not."""
    whole = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    for array in (whole, whole.astype(jnp.bfloat16), np.asarray(whole[0, 0, 0])):
        start = (0,) * array.ndim
        assert int(_bit_sum(array, start, array.shape)) == int(_compiled_bit_sum(array, start, array.shape))
    for one in (_bit_sum, _compiled_bit_sum):
        parts = [int(one(whole[:, at : at + 2], (0, at, 0), whole.shape)) for at in (0, 2)]
        assert sum(parts) % 2**32 == int(_bit_sum(whole, (0, 0, 0), whole.shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gama": 3.0}, "unknown argument 'gama'; expected gamma"),
        ({"sampler": "ddmi"}, "sample.sampler"),
        ({"num_steps": 10**6}, "sampling steps"),
        ({"autoguidance_step": 1}, "unknown argument"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**32}, "seed"),
        ({"images_per_caption": 0}, "images_per_caption = 0"),
        ({"latents": [Latents(text="a fruit")]}, "1 latents for 2 captions"),
        ({"latents": Latents(text="a fruit")}, "without bbox"),
        ({"latents": Latents(text="a fruit", bbox=(), blob=(), voken=(1, 2))}, "2 vokens; expected 4"),
        ({"prefix": Latents(text="a fruit"), "latents": Latents(text="a fruit")}, "latents and prefix"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(pipe, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        pipe(CAPTIONS, **arguments)
    assert "\n" not in str(error.value)


def test_autoguidance_without_a_worse_model_is_told_before_anything_is_sampled(pipe, out, monkeypatch):
    sample = dataclasses.replace(CONFIG.sample, autoguidance_step=1)  # but the model was loaded for another rule
    loaded = KaleidoPipeline(dataclasses.replace(CONFIG, sample=sample), pipe.params, pipe.codec, step=7)
    monkeypatch.setattr(batched, "_encode_captions", None)
    settings = {"guidance": "autoguidance"}
    for call in (
        lambda: loaded("fruit", **settings),
        lambda: loaded.edit(out.recipe_of(0, 0), **settings),
        lambda: loaded.sample_images(["fruit"], [(5, 1)], seed=0, sample=dataclasses.replace(sample, **settings)),
    ):
        with pytest.raises(UserError, match="loaded without a worse one; expected another rule, or gamma = 1; load"):
            call()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"captions": []}, "no captions; expected at least one"),
        ({"indices": [1]}, "1 indices for 2 captions; expected one for each"),
        ({"indices": [1, 2, 3]}, "3 indices for 2 captions; expected one for each"),
        ({"indices": [1, -2]}, "a sample index = -2; expected a whole number from 0 to 2147483647"),
        ({"indices": [1, 2**31]}, "a sample index = 2147483648"),
        ({"indices": [1, 1.5]}, "a sample index = 1.5"),
        ({"seed": -1}, "seed = -1; expected a whole number from 0"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_parts_of_a_call_refuse_what_it_refuses(pipe, out, given, message):
    given = {"captions": ["fruit", "bird"], "seed": 0} | given
    z = [out.samples[0].tokens] * len(given["captions"])
    for call in (pipe.sample_latents, functools.partial(pipe.sample_images, latents=z)):
        with pytest.raises(UserError, match=message):
            call(**given)


@pytest.mark.parametrize("name", ["latents", "prefix"])
@pytest.mark.parametrize("given", [5, True, "a fruit", {"text": "a fruit"}])
@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_latents_is_told_by_its_type(pipe, name, given):
    with pytest.raises(UserError, match=f"{name} of type {type(given).__name__}; expected Latents, or a list of them"):
        pipe(CAPTIONS, **{name: given})


def test_parts_of_a_call_want_as_many_of_each_as_captions(pipe, out):
    z, tokens = out.latents[0], out.samples[0].tokens
    for call, message in (
        (lambda: pipe.sample_latents("fruit", seed=0), "captions = 'fruit'; expected a list of texts"),
        (lambda: pipe.sample_images("fruit", [tokens], seed=0), "captions = 'fruit'; expected a list of texts"),
        (lambda: pipe.sample_latents(["fruit"], seed=0, prefix=[]), "0 prefixes for 1 captions"),
        (lambda: pipe.sample_latents(CAPTIONS, seed=0, sample=[CONFIG.sample]), "1 settings for 2 captions"),
        (lambda: pipe.edit_latents(["fruit"], [z, z], [{}, {}], seed=0), "2 latents for 1 captions"),
        (lambda: pipe.edit_latents(CAPTIONS, [z, z], [{}], seed=0), "1 edits for 2 captions"),
    ):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.usefixtures("unchecked_types")
def test_indices_may_be_an_array(pipe):
    plain = pipe.sample_latents(["fruit", "bird"], seed=0, indices=[1, 4])
    for indices in (np.array([1, 4]), jnp.array([1, 4]), (np.uint8(1), 4)):
        assert pipe.sample_latents(["fruit", "bird"], seed=0, indices=indices) == plain


@pytest.mark.parametrize("token", [-1, 10**6])
def test_tokens_of_another_vocabulary_draw_nothing(pipe, token):
    with pytest.raises(UserError, match=f"token {token} in latents; expected ids 0..447"):
        pipe.sample_images(["fruit", "bird"], [(5, 1), (5, token, 1)], seed=0)


@pytest.mark.parametrize("chunk", [0, 2.5, "2", True])
@pytest.mark.usefixtures("unchecked_types")
def test_a_batch_has_a_row(pipe, chunk, monkeypatch):
    monkeypatch.setattr(pipeline, "load_export", None)  # it is told before weights are read
    bundled = functools.partial(KaleidoPipeline.from_pretrained, "emoji-tiny")
    for load in (lambda **given: KaleidoPipeline(CONFIG, pipe.params, pipe.codec, **given), bundled):
        with pytest.raises(UserError, match=f"chunk = {chunk!r}; expected at least 1, a whole number"):
            load(chunk=chunk)


@pytest.mark.usefixtures("unchecked_types")
def test_integers_of_numpy_are_whole_numbers(pipe):
    given = {"images_per_caption": 1, "seed": 3, "num_steps": 2, "gamma": 3}
    out, other = pipe("fruit", **given), pipe("fruit", **{name: np.int64(value) for name, value in given.items()})
    assert json.dumps(other.recipe) == json.dumps(out.recipe)
    edits = [
        pipe.edit(out.recipe, resample="voken", seed=kind(5), num_steps=kind(1), gamma=kind(2)).recipe
        for kind in (int, np.uint8)
    ]
    assert json.dumps(edits[0]) == json.dumps(edits[1]) and edits[0]["history"][-1]["seed"] == 5
    for value in (np.float64(1), np.bool_(True), "1"):
        with pytest.raises(UserError, match="a whole number from 0"):
            pipe("fruit", seed=value)


def test_characters_that_the_vocabulary_lacks_are_told_once_in_a_call(pipe, out, caplog):
    line = "caption '\N{RED APPLE}': the vocabulary has no '\N{RED APPLE}'; read as <unk>"
    pipe(["\N{RED APPLE}", "fruit", "\N{RED APPLE}"], num_steps=1)
    told = [record.getMessage() for record in caplog.records]  # progress too, where it takes long
    assert [message for message in told if "vocabulary" in message] == [line]
    edited = pipe.edit(out.recipe_of(0, 0), caption="\N{RED APPLE}", follow=False, num_steps=1)
    assert edited.messages[0] == line and "vocabulary" not in "".join(pipe.edit(edited.recipe).messages)


@pytest.mark.parametrize("captions", [[], ["a \ud83d"], ["a fruit " * 40]])
def test_captions_that_cannot_be_are_refused(pipe, captions):
    with pytest.raises(UserError, match="caption"):
        pipe(captions)


def test_a_caption_that_is_too_long_is_quoted_without_its_control_characters(pipe):
    with pytest.raises(UserError, match=r"caption 'a\\x00\\x1b\[31mred") as error:
        pipe("a\0\x1b[31mred " * 40)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("captions", [None, 5])
@pytest.mark.usefixtures("unchecked_types")
def test_captions_of_another_type_are_refused(pipe, captions):
    with pytest.raises(UserError, match=f"captions = {captions}; expected a text, or a list of texts"):
        pipe(captions)


def test_samples_that_are_not_finite_are_no_images(pipe):
    params = {**pipe.params, "denoiser": {k: v for k, v in pipe.params["denoiser"].items()}}
    name = next(iter(params["denoiser"]))
    params["denoiser"][name] = {k: np.full_like(v, np.nan) for k, v in params["denoiser"][name].items()}
    with pytest.raises(FloatingPointError, match="not finite"):
        KaleidoPipeline(CONFIG, params, pipe.codec)("fruit", threshold="none")


def test_a_baseline_has_no_latents(pipe):
    config = dataclasses.replace(CONFIG, latents=dataclasses.replace(CONFIG.latents, segments=()))
    params = {part: pipe.params[part] for part in ("encoder", "denoiser")}
    baseline = KaleidoPipeline(config, params, open_codec(config))
    out = baseline("fruit", seed=0)
    assert out.latents == [None] and out.problems == [""] and out.recipe["rows"][0]["tokens"] is None
    with pytest.raises(UserError, match="without"):
        baseline("fruit", prefix=Latents(text="a fruit"))


def test_a_name_that_is_no_folder_says_what_is_bundled(tmp_path):
    with pytest.raises(UserError, match=r"no model 'emoji-tinny'; expected .*emoji-tiny, emoji-tiny-baseline"):
        KaleidoPipeline.from_pretrained("emoji-tinny")
    with pytest.raises(UserError, match="config.json cannot be read"):
        KaleidoPipeline.from_pretrained(tmp_path)
