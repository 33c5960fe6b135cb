"""The whole road at the smallest size: records, training, checkpoint, latents, images, measures."""

import dataclasses
import functools
import itertools
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from kaleido_jax.annotate.prepare import prepare_records
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.stored import open_workdir
from kaleido_jax.errors import UserError
from kaleido_jax.latents.types import Latents
from kaleido_jax.main import main
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.runtime import checkpoints
from kaleido_jax.runtime.mesh import make_mesh, put_batch
from kaleido_jax.runtime.posthoc_ema import coefficients
from kaleido_jax.runtime.workdir import locked
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.recipe import load_recipe
from kaleido_jax.sampling.weights import _plan
from kaleido_jax.train import loop
from kaleido_jax.train.fit import make_batches
from kaleido_jax.train.watching import Looks
from kaleido_jax.verbs import evaluate, sample, train, verify
from tests.tiny import small_nest_config


def tiny(**changes):
    return small_nest_config(train__ema_profiles=(0.05, 0.1), **changes)


CONFIG = tiny(eval__protocol="emoji", eval__every_steps=4, eval__held_out_batches=1)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "emoji"
    train.run(CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(workdir):
    return KaleidoPipeline.from_pretrained(workdir, CONFIG)


@functools.cache
def _stored(folder, step=4):
    return ocp.PyTreeCheckpointer().restore((folder / "checkpoints" / str(step) / "state").absolute())


def test_a_run_leaves_everything(workdir):
    samples = workdir / "samples" / "step_00000004" / "gamma2_seed0"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 4]
    assert {"loss", "loss_dm", "loss_ar", "loss_dm_r0", "grad_norm_prior", "grad_norm_denoiser", "img_per_sec"} <= set(
        lines[0]
    )
    assert {"goodput", "tflops", "time_data", "time_compile", "skipped_steps", "replaced"} <= set(lines[0])
    assert any(workdir.glob("events.out.tfevents.*"))
    assert json.loads((workdir / "config.json").read_text())["name"] == CONFIG.name
    width, height = Image.open(samples / "grid.png").size
    assert width > 2 * 192 and height > 2 * 192
    recipe = load_recipe(samples / "00-fruit.json")
    (row,) = recipe["rows"]
    assert row["caption"] == "fruit" and len(row["files"]) == 2 and recipe["seed"] == CONFIG.seed
    assert row["latents"] is not None or row["problem"]
    assert Image.open(samples / row["files"][0]).size == (16, 16)
    report = json.loads((workdir / "eval" / "emoji.json").read_text())
    assert {"kind_right", "latents_parsed", "modes_found", "reader", "real"} <= set(report)


def test_training_is_looked_at_by_held_out_losses_and_a_grid(workdir, pipeline):
    """The same captions, latents, times and noise at every look."""
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4 and 0 < last["held_out_loss_dm"] < 2 and last["held_out_loss_ar"] > 1
    with Image.open(workdir / "samples" / "training" / "step_00000004.png") as grid:
        assert grid.width > 2 * 192 and grid.height > 4 * 192
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    config = dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, grid=False))
    model = build_model(CONFIG, pipeline.codec.tokenizer.base_vocab_size)
    look = Looks(config, workdir, model, None, mesh)
    bucketed = dataclasses.replace(config, data=dataclasses.replace(CONFIG.data, length_buckets=(16,)))
    for batch, same in zip(Looks(bucketed, workdir, model, None, mesh).batches, look.batches, strict=True):
        jax.tree.map(np.testing.assert_array_equal, batch, same)  # not the first to be full, whose z are short
    again = [look(4, pipeline.params, {}) for _ in range(2)]
    assert again[0] == again[1]
    np.testing.assert_allclose([again[0][key] for key in again[0]], [last[key] for key in again[0]], rtol=1e-5)


def test_every_checkpoint_has_a_certificate(workdir, tmp_path, capsys):
    verify.run(workdir)
    lines = capsys.readouterr().out.splitlines()
    found = [line.split()[:3] for line in lines]
    assert found[:2] == [["step", "2", "whole"], ["step", "4", "whole"]]
    assert found[2:] == [["snapshot", "2", "whole"], ["snapshot", "4", "whole"]]
    parts = [dict(zip(line.split()[3::2], line.split()[4::2], strict=True)) for line in lines]
    assert set(parts[2]) == {"version", "profile_0", "profile_1"} and parts[2]["profile_0"] != parts[3]["profile_0"]
    assert set(parts[0]) == {"version", "params", "ema", "profiles", "opt_state", "guard", "step", "place"}
    assert all(parts[0][name] != parts[1][name] for name in ("params", "ema", "opt_state", "step", "place"))
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    place = tmp_path / "checkpoints" / "4" / "data" / "metadata"
    place.write_text(place.read_text().replace("4", "5", 1))
    shutil.copytree(workdir / "ema_snapshots", tmp_path / "ema_snapshots")
    shutil.rmtree(tmp_path / "ema_snapshots" / "2" / "state")
    with pytest.raises(UserError, match="damaged checkpoints 4 and damaged EMA snapshots 2 in"):
        verify.run(tmp_path)
    assert "damaged (ValueError: the place in the data is not as it was saved)" in capsys.readouterr().out


def test_run_again_redoes_nothing(workdir, capsys):
    files = [p for p in workdir.rglob("*") if p.is_file() and p.name != "config.json"]
    before = {p: p.stat().st_mtime_ns for p in files}
    shorter = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, num_steps=3))
    for config in (shorter, CONFIG):
        train.run(config, workdir)
        assert f"training is finished: {workdir / 'checkpoints'} holds step 4" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in files}


def test_a_protocol_that_wants_a_baseline_is_not_measured_when_training_ends(workdir, capsys):
    config = dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, protocol="records"))
    before = {*workdir.rglob("eval/*")}
    train.run(config, workdir)
    assert f"measure it: python -m kaleido_jax.main evaluate --workdir={workdir}" in capsys.readouterr().out
    assert {*workdir.rglob("eval/*")} == before


@pytest.mark.slow
def test_resume_is_bit_identical(workdir, tmp_path):
    folder = tmp_path / "resumed"
    folder.mkdir()
    shutil.copytree(workdir / "records", folder / "records")
    for steps in (2, 4):
        config = tiny(train__num_steps=steps, train__sample_at_end=False)
        train.run(config, folder)
    unbroken, resumed = _stored(workdir), _stored(folder)
    assert jax.tree.structure(unbroken) == jax.tree.structure(resumed)
    for a, b in zip(jax.tree.leaves(unbroken), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert checkpoints.steps_of(folder, checkpoints.SNAPSHOTS) == [2, 4]


def test_a_checkpoint_holds_the_state_and_the_place_in_the_data(workdir):
    assert set(_stored(workdir)) == {"step", "params", "ema", "profiles", "opt_state", "guard"}
    assert {p.name for p in (workdir / "checkpoints" / "4").iterdir() if p.is_dir()} == {"state", "data"}


def test_autoguidance_takes_the_ema_of_an_earlier_checkpoint(workdir, pipeline):
    settings = {"sample__guidance": "autoguidance", "sample__autoguidance_workdir": str(workdir)}
    early = KaleidoPipeline.from_pretrained(workdir, tiny(sample__autoguidance_step=2, **settings))
    stored = _stored(workdir, 2)["ema"]
    jax.tree.map(np.testing.assert_array_equal, early.bad_params, stored)
    jax.tree.map(np.testing.assert_array_equal, early.params, pipeline.params)
    with pytest.raises(UserError, match=r"no checkpoint 3 in .*; expected one of the steps 2, 4"):
        KaleidoPipeline.from_pretrained(workdir, tiny(sample__autoguidance_step=3, **settings))
    assert KaleidoPipeline.from_pretrained(workdir, step=2).step == 2


# ------------------------------------------------------------------------------------------ post-hoc EMA
@pytest.fixture(scope="module")
def third(workdir, tmp_path_factory):
    """(folder, pipeline) of the export of a width that no one kept, in float32."""
    folder = tmp_path_factory.mktemp("export") / "third"
    main(["export", f"--workdir={workdir}", f"--output={folder}", "--sigma_rel=0.08", "--precision=float32"])
    return folder, KaleidoPipeline.from_pretrained(folder)


def test_every_snapshot_is_the_averages_of_its_step(workdir):
    assert sorted(path.name for path in (workdir / "ema_snapshots").iterdir()) == ["2", "4"]
    for step in (2, 4):
        written = ocp.PyTreeCheckpointer().restore((workdir / "ema_snapshots" / str(step) / "state").absolute())
        for number, average in enumerate(_stored(workdir, step)["profiles"]):
            halves = jax.tree.map(lambda leaf: leaf.astype(np.float16), average)
            jax.tree.map(np.testing.assert_array_equal, written[str(number)], halves)


def test_an_export_is_an_average_of_another_width(workdir, third):
    """Beside the sum by hand: the averages at both snapshots, times the factors of least squares."""
    folder, found = third
    assert json.loads((folder / "export.json").read_text())["sigma_rel"] == 0.08
    assert "| weights | post-hoc EMA with sigma_rel 0.08 |" in (folder / "README.md").read_text()
    assert found.step == 4 and not (folder / "eval").exists()  # measured of other weights
    factors, _ = coefficients(np.asarray([2, 2, 4, 4]), np.asarray([0.05, 0.1] * 2), 4, 0.08)
    averages = [average for step in (2, 4) for average in _stored(workdir, step)["profiles"]]
    expected = jax.tree.map(lambda *leaves: sum(f * leaf for f, leaf in zip(factors, leaves, strict=True)), *averages)
    rounding = {"rtol": 2**-10, "atol": 2e-7}  # of float16
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **rounding), found.params, expected)
    lag = jax.tree.map(lambda a, b: np.abs(a - b).max(), found.params, _stored(workdir)["ema"])
    assert max(jax.tree.leaves(lag)) > 1e-3  # the ordinary EMA has hardly moved in four steps
    with pytest.raises(UserError, match="step or sigma_rel of .*, an export; expected a workdir"):
        KaleidoPipeline.from_pretrained(folder, sigma_rel=0.08)


def test_a_width_that_was_kept_is_the_snapshot_of_the_step(workdir, tmp_path, caplog):
    for step in (2, 4):
        factors, found = _plan(CONFIG, workdir, 0.1, step)
        assert found == step and {one for one, _ in factors} == {2, step}
        assert all(abs(factor - (one == (step, 1))) < 1e-6 for one, factor in factors.items())
    assert "take a width nearer" not in caplog.text
    _plan(CONFIG, workdir, 0.25, None)  # of two snapshots
    assert "the profile of sigma_rel 0.25 is 73 % off; take a width nearer to" in caplog.text
    (tmp_path / "ema_snapshots").mkdir()
    (tmp_path / "ema_snapshots" / "2").symlink_to(workdir / "ema_snapshots" / "2")
    assert set(_plan(CONFIG, tmp_path, 0.08, None)[0]) == {(2, 0), (2, 1)}


def test_an_export_is_the_worse_model_of_autoguidance(third):
    folder, weak = third
    config = tiny(sample__guidance="autoguidance", sample__autoguidance_workdir=str(folder))
    guided = KaleidoPipeline.from_pretrained(folder, config)
    jax.tree.map(np.testing.assert_array_equal, guided.bad_params, weak.params)
    jax.tree.map(np.testing.assert_array_equal, guided.params, weak.params)


def test_what_no_snapshot_can_give_is_one_line(workdir, tmp_path):
    for flags, message in (
        (["--sigma_rel=0.08", "--step=6"], r"no EMA snapshot 6 in .*; expected one of the steps 2, 4; name one"),
        (["--sigma_rel=0.5"], r"sigma_rel = 0.5; expected a number between 0 and 0.2886; use"),
        (["--sigma_rel=wide"], r"--sigma_rel=wide; expected a number such as 0.08; correct it"),
    ):
        with pytest.raises(UserError, match=message):
            main(["export", f"--workdir={workdir}", f"--output={tmp_path / 'out'}", *flags])
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"no EMA snapshots in .* config.train.ema_profiles = \(\); expected ema_snap"):
        KaleidoPipeline.from_pretrained(workdir, small_nest_config(), sigma_rel=0.08)


# ------------------------------------------------------------------------------------------ what it draws


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch(pipeline):
    captions = ["fruit", "bird", "bug"]
    rows = pipeline.sample_latents(captions, seed=5)
    alone = pipeline.sample_latents(["bug"], seed=5, indices=[2])
    assert alone[0].tokens == rows[2].tokens
    images = pipeline.sample_images(captions, [r.tokens for r in rows], seed=5)
    one = pipeline.sample_images(["bug"], [rows[2].tokens], seed=5, indices=[2])
    np.testing.assert_allclose(one[0], images[2], atol=1e-5)
    other_seed = pipeline.sample_images(["bug"], [rows[2].tokens], seed=6, indices=[2])
    assert np.abs(other_seed - one).max() > 1e-2


@pytest.mark.slow
def test_latents_written_by_a_person_become_tokens_and_change_the_image(pipeline):
    def z(x):
        return Latents.from_json(
            {
                "text": "a small bright fruit at the lower left, square, full and plain",
                "bbox": [{"phrase": "fruit", "box": [x, 100, x + 300, 400]}],
                "blob": [{"phrase": "fruit", "blob": [x + 150, 250, 150, 140, 10]}],
                "voken": [1, 2, 3, 4],
            }
        )

    tokens = [pipeline.latents_tokens(z(x)) for x in (0, 600)]
    images = pipeline.sample_images(["fruit", "fruit"], tokens, seed=0, indices=[0, 0])
    assert images.shape == (2, 16, 16, 3)
    assert not np.array_equal(images[0], images[1])
    with pytest.raises(UserError, match="expected at most"):
        pipeline.latents_tokens(Latents.from_json({**z(0).to_json(), "text": "a fruit " * 80 + "end"}))
    with pytest.raises(UserError, match="caption"):
        pipeline.caption_tokens(["a fruit " * 40])


def test_a_workdir_of_another_config_is_refused(workdir):
    with pytest.raises(UserError, match=r"belongs to another config: train.learning_rate"):
        train.run(tiny(train__learning_rate=0.5), workdir)
    for verb in (sample, evaluate):
        with pytest.raises(UserError, match="belongs to another config: model.t5.d_ff"):
            verb.run(tiny(model__t5__d_ff=64, eval__protocol="emoji"), workdir)


@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_damaged_record_file_is_named(workdir, tmp_path, harm):
    shutil.copytree(workdir / "records", tmp_path / "records")
    shard = next((tmp_path / "records" / "train").glob("*.array_record"))
    content = bytearray(shard.read_bytes())
    if harm == "cut":
        shard.write_bytes(content[:-100])
    elif harm == "flip":
        content[len(content) // 2] ^= 0xFF
        shard.write_bytes(content)
    else:
        shard.unlink()
    config = tiny(data__source="records", data__records=str(tmp_path / "records"))
    with pytest.raises(UserError, match=shard.name):
        prepare_records(config, tmp_path, open_codec(config))


def test_records_without_the_latents_asked_for_are_refused(workdir, tmp_path):
    shutil.copytree(workdir / "records", tmp_path / "records")
    path = tmp_path / "records" / "train" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["counts"]["voken"]
    path.write_text(json.dumps(manifest))
    config = tiny(data__source="records", data__records=str(tmp_path / "records"))
    with pytest.raises(UserError, match="without voken"):
        prepare_records(config, tmp_path, open_codec(config))


def test_nothing_to_sample_from_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        sample.run(CONFIG, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.slow
def test_steps_without_a_finite_gradient_are_noted_and_end_the_run(workdir, tmp_path, monkeypatch):
    shutil.copytree(workdir / "records", tmp_path / "records")
    codec = open_codec(CONFIG)
    config = tiny(train__max_skipped_steps=3, train__num_steps=20, train__log_every_steps=1, train__keep_checkpoints=9)
    open_workdir(config, tmp_path)
    batches = make_batches(config, prepare_records(config, tmp_path, codec), codec)
    count = itertools.count(1)

    def damaged(batch, mesh):
        factor = np.float32(np.nan if next(count) in (2, 4, 5, 6) else 1)
        return put_batch(batch | {"decoder_loss_weights": batch["decoder_loss_weights"] * factor}, mesh)

    monkeypatch.setattr(loop, "put_batch", damaged)
    with pytest.raises(
        FloatingPointError, match=r"3 steps in a row .* up to step 6 .*lower config.train.learning_rate"
    ):
        loop.train(config, tmp_path, codec.tokenizer, batches)
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in skipped] == [2, 4, 5, 6]
    assert all(len(line["sample_id"]) == 8 and line["loss"] == "nan" for line in skipped)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(lines[2]["loss"]) and lines[2]["skipped_steps"] == 1
    assert all(line["tflops"] > 0 for line in lines)  # also in the rows of steps with a checkpoint
    # No checkpoint is of what is not finite: skipped steps change nothing.
    for step in (2, 4, 6):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(_stored(tmp_path, step)))


def test_a_second_training_run_in_a_workdir_is_refused_and_changes_nothing(workdir):
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with locked(workdir), pytest.raises(UserError, match="another process is training in"):
        train.run(CONFIG, workdir)
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


def test_a_damaged_latest_checkpoint_gives_way_to_the_one_before(workdir, tmp_path, caplog):
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4" / "state" / "ocdbt.process_0")
    with caplog.at_level("WARNING"):
        assert KaleidoPipeline.from_pretrained(tmp_path / "run", CONFIG).step == 2
    assert "checkpoints/4 is damaged" in caplog.text
