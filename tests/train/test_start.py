"""What a start of training checks: before it compiles anything, and without leaving a claim on the workdir."""

import dataclasses
import json
import shutil

import pytest

from kaleido_jax.annotate.job.run import annotate
from kaleido_jax.annotate.prepare import open_prepared
from kaleido_jax.config.codec import open_codec
from kaleido_jax.data.records import default_captions, spread
from kaleido_jax.errors import UserError
from kaleido_jax.sampling import gallery
from kaleido_jax.train import fit as train_fit
from kaleido_jax.train import loop
from kaleido_jax.train.fit import fit
from tests.data.sources.opening import photo
from tests.tiny import single_net_config


def table_config(folder, **changes):
    """A data set of two photos with captions, to train on in 8 px."""
    config = single_net_config(
        latents__segments=("voken",), data__source="table", data__root=str(folder), sample__captions=(), **changes
    )
    voken = dataclasses.replace(config.annotate.voken, quantizer="fsq", feature="pixels")
    return dataclasses.replace(
        config,
        annotate=dataclasses.replace(config.annotate, segments=("voken",), voken=voken, image_size=8),
        eval=dataclasses.replace(config.eval, protocol="none"),
    )


@pytest.fixture
def data(tmp_path):
    rows = "".join(f"{i}.png,{'fruit' if i % 2 else 'bird'}\n" for i in range(40))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "table.csv").write_text(f"image,caption\n{rows}")
    for i in range(40):
        photo(tmp_path / "data" / f"{i}.png", tone=6 * i)
    return tmp_path / "data"


@pytest.fixture
def annotated(data, tmp_path):
    config, workdir = table_config(data), tmp_path / "run"
    annotate(config, workdir, open_codec(config).tokenizer, progress=False)
    return config, workdir


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("it began to train")

    monkeypatch.setattr(loop, "train", refuse)


def test_captions_to_sample_come_from_the_records(annotated):
    config, workdir = annotated
    assert default_captions(config, workdir) == ["bird", "fruit"]
    assert default_captions(config, workdir / "none") == []
    assert spread(list(range(10)), 3) == [0, 3, 6] and spread([1], 3) == [1]


def test_a_lack_of_captions_is_found_before_training(annotated, no_training, monkeypatch):
    config, workdir = annotated
    monkeypatch.setattr(gallery, "default_captions", lambda config, workdir: [])  # photos without captions
    with pytest.raises(UserError, match="no captions to sample"):
        fit(config, workdir)
    assert not (workdir / "config.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": ("fruit", "a bird " * 200)}, "of .* tokens; expected at most .*max_caption_tokens"),
        ({"guidance": "autoguidance", "autoguidance_step": 1}, "no checkpoint when training ends"),
    ],
)
def test_a_grid_that_cannot_be_drawn_is_found_before_training(annotated, no_training, changes, message):
    config, workdir = annotated
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, **changes))
    with pytest.raises(UserError, match=message):
        fit(config, workdir)
    assert not (workdir / "config.json").exists()


def test_a_disk_without_room_for_the_checkpoints_is_found_before_training(annotated, no_training, monkeypatch):
    config, workdir = annotated
    usage = shutil.disk_usage(workdir)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"0.00 GB free on the disk of .* GB for 3 more checkpoints; free some"):
        fit(config, workdir)
    assert not (workdir / "config.json").exists()
    anyway = dataclasses.replace(config, train=dataclasses.replace(config.train, full_disk="continue"))
    with pytest.raises(AssertionError, match="it began to train"):
        fit(anyway, workdir)


def test_records_that_do_not_fit_leave_no_claim(annotated, no_training):
    config, workdir = annotated
    other = dataclasses.replace(config, latents=dataclasses.replace(config.latents, codebook_size=32))
    with pytest.raises(UserError, match="a codebook of 64 vokens; expected latents.codebook_size = 32; correct it"):
        fit(other, workdir)
    assert not (workdir / "config.json").exists()


def test_processes_wait_for_each_other_to_open_the_records(annotated, monkeypatch):
    """As long as for making them, before anything for which they wait only minutes."""
    config, workdir = annotated
    done = []
    monkeypatch.setattr(train_fit, "open_prepared", lambda *args: done.append("opened") or open_prepared(*args))
    monkeypatch.setattr(train_fit.distributed, "barrier", lambda name, timeout_s: done.append((name, timeout_s)))
    monkeypatch.setattr(train_fit.distributed, "tell", lambda name, make, timeout_s: done.append(name) or make())
    monkeypatch.setattr(loop, "train", lambda *args: done.append("trained"))
    fit(config, workdir)
    hours = train_fit.RECORDS_SEC
    assert done == [("records", hours), "opened", ("records are open", hours), "checkpoints", "trained"]


def test_a_first_step_that_cannot_run_leaves_no_claim(annotated, monkeypatch):
    config, workdir = annotated

    def fail(*args, **kwargs):
        raise MemoryError("too large")

    monkeypatch.setattr(loop._Run, "_dispatch", fail)
    with pytest.raises(MemoryError):
        fit(config, workdir)
    assert not (workdir / "config.json").exists()
    monkeypatch.setattr(loop._Run, "_dispatch", lambda self, state, batch: (state, {}))  # it runs, what follows fails
    monkeypatch.setattr(loop.Averages, "add", fail)
    with pytest.raises(MemoryError):
        fit(config, workdir)
    assert json.loads((workdir / "config.json").read_text())["name"] == config.name


@pytest.mark.parametrize(("decay", "warned"), [(0.999, True), (0.01, False)])
def test_an_average_that_cannot_forget_its_start_is_told(annotated, monkeypatch, caplog, decay, warned):
    config, workdir = annotated
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=100, ema_decay=decay))

    def stop(*args):
        raise InterruptedError

    monkeypatch.setattr(loop, "make_train_step", stop)  # before anything compiles
    with pytest.raises(InterruptedError):
        fit(config, workdir)
    told = "will still hold 90 % of the initial weights after 100 steps; with config.train.ema_decay = 0.954993"
    assert (told in caplog.text) == warned
