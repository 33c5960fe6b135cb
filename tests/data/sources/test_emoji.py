import hashlib
import itertools

import numpy as np
import pytest

from kaleido_jax.annotate import build_vocab
from kaleido_jax.annotate.job.run import QUANTIZER
from kaleido_jax.annotate.labels import LabeledBlobs, LabeledBoxes, LabeledText
from kaleido_jax.annotate.vokens.features import pixel_features
from kaleido_jax.annotate.vokens.quality import quality
from kaleido_jax.annotate.vokens.quantizer import fit_quantizer, load_quantizer, save_quantizer
from kaleido_jax.data.sources import emoji
from kaleido_jax.data.sources.emoji import PlacedSprite, Scene
from kaleido_jax.errors import UserError
from kaleido_jax.latents import geometry
from kaleido_jax.latents.tokenizer import Tokenizer, load_tokenizer
from kaleido_jax.latents.types import Latents, validate
from tests.emoji import make_records, scenes

SETTINGS = {
    "num_examples": 70,
    "seed": 3,
    "image_size": 32,
    "codebook_size": 16,
    "shard_size": 32,
    "fit_examples": 100,
}
RED_APPLE, ROBIN, RED_HEART = (emoji.SPRITE_NAMES.index(name) for name in ("red apple", "bird", "red heart"))


def one(sprite=RED_APPLE, x=0.5, y=0.5, side=0.8, tilt=0):
    return PlacedSprite(sprite=sprite, x=x, y=y, side=side, tilt=tilt)


def alone(background="blue", **placed):
    return Scene(sprites=(one(**placed),), background=background)


@pytest.fixture(scope="module")
def source():
    return scenes("train", 200)


@pytest.fixture(scope="module")
def features(source):
    return np.stack([pixel_features(source[i].image) for i in range(len(source))])


@pytest.fixture(scope="module")
def quantizer(features):
    return fit_quantizer(features, codebook_size=16)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("emoji", 64)


# ---------------------------------------------------------------------------------------------- the scene
def test_scene_is_a_function_of_seed_split_and_index(source):
    again = scenes("train", 9)
    for index in (0, 7):
        assert source[index].id == again[index].id
        assert source.scene(index) == again.scene(index)
        np.testing.assert_array_equal(source[index].image, again[index].image)
    for other in (scenes("train", 9, seed=1), scenes("test", 9)):
        assert all(source.scene(i) != other.scene(i) for i in range(9))
    assert scenes("train", 9, image_size=64).scene(3) == source.scene(3)  # not of the image's size


def test_shares_are_uneven_known_and_shuffled():
    weights = 1 / (2 + np.arange(12))
    assert emoji.SHARES.shape == (10, 12) and emoji.SHARES.dtype == np.float64
    for shares in emoji.SHARES:
        np.testing.assert_allclose(np.sort(shares)[::-1], weights / weights.sum())
    ranks = {tuple(np.argsort(shares)) for shares in emoji.SHARES}
    assert len(ranks) == 10  # of each kind another order


@pytest.mark.parametrize(("split", "number"), [("train", 1500), ("test", 500)])
def test_sprites_come_in_their_true_shares(split, number):
    source = scenes(split, number)
    drawn = [source.scene(i) for i in range(len(source))]
    single = [scene.sprites[0].sprite for scene in drawn if len(scene.sprites) == 1]
    two = [scene for scene in drawn if len(scene.sprites) == 2]
    assert abs(len(two) / number - 0.2) < 4 * np.sqrt(0.16 / number)  # standard deviations
    counts = np.bincount(single, minlength=120).reshape(10, 12)
    expected = emoji.SHARES / 10 * len(single)
    chi2 = np.sum((counts - expected) ** 2 / expected)
    assert chi2 < 190  # 119 degrees of freedom: the mean is 119, the standard deviation 15
    assert all(scene.sprites[0].kind != scene.sprites[1].kind for scene in two)


def test_held_out_split_shows_what_training_never_shows():
    for split, held_out in (("train", False), ("test", True)):
        source = scenes(split, 150)
        for index in range(len(source)):
            scene = source.scene(index)
            assert all(emoji.is_held_out(placed, scene.background) == held_out for placed in scene.sprites)
    combinations = itertools.product(
        emoji.BACKGROUNDS, np.linspace(0.3, 0.7, 3), np.linspace(0.3, 0.7, 3), (-30, 0, 30)
    )
    share = np.mean([emoji.is_held_out(one(x=x, y=y, tilt=tilt), b) for b, x, y, tilt in combinations])
    assert 0.03 < share < 0.2  # of 216, near one in ten


def test_two_sprites_are_both_seen_and_the_larger_comes_first():
    source = scenes("train", 60, two_share=1.0)
    for index in range(len(source)):
        scene = source.scene(index)
        first, second = scene.sprites
        assert first.side >= second.side
        _, masks = emoji.render(scene, 64)
        whole = [emoji.render(Scene(sprites=(p,), background="white"), 64)[1][0].sum() for p in scene.sprites]
        assert masks[0].sum() > 0.85 * whole[0] and masks[1].sum() == whole[1]
    assert all(len(scenes("train", 20, two_share=0.0).scene(i).sprites) == 1 for i in range(20))


@pytest.mark.parametrize("split", emoji.SPLITS)
def test_close_ups_are_large_and_upright_and_other_records_than_the_usual_ones(split):
    close = scenes(split, 60, two_share=0.0, least_side=0.8, most_tilt=12)
    placed = [close.scene(i).sprites[0] for i in range(len(close))]
    assert all(p.words[0] == "large" and p.words[2] == "upright" and p.side >= 0.8 for p in placed)
    assert len({p.words[1] for p in placed}) > 3
    usual = scenes(split, 60, two_share=0.0)
    assert close.fingerprint != usual.fingerprint
    assert usual.fingerprint == scenes(split, 60, two_share=0.0, least_side=0.45, most_tilt=45).fingerprint
    assert [usual.scene(i).sprites[0].sprite for i in range(60)] == [p.sprite for p in placed]  # the same modes


def test_some_kinds_alone_keep_their_shares_and_others_are_refused():
    source = scenes("train", 300, kinds=("bird", "fruit"))
    drawn = [placed.sprite for i in range(300) for placed in source.scene(i).sprites]
    found = {emoji.KINDS[sprite // 12] for sprite in drawn}
    assert found == {"bird", "fruit"} and source.class_names == ("bird", "fruit")
    fruit = np.bincount([sprite for sprite in drawn if sprite < 12], minlength=12)
    assert abs(fruit / fruit.sum() - emoji.SHARES[0]).max() < 0.1
    with pytest.raises(UserError, match="'dog'"):
        scenes("train", 1, kinds=("dog",))
    with pytest.raises(UserError, match="two_share = 0.2 with one kind"):
        scenes("train", 1, kinds=("bird",))


def test_the_oracle_text_names_the_sprites_alone():
    told, usual = scenes("train", 20, names_alone=True), scenes("train", 20)
    for i in range(20):
        names = [emoji.SPRITE_NAMES[placed.sprite] for placed in usual.scene(i).sprites]
        assert told[i].description == " and ".join(names) and usual[i].description != told[i].description
        assert told.scene(i) == usual.scene(i)
    assert told.fingerprint != usual.fingerprint


# ---------------------------------------------------------------------------------------------- the words
def test_words_say_what_is_drawn():
    scene = Scene(sprites=(one(x=0.3, y=0.3, tilt=-20), one(ROBIN, 0.8, 0.7, 0.4, 0)), background="blue")
    text = "a large red apple, upper left, tilted left and a small bird, lower right, upright, on blue"
    assert emoji.describe(scene) == text and emoji.caption(scene) == "a fruit and a bird"
    assert emoji.describe(alone(side=0.6, tilt=45)) == "a medium red apple, center, tilted right, on blue"
    assert emoji.caption(alone()) == "fruit"
    places = [emoji.place_word(x, y) for y in (0.2, 0.5, 0.8) for x in (0.2, 0.5, 0.8)]
    assert tuple(places) == emoji.PLACES
    assert tuple(emoji.size_word(side) for side in (0.45, 0.6, 0.9)) == emoji.SIZES
    assert tuple(emoji.tilt_word(tilt) for tilt in (-13, 12, 13)) == emoji.TILTS


def test_labels_are_those_of_the_scene(source):
    for index in range(12):
        scene, example = source.scene(index), source[index]
        assert source.class_names[source.label(index)] in example.caption
        assert [labeled.phrase for labeled in example.objects] == [emoji.SPRITE_NAMES[p.sprite] for p in scene.sprites]
        assert all(labeled.mask.shape == (32, 32) and labeled.mask.any() for labeled in example.objects)


# -------------------------------------------------------------------------------------------- the drawing
@pytest.mark.parametrize("image_size", [16, 32, 48, 200])
def test_background_is_exact_outside_the_sprite(image_size):
    image, [mask] = emoji.render(alone("purple", side=0.5), image_size)
    assert image.shape == (image_size, image_size, 3) and image.dtype == np.uint8
    border = np.ones_like(mask)
    inside = slice(image_size // 5, image_size - image_size // 5)
    border[inside, inside] = False
    assert (image[border] == emoji.BACKGROUNDS["purple"]).all() and not mask[border].any()
    assert (np.abs(image[mask].astype(int) - emoji.BACKGROUNDS["purple"]).sum(axis=-1) > 30).mean() > 0.9


def test_edges_are_free_of_the_colors_of_transparent_pixels():
    image, _ = emoji.render(alone("white", sprite=RED_HEART), 64)
    assert image[..., 0].min() > 150  # red over white stays bright; a dark rim would not


def test_tilt_turns_clockwise_as_seen():
    # A heart's tip points down: turned clockwise, it goes to the left.
    tips = {}
    for tilt in (-30, 0, 30):
        rows, columns = np.nonzero(emoji.render(alone(sprite=RED_HEART, tilt=tilt), 64)[1][0])
        tips[tilt] = columns[rows == rows.max()].mean() / 64
    assert tips[30] < tips[0] - 0.1 and tips[-30] > tips[0] + 0.1


def test_boxes_and_ellipses_do_not_depend_on_the_size_of_the_image():
    sources = {px: scenes("train", 20, image_size=px) for px in (32, 64, 128)}
    for index in range(20):
        z = {px: _latents(source[index]) for px, source in sources.items()}
        assert z[32].bbox == z[64].bbox == z[128].bbox
        for a, b in zip(z[32].blob, z[128].blob, strict=True):
            # Half a pixel of 32 is 16 units.
            np.testing.assert_allclose(a.blob[:4], b.blob[:4], atol=20)


def test_box_holds_what_is_seen(source):
    for index in range(20):
        example = source[index]
        for labeled in example.objects:
            measured = np.array(geometry.mask_to_box(labeled.mask)) * 32 / 1000
            # Thin ends cover less than half of a pixel of 32.
            assert np.abs(measured - labeled.box).max() < 3 and (measured - labeled.box)[2:].max() <= 1.01


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match="scenes of 8 px; expected at least 16"):
        scenes("train", 1, image_size=8)
    with pytest.raises(UserError, match="at least 16"):
        emoji.render(alone(), 15)
    with pytest.raises(UserError, match="expected one of train, test"):
        scenes("validation", 1)
    hidden = Scene(sprites=(one(side=0.3), one(RED_HEART, side=0.9)), background="white")
    with pytest.raises(UserError, match="red apple cannot be seen"):
        emoji.visible_boxes(hidden)


def _latents(example):
    """What the annotators of labels make of it."""
    [text], [boxes], [blobs] = (a([example], [Latents()]) for a in (LabeledText(), LabeledBoxes(2), LabeledBlobs(2)))
    return validate(Latents(text=text.text, bbox=boxes.bbox, blob=blobs.blob))


# ----------------------------------------------------------------------------- quantizer, vocabulary, records
def test_each_level_of_the_quantizer_brings_the_image_nearer(quantizer, features):
    message = quality(quantizer, features)
    assert (np.diff(message["rmse"]) < 0).all() and message["explained_variance"][-1] > 0.8
    assert min(message["codes_used"]) > 0.8  # no codebook is idle on what it was fitted on
    codes = quantizer.encode(features)
    assert codes.shape == (200, 8) and codes.min() >= 0 and codes.max() < 16


def test_quantizer_file_gives_the_same_codes_and_tells_damage(quantizer, features, tmp_path):
    path = tmp_path / QUANTIZER
    save_quantizer(quantizer, path, {"seed": 1})
    loaded, fitted_for = load_quantizer(path)
    assert fitted_for == {"seed": 1} and loaded.fingerprint == quantizer.fingerprint
    np.testing.assert_array_equal(loaded.encode(features), quantizer.encode(features))
    assert fit_quantizer(features, codebook_size=16).fingerprint == quantizer.fingerprint
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    for damaged in (bytes(content), bytes(content[:100]), b"<html>"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            load_quantizer(path)
    with pytest.raises(UserError, match="distinct images"):
        fit_quantizer(features[:10], codebook_size=16)


def test_shipped_vocabulary_is_what_the_tool_builds(tokenizer, tmp_path):
    path = tmp_path / "spiece.model"
    path.write_bytes(build_vocab.build())
    built = Tokenizer(path, extra_ids=0, codebook_size=64)
    # Pieces, not bytes: the last digits of the scores may differ between builds of sentencepiece.
    assert [built.piece(i) for i in range(built.num_pieces)] == [
        tokenizer.piece(i) for i in range(tokenizer.num_pieces)
    ]


def _hashes(folder):
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".array_record", ".safetensors"))
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_records_made_again_are_bit_identical(tmp_path, tokenizer):
    for name in ("a", "b"):
        make_records(tmp_path / name, num_test=70, tokenizer=tokenizer, **SETTINGS)
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")
    assert len(_hashes(tmp_path / "a")) == 3 + 3 + 1


def test_finished_shards_are_kept_and_lost_ones_made_again(tmp_path, tokenizer):
    make_records(tmp_path, tokenizer=tokenizer, **SETTINGS)
    before = _hashes(tmp_path)
    first, second, _ = sorted(tmp_path.glob("train/*.array_record"))
    manifest = (tmp_path / "train/manifest.json").read_bytes()
    written = first.stat().st_mtime_ns
    second.unlink()
    make_records(tmp_path, tokenizer=tokenizer, **SETTINGS)
    assert first.stat().st_mtime_ns == written
    assert _hashes(tmp_path) == before
    assert (tmp_path / "train/manifest.json").read_bytes() == manifest


def test_overlong_examples_are_dropped_and_counted(tmp_path, tokenizer):
    manifest = make_records(tmp_path, num_test=2, tokenizer=tokenizer, max_caption_tokens=3, **SETTINGS)
    source = scenes("train", 70, seed=3)
    two = [
        i for i in range(70) if len(source.scene(i).sprites) == 2
    ]  # "a fruit and a bird" is longer than "sea animal"
    assert manifest.left_out == len(two) > 0 and manifest.num_records == 70 - len(two)
    assert manifest.max_tokens["caption"] == 3
    assert all(reason.startswith("length: caption of ") for reason in manifest.reasons)
    assert manifest.failures[0]["id"] == source.id(two[0])


def test_quantizer_of_another_setup_is_not_overwritten(tmp_path, tokenizer):
    make_records(tmp_path, tokenizer=tokenizer, **SETTINGS)
    with pytest.raises(UserError, match="was fitted for"):
        make_records(tmp_path, tokenizer=tokenizer, **SETTINGS | {"codebook_size": 8})
    with pytest.raises(UserError, match="codebook of 128"):
        make_records(tmp_path, tokenizer=tokenizer, **SETTINGS | {"codebook_size": 128})
