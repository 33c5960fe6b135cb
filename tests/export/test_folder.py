"""Export: a folder that samples what the run samples, and tells what it is."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from kaleido_jax.config import load
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.schema import Config, Init, T5Encoder
from kaleido_jax.errors import UserError
from kaleido_jax.evaluate import protocols
from kaleido_jax.export import folder
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.main import main
from kaleido_jax.sampling import pipeline
from kaleido_jax.sampling.functional import weights_checksum
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.weights import Weights
from tests.sampling.test_pipeline import CONFIG, random_params

SAMPLE = {"gamma": 4.0, "sampler": "ddim", "cads_tau": [0.6, 0.9], "guidance_interval": [0.8, 9.0]}
REPORT = {"accuracy": 0.1234, "of": {"step": 7, "num_samples": 20, "sample": SAMPLE}}


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A workdir whose checkpoint is random weights at step 7; reading real checkpoints is tests/test_verbs.py's."""
    path = tmp_path / "run"
    (path / "checkpoints").mkdir(parents=True)
    (path / "eval").mkdir()
    data = dataclasses.replace(CONFIG.data, records=str(tmp_path))
    (path / "config.json").write_text(dataclasses.replace(CONFIG, data=data).to_json())
    (path / "eval" / "some.json").write_text(json.dumps(REPORT | {"accuracy": 0.123400004, "real": {"accuracy": 1.0}}))
    params = random_params(open_codec(CONFIG), 0)
    monkeypatch.setattr(pipeline, "load_workdir", lambda *_: Weights(params=params, step=7))
    return path


def test_a_folder_holds_the_weights_and_nothing_of_this_machine(workdir, tmp_path):
    main(["export", f"--workdir={workdir}", f"--output={tmp_path / 'out'}"])
    run, exported = (KaleidoPipeline.from_pretrained(path) for path in (workdir, tmp_path / "out"))
    assert exported.step == 7 and exported.config.model == run.config.model
    found = flatten_dict(exported.params, sep="/")
    for name, leaf in flatten_dict(run.params, sep="/").items():
        np.testing.assert_array_equal(found[name], np.asarray(leaf).astype(np.float16).astype(np.float32), err_msg=name)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float16)}
    files = ("config.json", "README.md", "export.json", "eval/some.json")
    texts = [(tmp_path / "out" / name).read_text() for name in files]
    assert json.loads(texts[3]) == REPORT
    assert not any(str(tmp_path) in text for text in texts)
    batch = CONFIG.train.batch_size
    assert f"7 steps of {batch} samples ({7 * batch} images)" in texts[1] and "| accuracy | 0.1234 |" in texts[1]
    assert all(line.count("|") == 3 for line in texts[1].splitlines() if line.startswith("|"))  # no cell is cut
    order = [texts[1].index(f"\n## {title}\n") for title in ("Measures", "Limits", "Use")]
    assert order == sorted(order)
    assert "`eval/some.json` (samples 20, gamma 4.0, sampler ddim, guidance_interval [0.8, 9.0]):" in texts[1]
    with pytest.raises(UserError, match="exists; expected a new folder"):
        main(["export", f"--workdir={workdir}", f"--output={tmp_path / 'out'}"])


def test_a_portable_config_has_no_folder_of_this_machine():
    tar = dataclasses.replace(CONFIG.data.tar, index="/home/me/index", classes="imagenet")
    tfds = dataclasses.replace(CONFIG.data.tfds, folder="/home/me/tfds/imagenet2012")
    paths = {"labels": ("/home/me/names.tsv", "more.tsv"), "images": "/home/me/photos", "records": "/home/me/records"}
    data = dataclasses.replace(CONFIG.data, tar=tar, tfds=tfds, root="/home/me", **paths)
    portable = folder.portable(dataclasses.replace(CONFIG, data=data))
    assert "/home" not in portable.to_json()
    assert (portable.data.labels, portable.data.images) == (("names.tsv", "more.tsv"), "photos")
    assert (portable.data.tar.classes, portable.data.tfds.folder) == ("imagenet", "imagenet2012")


RESTORE = """
import json, sys
import numpy as np
import orbax.checkpoint as ocp
sys.modules["kaleido_jax"] = None  # importing it fails
checkpointer, folder = ocp.StandardCheckpointer(), sys.argv[1]
params, metadata = checkpointer.restore(folder), checkpointer.metadata(folder).custom_metadata
flat = {}
def flatten(tree, prefix):
    for name, leaf in tree.items():
        flatten(leaf, prefix + name + "/") if isinstance(leaf, dict) else flat.update({prefix + name: np.asarray(leaf)})
flatten(params, "")
np.savez(sys.argv[2], metadata=json.dumps(metadata), **flat)
"""


def test_a_report_that_is_damaged_is_named_and_what_is_hidden_is_none(workdir):
    (workdir / "eval" / "._some.json").write_bytes(b"\0\5\x16\7\xff\xfe")  # macOS writes these into archives
    assert list(folder.measures(workdir)) == ["some"]
    (workdir / "eval" / "other.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"other.json is damaged \(not an object\); expected a report"):
        folder.measures(workdir)
    (workdir / "eval" / "other.json").write_text('{"of": [1], "accuracy": 0.5}')
    told = folder.model_card(KaleidoPipeline.from_pretrained(workdir), folder.measures(workdir))
    assert "`eval/other.json`:" in told and "| accuracy | 0.5 |" in told


def test_measures_of_other_weights_are_told_and_left_out(workdir, tmp_path, caplog):
    own = weights_checksum(KaleidoPipeline.from_pretrained(workdir).params)
    for name, step, weights in (("now", 7, own), ("before", 5, "0" * 16), ("tuned", 7, "1" * 16)):
        report = {"accuracy": 0.5, "of": {"model": {"step": step, "weights": weights}}}
        (workdir / "eval" / f"{name}.json").write_text(json.dumps(report))
    first = folder.export_folder(workdir, tmp_path / "first")  # in float16, whose digits are others
    assert caplog.messages == [
        "eval/before.json is of step 5, not of 7, and is left out; measure again",
        "eval/tuned.json is of other weights, and is left out; measure again",
    ]
    again = folder.export_folder(first, tmp_path / "again")
    for path in (first, again):
        assert {one.name for one in (path / "eval").iterdir()} == {"now.json", "some.json"}
        card = (path / "README.md").read_text()
        assert "`eval/now.json`" in card and "before" not in card and "tuned.json" not in card


def test_orbax_alone_restores_the_same_parameters(workdir, tmp_path):
    main(["export", f"--workdir={workdir}", f"--output={tmp_path / 'out'}", "--orbax"])
    command = [sys.executable, "-c", RESTORE, str(tmp_path / "out" / "orbax"), str(tmp_path / "params.npz")]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=600)
    found, stored = np.load(tmp_path / "params.npz"), load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads(str(found["metadata"])) == {"name": CONFIG.name, "step": 7, "precision": "float16"}
    assert set(found.files) == {"metadata", *stored}
    for name, array in stored.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)
    assert KaleidoPipeline.from_pretrained(tmp_path / "out").step == 7


def test_what_was_exported_is_exported_again(workdir, tmp_path):
    first = folder.export_folder(workdir, tmp_path / "first", "float32")
    again = folder.export_folder(first, tmp_path / "again")
    whole, half = (load_file(path / "model.safetensors") for path in (first, again))
    for name, array in whole.items():
        np.testing.assert_array_equal(half[name], array.astype(np.float16), err_msg=name, strict=True)
    assert (again / "eval" / "some.json").read_text() == (first / "eval" / "some.json").read_text()
    assert json.loads((again / "export.json").read_text()) == {"step": 7, "precision": "float16"}
    assert again.joinpath("README.md").read_text() == first.joinpath("README.md").read_text()


@pytest.mark.slow
def test_a_recipe_draws_the_same_bytes_after_export_and_reload(workdir, tmp_path):
    run = KaleidoPipeline.from_pretrained(workdir)
    out = run(["bird"], seed=3, num_steps=2)
    exported = KaleidoPipeline.from_pretrained(folder.export_folder(workdir, tmp_path / "out", "float32"))
    again = exported.draw(out.recipe)
    np.testing.assert_array_equal(again.pixels, run.draw(out.recipe).pixels)
    assert again.recipe == run.draw(out.recipe).recipe
    with pytest.raises(UserError, match="weights"):
        KaleidoPipeline.from_pretrained(folder.export_folder(workdir, tmp_path / "half")).draw(out.recipe)


def test_the_folder_is_laid_out_as_a_repository_of_the_hub(workdir, tmp_path):
    out = folder.export_folder(workdir, tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "config.json", "eval", "export.json", "model.safetensors", "spiece.model")
    }
    _, metadata, _ = out.joinpath("README.md").read_text().split("---\n", 2)  # the card's YAML
    assert "library_name: kaleido_jax\npipeline_tag: text-to-image\ntags: [" in metadata
    assert Tokenizer(out / "spiece.model", 0, CONFIG.latents.codebook_size).fingerprint == (
        open_codec(CONFIG).tokenizer.fingerprint
    )


def test_the_command_that_trains_a_model_again_names_what_the_folder_lacks(workdir):
    config = Config.from_json(workdir)
    told = {}
    for source in ("emoji", "folder"):
        t5 = dataclasses.replace(config.model.t5, encoder=T5Encoder(trainable=source == "emoji"))
        data = dataclasses.replace(config.data, source=source)
        own = dataclasses.replace(config, data=data, model=dataclasses.replace(config.model, t5=t5))
        card = folder.model_card(KaleidoPipeline.from_pretrained(workdir, own), {})
        (told[source],) = (line for line in card.splitlines() if "--config=config.json" in line)
    assert told["emoji"].endswith(" --workdir=DIR")  # its records are drawn
    assert told["folder"].endswith(" --workdir=DIR --config.data.records=RECORDS --config.model.t5.checkpoint=T5")


def test_what_is_exported_needs_nothing_that_stays_behind(workdir, tmp_path):
    config = Config.from_json(workdir)
    sample = dataclasses.replace(
        config.sample, guidance="autoguidance", autoguidance_step=3, autoguidance_workdir=str(tmp_path)
    )
    bbox = dataclasses.replace(config.annotate.bbox, kind="onnx", model=str(tmp_path / "net.onnx"), max_boxes=3)
    annotate = dataclasses.replace(config.annotate, bbox=bbox, image_size=32)
    init = Init(inner=str(tmp_path))
    kept = folder.portable(dataclasses.replace(config, sample=sample, annotate=annotate, init=init))
    assert str(tmp_path) not in kept.to_json() and kept.sample.guidance == "cfg"
    assert (kept.annotate.bbox.max_boxes, kept.annotate.image_size) == (3, 32)  # the same records can be made again
    with pytest.raises(UserError, match="precision 'float8'; expected one of float32, float16, bfloat16"):
        folder.export_folder(workdir, tmp_path / "out", "float8")


def test_samples_of_a_model_do_not_go_into_the_workdir_of_another(workdir, tmp_path):
    folder.export_folder(workdir, tmp_path / "out")
    other = dataclasses.replace(CONFIG, seed=CONFIG.seed + 1)
    (workdir / "config.json").write_text(other.to_json())
    with pytest.raises(UserError, match="belongs to another config: seed = 1"):
        main(["sample", f"--model={tmp_path / 'out'}", f"--workdir={workdir}"])


def test_float16_refuses_what_it_cannot_hold(workdir, tmp_path, monkeypatch):
    params = random_params(open_codec(CONFIG), 0)
    params = jax.tree.map(lambda leaf: leaf * 0 + 1e6, params)
    monkeypatch.setattr(pipeline, "load_workdir", lambda *_: Weights(params=params))
    with pytest.raises(UserError, match="above float16's 6.55e.04; expected weights that it can hold"):
        folder.export_folder(workdir, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    folder.export_folder(workdir, tmp_path / "out", "bfloat16")
    assert np.asarray(jax.tree.leaves(KaleidoPipeline.from_pretrained(tmp_path / "out").params)[0]).max() > 9e5


def test_a_bundled_model_is_found_by_its_name(workdir, tmp_path, monkeypatch):
    shutil.move(folder.export_folder(workdir, tmp_path / "out"), tmp_path / "models" / "tiny-model")
    for module in (pipeline, load):
        monkeypatch.setattr(module, "MODELS", tmp_path / "models")
        monkeypatch.setattr(module, "BUNDLED", ("tiny-model",))
    monkeypatch.chdir(tmp_path)
    assert KaleidoPipeline.from_pretrained("tiny-model").step == 7
    assert load.load_config("tiny-model").name == CONFIG.name
    with pytest.raises(UserError, match="no model 'tiny-modle'; expected .*; did you mean 'tiny-model'"):
        KaleidoPipeline.from_pretrained("tiny-modle")
    flags = ["--config.sample.captions=('bag',)", "--config.sample.num_steps=1", "--config.sample.images_per_caption=1"]
    main(["sample", "--model=tiny-model", f"--workdir={tmp_path / 'shown'}", *flags])
    monkeypatch.setattr(protocols, "MODELS", tmp_path / "models")
    assert protocols.bundled_reports("some")["tiny-model"]["accuracy"] == 0.1234
    assert protocols.bundled_reports("emoji") == {}
    samples = tmp_path / "shown" / "samples" / "step_00000007" / f"gamma{CONFIG.sample.gamma:g}_seed0"
    assert (samples / "grid.png").stat().st_size
