import dataclasses
import io
import json
import re
import runpy

import numpy as np
import pytest
from PIL import Image

from examples.tiny_imagenet import main
from kaleido_jax.annotate.job.run import annotate
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.load import load_config
from kaleido_jax.config.sweep import load_sweep
from kaleido_jax.data.records import open_records, records_folder
from kaleido_jax.data.sources import open_source
from kaleido_jax.errors import UserError
from kaleido_jax.evaluate.sets import check_counts

MODELS = tuple(f"{name}-0" for name in runpy.run_path("configs/tiny_imagenet.py")["SEGMENTS"])
BOXES = ([0, 0, 31, 63], [8, 8, 15, 15], [0, 0, 63, 63])


def packed(path, number=4):
    """Photographs of a gradient, of two subclasses of one superclass in turn; the last one's box has no area."""
    parts = []
    for gray in np.linspace(10, 250, number):
        pixels = np.clip(gray + np.arange(-32, 32), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(np.tile(pixels[:, None, None], (1, 64, 3))).save(buffer, "jpeg", quality=95)
        parts.append(np.frombuffer(buffer.getvalue(), np.uint8))
    np.savez(
        path,
        jpeg=np.concatenate(parts),
        offset=np.cumsum([0, *map(len, parts)]),
        label=np.arange(number, dtype=np.uint8) % 2,
        box=np.array([*(BOXES[i % 3] for i in range(number - 1)), [5, 5, 5, 9]], np.uint8),
        filename=np.array([f"{i}.JPEG" for i in range(number)]),
        name=np.array(["tabby, tabby cat", "Egyptian cat"]),
        super_of_label=np.array([0, 0], np.uint8),
        super_name=np.array(["cat"]),
    )
    return path


def config_of(model, folder, **changes):
    files = {"data.root": str(folder), "model.t5.vocabulary": str(folder / "spiece.model")}
    return load_config(f"tiny_imagenet:{model}", **files | changes)


def names(folder):
    return sorted(str(path.relative_to(folder / "images")) for path in folder.glob("images/*/*/*"))


def test_superclasses_are_captions_and_subclasses_folders_and_names_of_boxes(tmp_path, capsys):
    main([f"--npz={packed(tmp_path / 'x.npz')}", f"--out={tmp_path / 'out'}"])
    assert capsys.readouterr().out == f"4 images in {tmp_path / 'out'}\n"
    expected = ["cat/Egyptian cat/1.JPEG", "cat/Egyptian cat/3.JPEG", "cat/tabby/0.JPEG", "cat/tabby/2.JPEG"]
    assert names(tmp_path / "out") == expected
    source = open_source(config_of("both-0", tmp_path / "out").data, seed=0, image_size=32)
    assert len(source) == 4
    first, second, _, last = (source[i] for i in range(4))
    assert first.caption == "cat" and first.objects[0].phrase == "tabby" and first.objects[0].box == (0, 0, 32, 64)
    assert second.objects[0].box == (8, 8, 16, 16) and last.objects == ()


def test_images_shrink_with_their_boxes_and_the_first_of_each_class_are_kept(tmp_path):
    npz = packed(tmp_path / "x.npz", 6)
    main([f"--npz={npz}", f"--out={tmp_path / 'whole'}"])
    main([f"--npz={npz}", f"--out={tmp_path / 'small'}", "--side=32", "--per_class=2"])
    assert names(tmp_path / "small") == [name for name in names(tmp_path / "whole") if name[-6] in "0123"]
    whole, small = (
        open_source(config_of("both-0", tmp_path / name).data, seed=0, image_size=32) for name in ("whole", "small")
    )
    assert small[1].image.shape == (32, 32, 3) and small[1].objects[0].box == (4, 4, 8, 8)
    means = whole[1].image.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(small[1].image - means).max() < 6
    source = json.loads((tmp_path / "small" / "annotations.json").read_text())
    assert {(image["width"], image["height"]) for image in source["images"]} == {(32, 32)}


def test_the_vocabulary_is_small_and_has_each_word_and_number_as_one_piece(tmp_path):
    for name in ("train", "val"):
        main([f"--npz={packed(tmp_path / 'x.npz', 4 if name == 'train' else 6)}", f"--out={tmp_path / name}"])
    own = [(tmp_path / name / "spiece.model").read_bytes() for name in ("train", "val")]
    assert own[0] == own[1]  # of the names, not of the images
    codec = open_codec(config_of("both-0", tmp_path / "train"))
    assert codec.tokenizer.base_vocab_size <= 384
    assert [len(codec.tokenizer.encode(text)) for text in ("cat", "Egyptian cat", "tabby")] == [1, 2, 1]
    assert codec.constraint is not None  # it has the pieces that constrained sampling needs


def test_every_model_trains_on_the_same_records_which_leave_out_what_has_no_box(tmp_path):
    main([f"--npz={packed(tmp_path / 'x.npz', 20)}", f"--out={tmp_path / 'train'}", "--side=32"])
    few = {"latents.codebook_size": 8, "latents.vokens_per_image": 2, "data.records": str(tmp_path / "made")}
    config = config_of("both-0", tmp_path / "train", **few)
    [manifest] = annotate(config, tmp_path / "made", open_codec(config).tokenizer, progress=False).values()
    assert (manifest.num_records, manifest.left_out) == (19, 1)
    for model in MODELS:
        config = config_of(model, tmp_path / "train", **few)
        records = open_records(records_folder(config, tmp_path / "run"), codec=open_codec(config), image_size=32)
        assert len(records) == 19


def test_the_longest_latents_fit():
    config = load_config("tiny_imagenet:both-0")
    words, box, bar, vokens_and_eos = 3, 10, 1, 2 * config.latents.vokens_per_image
    assert words + box + bar + vokens_and_eos <= config.latents.max_latents_tokens


@pytest.mark.parametrize(("variant", "size", "root"), [("all", "", "runs/tiny"), ("cpu", "cpu-", "runs/tiny_cpu")])
def test_the_sweep_has_all_models_and_their_first_checkpoints(variant, size, root):
    names = []
    sweep = load_sweep(f"sweep_tiny_imagenet:{variant}", {})
    check_counts(sweep.protocol, num_samples=sweep.num_samples, num_reference=sweep.num_reference)
    for model in sweep.models:
        assert model.paths == model.worse or model.same_z
        for path in model.paths:
            folder, _, name = path.rpartition("/")
            train = load_config(f"tiny_imagenet:{size}{name}").train
            assert folder == root and train.num_steps % train.keep_every_steps == 0
            assert model.same_z or model.worse_step == train.keep_every_steps == train.checkpoint_every_steps
            names.append(name)
    assert {*MODELS} < {*names} and sum(name.startswith(("baseline", "both")) for name in {*names}) == 6


def test_the_compared_models_have_the_same_cells_as_in_the_whole_sweep():
    few, whole = (load_sweep(f"sweep_tiny_imagenet:{variant}", {}) for variant in ("cpu-compared", "cpu"))
    assert [model.name for model in few.models] == ["baseline", "boxes and vokens", "boxes and vokens, one z"]
    assert all(len(model.paths) == 3 and {*model.rules} <= {"CFG", "interval"} for model in few.models)
    models = {model.name: model for model in whole.models}
    assert all(dataclasses.replace(model, rules=models[model.name].rules) == models[model.name] for model in few.models)
    assert dataclasses.replace(whole, models=few.models) == few


def test_models_differ_in_seed_and_segments_alone():
    first, other, small = (load_config(f"tiny_imagenet:{name}") for name in ("both-0", "bbox-2", "cpu-both-0"))
    same = {"name": "", "seed": 0, "latents": first.latents}
    assert dataclasses.replace(first, **same) == dataclasses.replace(other, **same)
    assert (first.seed, other.seed) == (0, 2) and other.latents.segments == ("bbox",)
    assert dataclasses.replace(first, name="", train=small.train) == dataclasses.replace(small, name="")
    with pytest.raises(UserError, match="expected MODEL-SEED"):
        load_config("tiny_imagenet:both")


def test_another_file_bad_numbers_and_a_folder_that_is_there_are_refused(tmp_path):
    np.savez(tmp_path / "y.npz", jpeg=np.zeros(3, np.uint8))
    with pytest.raises(UserError, match="expected an .npz with jpeg, offset"):
        main([f"--npz={tmp_path / 'y.npz'}", f"--out={tmp_path / 'out'}"])
    npz = packed(tmp_path / "x.npz")
    for flag, said in (("--per_class=0", "--per_class=0; expected 1"), ("--side=0", "--side=0; expected 1")):
        with pytest.raises(UserError, match=re.escape(said)):
            main([f"--npz={npz}", f"--out={tmp_path / 'out'}", flag])
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(UserError):
        main([f"--npz={npz}", f"--out={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
