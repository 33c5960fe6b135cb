from importlib import resources
from pathlib import Path

import jax
import numpy as np
import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.evaluate import sprite_reader
from kaleido_jax.evaluate.sprite_reader import VERSION, accuracy_on_scenes, open_reader, save_reader, train_reader


def test_the_shipped_reader_is_as_accurate_as_it_says():
    file = resources.files("kaleido_jax") / "assets/emoji/reader_32.safetensors"
    assert len(file.read_bytes()) <= 2**20
    reader = open_reader(32, Path())
    assert reader.metadata["version"] == VERSION, "train it again: python -m kaleido_jax.evaluate.sprite_reader"
    assert reader.metadata["accuracy"] > 0.97
    found = accuracy_on_scenes(reader, 100)
    assert found["accuracy"] >= 0.93  # 100 scenes of 97 % have 0.017 of standard deviation
    assert found["tilt_error_degrees_median"] < 8


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match="images of 48x48 px; expected 32 px or a multiple"):
        open_reader(32, Path())(np.zeros((1, 48, 48, 3), np.uint8))


def test_a_reader_of_another_size_is_trained_once_and_kept(tmp_path, monkeypatch):
    trained = []

    def counted(image_size, steps):
        trained.append(train_reader(image_size, steps) if not trained else trained[0])
        return trained[-1]

    monkeypatch.setattr(sprite_reader, "train_reader", counted)
    first, second = (open_reader(16, tmp_path, steps=2) for _ in range(2))
    assert len(trained) == 1 and first.metadata == second.metadata
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, second.params))
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    one, other = first(images), second(images)
    assert np.array_equal(one.sprite, other.sprite) and one.tilt.shape == (5,)
    old = sprite_reader.replace(first, metadata=first.metadata | {"version": "old"})
    save_reader(old, tmp_path / "reader_16.safetensors")
    open_reader(16, tmp_path, steps=2)
    assert len(trained) == 2


def test_larger_images_are_read_as_their_means():
    reader = open_reader(64, Path())
    large = np.random.default_rng(2).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    small = np.rint(large.reshape(3, 32, 2, 32, 2, 3).mean(axis=(2, 4))).astype(np.uint8)
    assert np.array_equal(reader(large).tilt, reader(small).tilt)


def test_an_image_is_read_alike_in_any_company():
    reader = open_reader(32, Path())
    images = np.random.default_rng(1).integers(0, 256, (201, 32, 32, 3)).astype(np.uint8)
    together, alone = reader(images), reader(images[200:])
    assert together.sprite[200] == alone.sprite[0]
    assert together.tilt[200] == pytest.approx(alone.tilt[0], abs=1e-2)
