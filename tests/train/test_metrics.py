import json
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics
from tensorboardX.proto import event_pb2

from kaleido_jax.config import load_config
from kaleido_jax.errors import UserError
from kaleido_jax.runtime.accelerators import accelerator
from kaleido_jax.train import metrics
from kaleido_jax.train.fit import fit
from kaleido_jax.train.metrics import Averages, MetricWriter, Stopwatch, check_wandb


def test_averages_are_means_and_start_anew():
    averages = Averages()
    for value in (1.0, 2.0, 6.0):
        averages.add({"loss": jnp.float32(value)})
    assert averages.compute() == {"loss": 3.0}
    assert averages.compute() == {}


def test_averages_of_many_steps_are_clus_to_the_bit():
    values = np.random.default_rng(0).normal(size=(257, 2)).astype(np.float32) * 1e3
    averages, expected = Averages(), [clu_metrics.Average.empty()] * 2
    for row in values:
        averages.add({"a": jnp.asarray(row[0]), "b": jnp.asarray(row[1])})
        ones = map(clu_metrics.Average.from_model_output, row)
        expected = [average.merge(one) for average, one in zip(expected, ones, strict=True)]
    assert list(averages.compute().values()) == [float(average.compute()) for average in expected]


@pytest.mark.parametrize(
    "torn",
    [b'{"step": 15, "lo{"step": 20}', b"\0\0\0}", b'{"loss": 1.0}', b'{"loss": "\xff"}', b"[" * 100_000, b"null", b""],
)
def test_torn_lines_do_not_end_a_resume(torn, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 10, "loss": 1.0}\n' + torn + b'\n{"step": 20, "loss": 2.0}\n')
    MetricWriter(tmp_path, resume_step=20).close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}]


def test_lines_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    begun, writer = time.time(), MetricWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write_scalars(step, {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # a run that was killed while writing
    writer = MetricWriter(tmp_path, resume_step=20)
    writer.write_scalars(30, {"loss": 3.0})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 10.0), (20, 20.0), (30, 3.0)]
    times = [line["unix_sec"] for line in lines]
    assert times == sorted(times) and begun - 0.01 < times[0] and times[-1] < time.time() + 0.01


def steps_of_events(path):
    """In a TFRecord file: length, checksum, record, checksum."""
    content, steps = path.read_bytes(), []
    while content:
        end = 12 + int.from_bytes(content[:8], "little")
        event = event_pb2.Event.FromString(content[12:end])
        steps += [event.step] * len(event.summary.value)
        content = content[end + 4 :]
    return steps


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_keeps_the_metrics_until_there_is_room(tmp_path, caplog):
    writer = MetricWriter(tmp_path, 0, load_config("emoji_combined", **{"train.full_disk": "continue"}))
    writer.write_scalars(1, {"loss": 1.0})
    writer.flush()
    end = time.monotonic() + 60  # tensorboardX writes the first events when its thread comes to them
    while not any(map(steps_of_events, tmp_path.glob("events*"))) and time.monotonic() < end:
        time.sleep(0.01)
        writer.flush()
    paths = [tmp_path / "metrics.jsonl", *tmp_path.glob("events*")]
    for path in paths:
        path.rename(path.with_name(f"kept {path.name}"))
        path.symlink_to("/dev/full")
    for step in range(2, 30):  # more events than tensorboardX's queue holds
        writer.write_scalars(step, {"loss": float(step)})
        writer.flush()
    assert len(paths) == 2 and [caplog.text.count(f"{path}: No space left on device") for path in paths] == [1, 1]
    for path in paths:
        path.unlink()
        path.with_name(f"kept {path.name}").rename(path)
    writer.close()
    assert [json.loads(line)["step"] for line in paths[0].read_text().splitlines()] == list(range(1, 30))
    assert steps_of_events(paths[1]) == list(range(1, 30))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_ends_a_run_that_is_to_stop_there(tmp_path):
    writer = MetricWriter(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    line = r"metrics.jsonl cannot be written \(No space left on device\); expected free space and permission; "
    with pytest.raises(UserError, match=line) as caught:
        writer.write_scalars(1, {"loss": 1.0})
    assert "\n" not in str(caught.value)


def test_the_stopwatch_shares_the_time_out_and_knows_the_peak(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("kaleido_jax.train.metrics.time.monotonic", lambda: now[0])
    watch = Stopwatch(peak_tflops=8.0)
    with watch("data"):
        now[0] += 1
    with watch("compile"):
        now[0] += 2
    now[0] += 7
    watch.count(20 * 10**12)
    shares = watch.shares()
    assert shares["time_data"] == 0.1 and shares["time_compile"] == 0.2 and abs(shares["goodput"] - 0.7) < 1e-9
    assert shares["tflops"] == 2.0 and shares["utilization"] == 0.25
    now[0] += 1
    assert watch.shares()["goodput"] == 1 and "utilization" not in Stopwatch().shares()


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("cpu", None),
    ],
)
def test_the_peak_of_what_jax_calls_a_device(kind, tflops):
    found = accelerator(kind)
    assert (found and found.tflops) == tflops


def test_steps_that_were_skipped_are_in_no_mean():
    averages = Averages()
    for loss, in_row in ((1.0, 0), (float("nan"), 1), (3.0, 0)):
        averages.add({"loss": np.float32(loss), "skipped_in_row": np.int32(in_row), "skipped_steps": np.int32(1)})
    assert averages.compute() == {"loss": 2.0, "skipped_in_row": 0.0, "skipped_steps": 1.0}


def test_compiling_is_no_part_of_the_speed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    progress = metrics.Progress(total_steps=100, first_step=0, batch_size=8)
    now[0] = 83.0  # compiling
    progress.leave_out(83.0)
    now[0] = 93.0  # ten steps of a second
    rates = progress.report(10, {})
    assert rates == {"img_per_sec": pytest.approx(8.0), "eta_sec": pytest.approx(90.0)}


FAKE_WANDB = """
from types import SimpleNamespace

calls = []


class Error(Exception):
    pass


errors = SimpleNamespace(Error=Error)


class Run:
    def log(self, values):
        calls.append(("log", values))

    def define_metric(self, name, step_metric=None):
        calls.append(("axis", (name, step_metric)))

    def finish(self):
        calls.append(("finish", None))


def init(**settings):
    calls.append(("init", settings))
    if settings["project"] == "closed":
        raise Error("nobody is logged in")
    return Run()
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """What the program told Weights & Biases, of which only the interface is there."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    import wandb

    yield wandb.calls
    sys.modules.pop("wandb")


def test_a_resumed_run_goes_on_in_the_same_run_of_wandb(tmp_path, wandb):
    config = load_config("emoji_combined", **{"train.wandb_project": "kaleido"})
    for resume_step in (0, 10):
        writer = MetricWriter(tmp_path, resume_step, config)
        writer.write_scalars(resume_step + 10, {"loss": 1.0})
        writer.close()
    starts = [settings for what, settings in wandb if what == "init"]
    assert len({settings["id"] for settings in starts}) == 1 and starts[1]["resume"] == "allow"
    assert starts[0]["project"] == "kaleido" and starts[0]["config"]["train"]["eta"] == config.train.eta
    assert [values for what, values in wandb if what == "log"] == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 1.0},
    ]
    assert ("axis", ("*", "step")) in wandb and wandb[-1] == ("finish", None)


def test_without_a_project_nothing_is_told_to_wandb(tmp_path, wandb):
    MetricWriter(tmp_path, 0, load_config("emoji_combined")).close()
    assert wandb == [] and not (tmp_path / "wandb_run.txt").exists()


def test_a_refusal_of_wandb_is_one_line_that_says_what_to_do(tmp_path, wandb):
    config = load_config("emoji_combined", **{"train.wandb_project": "closed"})
    with pytest.raises(
        UserError, match="nobody is logged in; expected access to the project closed.*WANDB_MODE=offline"
    ):
        MetricWriter(tmp_path, 0, config)


def test_a_project_without_the_package_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("kaleido_jax.train.metrics.importlib.util.find_spec", lambda name: None)
    config = load_config("emoji_combined", **{"train.wandb_project": "kaleido"})
    with pytest.raises(UserError, match=r"without the package wandb; expected .*kaleido_jax\[wandb\]"):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_wandb(load_config("emoji_combined"))
