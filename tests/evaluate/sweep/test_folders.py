"""Modes that are folders: plain colors, which mean colors as features tell apart."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.config.sweep import Sweep, SweptModel, SweptRule
from kaleido_jax.errors import UserError
from kaleido_jax.evaluate import sets
from kaleido_jax.evaluate.features.extractor import Extractor
from kaleido_jax.evaluate.sets import SetProtocol
from kaleido_jax.evaluate.sweep import folders
from kaleido_jax.evaluate.sweep.drawing import Drawn
from kaleido_jax.evaluate.sweep.folders import FolderMeasure
from kaleido_jax.evaluate.sweep.measures import open_measure

COLORS = {
    "warm": {"red": (220, 30, 30), "orange": (230, 140, 20)},
    "cold": {"blue": (20, 40, 220), "green": (20, 190, 60)},
}
EACH = {"red": 12, "orange": 6, "blue": 9, "green": 9}
SIDE = 8
SAMPLED = {
    "checkpoint": "aa",
    "prior": "",
    "sampler": "x",
    "num_steps": 1,
    "guidance": "cfg",
    "gamma": 1.0,
    "seeds": (0,),
}


def picture(rng, color, side=SIDE):
    return np.clip(np.array(color) + rng.normal(0, 12, (side, side, 3)), 0, 255).astype(np.uint8)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for caption, modes in COLORS.items():
        for mode, color in modes.items():
            (tmp_path / caption / mode).mkdir(parents=True)
            for i in range(EACH[mode]):
                Image.fromarray(picture(rng, color, 2 * SIDE)).save(tmp_path / caption / mode / f"{i}.png")
    protocol = SetProtocol(extractors=("mean",), resize="", num_samples=20, num_reference=36, num_neighbors=20)
    monkeypatch.setitem(sets.SET_PROTOCOLS, "colors", protocol)
    means = Extractor(name="mean color", weights="0", resize="none", of=lambda x: x.mean(axis=(1, 2), dtype=np.float32))
    monkeypatch.setattr(folders, "open_extractor", lambda name, path: means)
    models = (SweptModel(name="a", paths=("x",)),)
    sizes = {"num_samples": 20, "num_reference": 36}
    return Sweep(protocol="colors", models=models, rules=(SweptRule(name="CFG"),), reference=str(tmp_path), **sizes)


def drawn(colors):
    """20 samples of the two captions in turn; `colors` for each caption in turn."""
    rng, kinds = np.random.default_rng(1), np.arange(20) % 2
    pixels = np.stack([picture(rng, colors[kind][i // 2 % len(colors[kind])]) for i, kind in enumerate(kinds)])
    return Drawn(captions=kinds, pixels=pixels, z=[])


def test_modes_are_counted_beside_their_true_shares(sweep, tmp_path):
    measure = open_measure(sweep, SIDE, tmp_path)
    assert measure.captions == ("cold", "warm") and measure.modes["warm"].names == ("orange", "red")
    assert measure.modes["warm"].shares == pytest.approx((1 / 3, 2 / 3))
    assert measure.about["reader"]["accuracy"] == 1 and measure.about["reader"]["num_test"] == 12
    cold, warm = (list(COLORS[caption].values()) for caption in ("cold", "warm"))
    both = measure(drawn([cold, warm]), SAMPLED)
    assert both.result.values["kind_right"] == 1
    assert both.result.values["effective_number"] == pytest.approx(2)
    assert both.captions["cold"]["shares"] == {"blue": 0.5, "green": 0.5}
    assert both.captions["warm"]["total_variation"] == pytest.approx(1 / 6)
    assert both.seen.tolist()[:4] == [0, 1, 1, 0]  # blue, red, green, orange among their own caption's modes
    one = measure(drawn([cold[:1], warm[:1]]), SAMPLED)
    assert one.result.values["effective_number"] == pytest.approx(1)
    assert one.result.values["recall"] < both.result.values["recall"]
    assert one.result.values["frechet"] > 2 * both.result.values["frechet"]


def test_samples_of_another_caption_are_wrong_and_of_no_mode(sweep, tmp_path):
    cold, warm = (list(COLORS[caption].values()) for caption in ("cold", "warm"))
    swapped = open_measure(sweep, SIDE, tmp_path)(drawn([warm, warm]), SAMPLED)
    assert swapped.result.values["kind_right"] == 0.5
    assert swapped.captions["cold"]["shares"] is None and set(swapped.seen[::2].tolist()) == {-1}


def test_a_measure_is_another_when_an_image_that_only_the_probe_sees_or_a_label_changes(sweep, tmp_path, monkeypatch):
    of_four = dataclasses.replace(sets.SET_PROTOCOLS["colors"], num_reference=4, num_neighbors=4)
    monkeypatch.setitem(sets.SET_PROTOCOLS, "colors", of_four)
    sweep = dataclasses.replace(sweep, num_reference=4)  # the last image of orange is one, the one before is not
    found = [FolderMeasure.open(sweep, SIDE) for _ in range(2)]
    path = tmp_path / "warm" / "orange" / "4.png"
    Image.new("RGB", (2 * SIDE, 2 * SIDE)).save(path)
    found.append(FolderMeasure.open(sweep, SIDE))
    # The last image of orange becomes the first of red: the same images in the same order.
    path.with_name("5.png").rename(tmp_path / "warm" / "red" / "-.png")
    found.append(FolderMeasure.open(sweep, SIDE))
    assert len({one.reference.name for one in found}) == 1
    first, same, pixels, label = (one.identity for one in found)
    assert first == same and len({first, pixels, label}) == 3


def test_hidden_folders_and_files_and_those_of_systems_are_no_modes(sweep, tmp_path):
    (tmp_path / "warm" / "@eaDir").mkdir()
    hidden = [f"{folder}/{i}.png" for folder in ("__MACOSX/warm", "warm/.ipynb_checkpoints") for i in range(3)]
    for name in (*hidden, "warm/red/._0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    measure = open_measure(sweep, SIDE, tmp_path)
    assert measure.captions == ("cold", "warm") and measure.modes["warm"].names == ("orange", "red")
    assert measure.modes["warm"].shares == pytest.approx((1 / 3, 2 / 3))


def test_more_real_images_than_the_protocol_wants_are_neighbors_of_all_captions(sweep, tmp_path):
    rng = np.random.default_rng(2)
    real = np.concatenate([rng.normal(mean, 1, (60, 4)) for mean in (0, 100)]).astype(np.float32)  # in order of caption
    samples = np.concatenate([rng.normal(mean, 1, (10, 4)) for mean in (0, 100)]).astype(np.float32)
    identity = {"extractor": "mean color", "weights": "0", "resize": "none"}
    reference = sets.reference_of(real, name="x", split="", identity=identity)
    found = sets.measure_set("colors", reference, samples, identity=identity, sampled_with=SAMPLED).values
    assert found["precision"] > 0.8  # beside the first 20 alone, at most a half


def test_a_models_captions_are_asked_for_and_not_the_folders_names(sweep, tmp_path):
    (tmp_path / "warm").rename(tmp_path / "warm_and_blu\u0308te")
    (tmp_path / "cold").rename(tmp_path / "n01440764")
    measure = open_measure(sweep, SIDE, tmp_path)
    assert measure.captions == ("tench", "warm and bl\u00fcte") and measure.modes["tench"].names == ("blue", "green")
    shutil.copytree(tmp_path / "n01440764", tmp_path / "warm and bl\u00fcte")
    with pytest.raises(UserError, match="two folders for 'warm and bl\u00fcte'"):
        open_measure(sweep, SIDE, tmp_path)


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"num_samples": 21}, "21 samples for protocol colors; expected 20"), ({}, "35 real images for protocol colors")],
)
def test_counts_that_are_not_the_protocols_are_refused_before_anything_is_extracted(
    sweep, tmp_path, monkeypatch, changes, found
):
    (tmp_path / "warm" / "red" / "0.png").unlink()
    monkeypatch.setattr(folders, "open_extractor", None)
    with pytest.raises(UserError, match=found):
        open_measure(dataclasses.replace(sweep, **changes), SIDE, tmp_path)


def test_folders_that_do_not_fit_are_refused_in_one_line(sweep, tmp_path):
    with pytest.raises(UserError, match="without sweep.reference"):
        open_measure(dataclasses.replace(sweep, reference=""), SIDE, tmp_path)
    with pytest.raises(UserError, match=re.escape("no folders CAPTION/MODE")):
        open_measure(dataclasses.replace(sweep, reference=str(tmp_path / "warm")), SIDE, tmp_path)
    (tmp_path / "warm" / "pink").mkdir()
    with pytest.raises(UserError, match="0 images in .*pink; expected 3 or more"):
        open_measure(sweep, SIDE, tmp_path)
    for i in range(3):
        (tmp_path / "warm" / "pink" / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="pink.*not an image"):
        open_measure(sweep, SIDE, tmp_path)
