"""The plan: memory against real arrays, cost by hand, and what the verb prints and refuses."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from jax.experimental import topologies

from kaleido_jax.errors import UserError
from kaleido_jax.main import parse_flags
from kaleido_jax.models.flops import StepFlops
from kaleido_jax.plan.cost import run_cost
from kaleido_jax.plan.gpus import GPUS, PLUGINS, gpu_devices
from kaleido_jax.plan.memory import bytes_by_kind
from kaleido_jax.plan.program import build_program
from kaleido_jax.plan.stage import stage
from kaleido_jax.runtime.accelerators import DEVICES, accelerator
from kaleido_jax.verbs import plan
from tests.conftest import REPO
from tests.tiny import single_net_config, tiny_batch

CONFIG = single_net_config()


def test_the_batch_is_the_loaders():
    batch = tiny_batch(CONFIG)
    shapes = build_program(CONFIG, 300).batch
    assert {name: leaf.shape for name, leaf in shapes.items()} == {name: leaf.shape for name, leaf in batch.items()}


def test_bytes_by_kind_follow_the_mesh():
    one, eight = (bytes_by_kind(build_program(CONFIG, 300, n)) for n in (1, 8))
    sharded = bytes_by_kind(build_program(dataclasses.replace(CONFIG, mesh=_mesh(data=1, fsdp=8)), 300, 8))
    assert one["EMA"] == one["gradients"] == one["parameters"] == eight["parameters"]
    assert one["optimizer"] == 2 * one["parameters"] + 8  # two moments and the counters of Adam and the schedule
    assert eight["batch"] * 8 == one["batch"]
    assert one["parameters"] / 8 <= sharded["parameters"] < one["parameters"] / 2


def _mesh(**sizes):
    return dataclasses.replace(CONFIG.mesh, **sizes)


def test_a_table_of_class_captions_takes_the_encoders_place():
    given = {"data__class_captions": ("fruit", "bird"), "train__ema_profiles": (0.05, 0.1)}
    config = single_net_config(model__t5__encoder__trainable=False, **given)
    kinds = bytes_by_kind(build_program(config, 300))
    assert kinds["EMA"] == 3 * kinds["parameters"]  # each average is as large
    width, length = config.model.t5.d_model, config.data.max_caption_tokens
    assert kinds["frozen caption_table"] == 3 * length * width * 4 and "frozen encoder" not in kinds


def test_a_frozen_encoder_that_is_loaded_is_stored_in_its_compute_dtype():
    changes = {"model__t5__encoder__trainable": False, "model__precision": "bfloat16"}
    random, loaded = (
        bytes_by_kind(build_program(single_net_config(**changes, model__t5__checkpoint=path), 300))["frozen encoder"]
        for path in (None, "a/folder/that/is/not/read")
    )
    assert random / 2 < loaded < 0.6 * random


@pytest.mark.slow
def test_bytes_by_kind_are_those_of_the_arrays(eight_devices):
    source = """
import jax
from kaleido_jax.models.kaleido import build_model
from kaleido_jax.plan.memory import bytes_by_kind
from kaleido_jax.plan.program import build_program
from kaleido_jax.runtime.mesh import make_mesh
from kaleido_jax.train.optimizer import make_optimizer
from kaleido_jax.train.state import create_state
from tests.tiny import single_net_config
config = single_net_config(mesh__data=1, mesh__fsdp=4, mesh__tensor=2)
mesh = make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
state, frozen, _ = create_state(config, build_model(config, 300), make_optimizer(config.train), mesh)
first = lambda tree: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
planned = bytes_by_kind(build_program(config, 300, 8))
for kind, part in (("parameters", state.params), ("EMA", state.ema), ("optimizer", state.opt_state)):
    assert planned[kind] == first(part), kind
"""
    eight_devices(source)


def test_days_and_cost_by_hand():
    config = single_net_config(train__num_steps=1000, train__batch_size=8)
    step = StepFlops(forward=10**12, backward=593 * 10**12, recomputed=395 * 10**12)
    run = run_cost(config, step, DEVICES["h100"], 4, 0.25, 2.0)  # a second a step
    assert run.model_utilization == pytest.approx(0.25 * 594 / 989)
    assert run.images_per_sec == 8 and run.days == pytest.approx(1000 / 86400)
    assert run.device_hours == pytest.approx(4000 / 3600) and run.usd == pytest.approx(8000 / 3600)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    file, lines = tmp_path_factory.mktemp("plan") / "plan.json", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "say", lines.append)
        config = dataclasses.replace(CONFIG, mesh=_mesh(data=2, fsdp=4))
        plan.run(config, num_devices="8", device="v5p", utilization="0.5", price="3", json=file)
    return "\n".join(lines), json.loads(file.read_text())


def test_the_verb_prints_every_part(printed):
    text, values = printed
    for words in (
        *("mesh data 2 x fsdp 4 x tensor 1", "parameters", "trained", "recomputed (remat)", "baseline"),
        *("counted in the traced step", "optimizer", "gradients", "compile with --topology or --devices"),
        *("8 x v5p at 50% of 459 TFLOP/s", "the paper's run", "400,000", "USD at 3 a device hour"),
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_json_has_the_same_numbers(printed):
    _, values = printed
    arithmetic = values["arithmetic"]
    assert arithmetic["traced_step_flops"] == pytest.approx(arithmetic["step_flops"], rel=0.05)
    assert arithmetic["flops_per_image"] * CONFIG.train.batch_size == arithmetic["step_flops"]
    assert values["ratio"] > 1 and values["compiled"] is None
    assert values["runs"]["this config"]["images_per_sec"] > 0


def test_a_flag_without_a_value_has_its_bare_one():
    assert parse_flags(plan, ["--config=emoji_combined", "--quick"])["quick"] == "yes"
    assert parse_flags(plan, ["--config=emoji_combined"])["quick"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"utilization": "40"}, "--utilization=40; expected a number above 0, at most 1"),
        ({"price": "cheap"}, "--price=cheap; expected a number above 0"),
        ({"num_devices": "2.5"}, "--num_devices=2.5; expected a whole number above 0"),
        ({"device": "h1000"}, "--device=h1000; expected one of a100, "),
        ({"json": Path("no/such/folder/plan.json")}, "--json=no/such/folder/plan.json; expected a file in a folder"),
        ({"json": Path("configs")}, "--json=configs; expected a file in a folder"),
        ({"topology": "v5p:2x2x2", "devices": "8"}, "--topology and --devices; expected one of them"),
        ({"devices": "1000000"}, "--devices=1000000; expected a whole number above 0, at most 512"),
        ({"num_devices": "3", "quick": "yes"}, "config.train.batch_size = 8; expected a multiple of 3"),
    ],
)
def test_wrong_flags_are_one_line(flags, message):
    with pytest.raises(UserError, match=f"^{message}".replace(".", r"\.")):
        plan.run(CONFIG, **flags)


def test_a_topology_without_libtpu_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="without libtpu; expected the TPU compiler; pip install 'libtpu=="):
        plan.run(CONFIG, topology="v5p:2x2x2")


def test_a_libtpu_whose_programs_jax_cannot_read_is_refused_before_compiling(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == "libtpu" else version(name))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"libtpu 0.0.1; expected libtpu==[\d.*]+, which jax .* reads; pip install"):
        plan.run(CONFIG, topology="v5p:2x2x2")


@pytest.mark.slow
def test_a_compiled_step_has_memory_and_communication(eight_devices, tmp_path):
    source = f"""
from pathlib import Path
from kaleido_jax.verbs import plan
from tests.tiny import single_net_config
file = Path({str(tmp_path / "plan.json")!r})
plan.run(single_net_config(mesh__data=1, mesh__fsdp=8), devices="8", quick="yes", json=file)
"""
    text, values = eight_devices(source), json.loads((tmp_path / "plan.json").read_text())
    assert "compiled: peak" in text and "all-gather" in text
    kinds, compiled = values["bytes_per_device"], values["compiled"]
    arguments = sum(kinds.values()) - kinds["gradients"]
    assert compiled["argument_bytes"] == pytest.approx(arguments, rel=0.1)
    assert compiled["communication"]["bytes_by_collective"]["all-gather"] > 0
    assert compiled["communication"]["unknown_loops"] == 0


@pytest.mark.parametrize("topology", ["b200:8", "h100-pcie:8", "rtx4090:2", "gpu:8"])
def test_a_topology_of_other_gpus_names_those_that_are_known_and_not_libtpu(topology):
    expected = f"--topology={topology}; expected GPUs such as a100:8, a100-40:8, h100:8, h200:8, or TPUs such as v4"
    with pytest.raises(UserError, match=re.escape(expected)):
        plan.run(CONFIG, topology=topology)


def test_a_mesh_of_several_devices_wants_their_number():
    config = dataclasses.replace(CONFIG, mesh=dataclasses.replace(CONFIG.mesh, fsdp=8))
    with pytest.raises(UserError, match="without --num_devices; expected the number .*; give --num_devices=8 or a mul"):
        plan.run(config, quick="yes")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_topology_that_libtpu_does_not_know_is_one_line():
    with pytest.raises(UserError, match="--topology=v5p:nonsense"):
        plan.run(CONFIG, topology="v5p:nonsense")


@pytest.mark.parametrize("topology", ["h100", "h100:", "h100:0", "h100:2x2x2", "a100-40:8,8", "h200:eight"])
def test_a_topology_of_gpus_in_another_form_is_one_line(topology):
    kind = topology.partition(":")[0]
    expected = f"--topology={topology}; expected {kind}:GPUS or {kind}:MACHINESxGPUS, e.g. {kind}:8"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}"):
        plan.run(CONFIG, topology=topology)


def test_a_topology_of_gpus_without_the_plugin_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="without JAX's CUDA plugin; expected NVIDIA's compiler; pip install"):
        plan.run(CONFIG, topology="h100:8")


@pytest.mark.parametrize(("topology", "name"), [("h100:8", "1x1x8"), ("a100-40:4x8", "1x4x8")])
def test_gpus_are_described_to_the_compiler(monkeypatch, topology, name):
    asked = {}

    def get_topology_desc(**given):
        asked.update(given)
        return types.SimpleNamespace(devices=[1, 2])

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(topologies, "get_topology_desc", get_topology_desc)
    assert gpu_devices(topology).tolist() == [1, 2]
    assert asked["platform"] == "cuda" and asked["topology"] == asked["topology_name"] == name
    memory = int(re.search(r"device_memory_size: (\d+)", asked["target_config"])[1])
    assert memory / 1e9 == pytest.approx(DEVICES[topology.partition(":")[0]].memory_gb, rel=0.07)  # it has GiB


def test_a_plugin_that_does_not_load_is_one_line(monkeypatch):
    def get_topology_desc(**given):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(topologies, "get_topology_desc", get_topology_desc)
    with pytest.raises(
        UserError, match=r"^--topology=h100:8 \(topology not .* cuda\); expected JAX's CUDA plugin to load"
    ):
        gpu_devices("h100:8")


def test_every_gpu_that_can_be_described_is_an_accelerator_by_its_name():
    assert all(accelerator(gpu.name) is DEVICES[key] for key, gpu in GPUS.items())


@pytest.mark.slow
@pytest.mark.skipif(not any(map(importlib.util.find_spec, PLUGINS)), reason="JAX's CUDA plugin is not installed")
def test_a_step_is_compiled_for_gpus_that_are_not_there(tmp_path):
    file = tmp_path / "plan.json"
    flags = ["--config=emoji_combined", "--config.mesh.fsdp=4", "--topology=h100:2x2", "--quick", f"--json={file}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-m", "kaleido_jax.main", "plan", *flags], check=True, cwd=REPO, env=environment)
    compiled = json.loads(file.read_text())["compiled"]
    assert compiled["temporary_bytes"] > 0 and compiled["communication"]["bytes_by_collective"]["all-gather"] > 0


def test_a_long_stage_says_that_it_runs(monkeypatch, caplog):
    monkeypatch.setattr("kaleido_jax.plan.stage.EVERY_SEC", 0.01)
    with caplog.at_level(logging.INFO), stage("compiling"):
        end = time.monotonic() + 60
        while "so far" not in caplog.text and time.monotonic() < end:
            time.sleep(0.01)
    assert caplog.messages[0] == "compiling ..." and any("so far" in line for line in caplog.messages)
    assert re.fullmatch(r"compiling took \d:\d\d", caplog.messages[-1])
