"""StableHLO: the program of docs/export.md draws the pipeline's picture where this package cannot be imported."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from PIL import Image

from kaleido_jax.config.codec import open_codec
from kaleido_jax.export import folder as export_module
from kaleido_jax.export.stablehlo import PLATFORMS
from kaleido_jax.models import cpu
from kaleido_jax.models.layers import GroupNorm
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from tests.sampling.test_pipeline import random_params
from tests.tiny import single_net_config, small_nest_config

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
PROGRAM = re.search(r"<!-- draws without the package -->\n<!-- run by \S+ -->\n```python\n(.*?)```", PAGE, re.DOTALL)[1]
WITHOUT = "import sys\nsys.modules['kaleido_jax'] = None  # importing it fails\n"
# Random weights also sample coordinates that `coordinate_step` would move; the program of the page leaves them.
CHANGES = {"sample__num_steps": 3, "sample__gamma": 3.0, "latents__coordinate_step": 1}


def exported(config, path):
    """(folder, pipeline) of random weights."""
    codec = open_codec(config)
    made = KaleidoPipeline(config, random_params(codec, 0, config), codec, step=7)
    source = path / "run"
    (source / "checkpoints").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KaleidoPipeline, "from_pretrained", staticmethod(lambda *_, **__: made))
        return export_module.export_folder(source, path / "out", "float32", stablehlo=True), made


@pytest.fixture(scope="module")
def five_steps(tmp_path_factory):
    """The folder of a run whose config samples in five steps at another temperature."""
    config = single_net_config(**CHANGES | {"sample__num_steps": 5}, sample__temperature=0.5)
    return exported(config, tmp_path_factory.mktemp("five"))[0] / "stablehlo"


def drawn(folder, caption, seed, path):
    """The pixels that the page's program draws in a process of its own."""
    command = [sys.executable, "-c", WITHOUT + PROGRAM, str(folder), caption, str(seed), str(path)]
    done = subprocess.run(command, cwd=path.parent, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    "config",
    [
        single_net_config(**CHANGES, sample__sampler="ddpm"),
        pytest.param(small_nest_config(**CHANGES, sample__sampler="heun"), marks=pytest.mark.slow),
        pytest.param(single_net_config(**CHANGES, latents__segments=()), marks=pytest.mark.slow),
        pytest.param(
            single_net_config(**CHANGES | {"sample__gamma": 1.0}, sample__guidance="apg"), marks=pytest.mark.slow
        ),
    ],
    ids=["noise at each step", "nest", "baseline", "without guidance"],
)
def test_the_pages_program_draws_the_same_bytes_without_this_package(config, tmp_path):
    folder, pipe = exported(config, tmp_path)
    np.testing.assert_array_equal(
        drawn(folder, "bird", 5, tmp_path / "bird.png"), pipe("bird", seed=5).pixels[0, 0], strict=True
    )


@pytest.mark.slow
def test_the_packages_model_draws_the_same_bytes_for_several_captions(tmp_path):
    folder = export_module.export_folder("emoji-tiny", tmp_path / "out", stablehlo=True)
    pipe = KaleidoPipeline.from_pretrained("emoji-tiny")
    for seed, caption in enumerate(["fruit", "a fruit and a bird"]):
        expected = pipe(caption, seed=seed).pixels[0, 0]
        np.testing.assert_array_equal(drawn(folder, caption, seed, tmp_path / "one.png"), expected, strict=True)
    files = sum(file.stat().st_size for file in (folder / "stablehlo").iterdir())
    assert files < 1.5e6  # weights are inputs


def test_a_program_for_several_platforms_has_the_form_of_each():
    """On this CPU the bits of the CPU's form, and the plain formula's for the others."""
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 32), jnp.float32)
    norm = GroupNorm(4, jnp.float32)
    variables = norm.init(jax.random.key(1), x)
    here = jax.jit(functools.partial(norm.apply, variables))
    with cpu.each_platform():
        assert not cpu.enabled()
        both = export.export(jax.jit(lambda x: norm.apply(variables, x)), platforms=PLATFORMS)(x)
    np.testing.assert_array_equal(jax.jit(both.call)(x), here(x))
    assert "stablehlo.case" in both.mlir_module()
    with cpu.plain():
        plain = jax.jit(lambda x: norm.apply(variables, x))(x)
    np.testing.assert_allclose(here(x), plain, atol=1e-5)
    assert (np.asarray(here(x)) != np.asarray(plain)).any()  # otherwise nothing was tested


def test_a_batch_of_any_size_gives_each_row_its_own_noise(five_steps):
    run = jax.jit(export.deserialize((five_steps / "start_images.bin").read_bytes()).call)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 5))
    five, one = (run({}, {"image_keys": k, "gamma": np.float32(3)})["state/images/0"] for k in (keys, keys[3:4]))
    np.testing.assert_array_equal(five[3:4], one)
    assert five.shape == (5, 8, 8, 3) and not np.array_equal(five[0], five[1])


def test_the_manifest_names_what_a_user_gives(five_steps):
    manifest = json.loads((five_steps / "manifest.json").read_text())
    assert len(manifest["evaluations"]) == 5 and manifest["defaults"]["temperature"] == 0.5
    programs = manifest["programs"].values()
    given, made = ({one["name"] for program in programs for one in program[side]} for side in ("inputs", "outputs"))
    assert {name for name in given - made if not name.startswith("grammar/")} == {
        *("tokens", "z", "forced", "gamma", "evaluation", "latents_keys", "image_keys"),
        *("temperature", "top_k", "top_p"),
    }


def test_the_manifest_describes_the_programs(five_steps):
    manifest = json.loads((five_steps / "manifest.json").read_text())
    described = {one["name"]: one for one in manifest["parameters"]}
    for name, program in manifest["programs"].items():
        read = export.deserialize((five_steps / program["file"]).read_bytes())
        assert tuple(read.platforms) == PLATFORMS, name
        own = [one for path, one in described.items() if path.split("/")[0] in program["parts"]]
        for side, avals in ((own + program["inputs"], read.in_avals), (program["outputs"], read.out_avals)):
            shapes = [[n if isinstance(n, int) else str(n) for n in one.shape] for one in avals]
            assert shapes == [one["shape"] for one in side], name
            assert [str(one.dtype) for one in avals] == [one["dtype"] for one in side], name
