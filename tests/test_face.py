"""The script of the README: from captions to edited images, training and measures, also from an installed wheel."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import kaleido_jax as kj

REPO = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(import kaleido_jax as kj\n.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPT = BLOCK.search((REPO / "README.md").read_text())[1]
# The quickstart's config with every size cut down; long latents leave room for what the script adds to them.
TINY = {
    "model.t5.d_model": 32,
    "model.t5.d_ff": 32,
    "model.t5.num_heads": 2,
    "model.t5.head_dim": 16,
    "model.t5.num_decoder_layers": 1,
    "model.denoiser.image_size": 16,
    "model.denoiser.channels": (32,),
    "model.denoiser.mid_blocks": False,
    "model.denoiser.num_groups": 4,
    "model.denoiser.emb_channels": 16,
    "model.denoiser.text_proj_channels": 16,
    "data.emoji.num_train": 64,
    "data.emoji.num_test": 16,
    "train.batch_size": 8,
    "train.num_steps": 2,
    "train.warmup_steps": 1,
    "train.log_every_steps": 1,
    "sample.num_steps": 2,
    "eval.num_samples": 4,
    "eval.num_steps": 2,
    "eval.real_scenes": 8,
    "eval.reader_steps": 2,
}


def script_of_the_readme():
    """It samples from a bundled model; the training at its end is cut down to TINY."""
    tiny = SCRIPT.replace('**{"train.num_steps": 1_000}', f"**{TINY!r}")
    assert tiny != SCRIPT
    return tiny


def check_files(folder):
    assert Image.open(folder / "fruit.png").size == (32, 32) and Image.open(folder / "grid.png").height > 8 * 192
    recipe = kj.load_recipe(folder / "varied" / "00-fruit-0.png")
    assert recipe["rows"][0]["latents"]["text"] == "a small red apple, lower left, upright, on blue"
    assert recipe == {**recipe, "seed": 1} and recipe["rows"][0]["noise_indices"] == [0]
    assert Image.open(folder / "edit.png").width > 3 * 256
    assert (folder / "runs" / "python" / "checkpoints" / "2").is_dir()


# Run behind the script, on its variables.
CHECKS = """
print("-- checks")
assert [len(row) for row in out.images] == [1] * 8 and out.captions == ["fruit"] * 4 + ["bird"] * 4
assert len(set(out.latents)) == 8
assert {z.text for z in varied.latents} == {edit.latents.text} and len(set(varied.latents)) > 1
assert edit.latents.text != out.latents[0].text and edit.recipe["history"][0]["changed"] == ["text"]
assert (again.pixels == varied.pixels[:1]).all()
print(out.latents[0].text)
"""


@pytest.mark.slow
def test_the_script_of_the_readme_runs_from_an_installed_wheel_in_another_folder(tmp_path):
    source, wheels, installed, elsewhere = (tmp_path / name for name in ("source", "wheels", "installed", "elsewhere"))
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("kaleido_jax", "configs"):
        shutil.copytree(REPO / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPO / name, source)
    elsewhere.mkdir()

    def run(*args, **variables):
        command, env = [sys.executable, *args], os.environ | variables
        done = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    # Dependencies come from the environment of the tests, the package from the wheel alone.
    run("-m", "pip", "wheel", "-q", "--no-deps", f"--wheel-dir={wheels}", str(source))
    (wheel,) = wheels.iterdir()
    assert wheel.stat().st_size <= 20_000_000
    run("-m", "pip", "install", "-q", "--no-deps", f"--target={installed}", str(wheel))
    shutil.rmtree(source)
    where = run("-c", "import kaleido_jax; print(kaleido_jax.__file__)", PYTHONPATH=str(installed))
    assert Path(where.strip()).is_relative_to(installed)
    printed, text = run("-c", script_of_the_readme() + CHECKS, PYTHONPATH=str(installed)).split("-- checks\n")
    assert text.strip() in printed and "kind_right" in printed
    check_files(elsewhere)


FACE = (
    "KaleidoPipeline",
    "KaleidoOutput",
    "Edited",
    "Latents",
    "Box",
    "Blob",
    "Config",
    "load_config",
    "fit",
    "measure",
)
LAZY = """
import os, sys, kaleido_jax as kj
kj.load_config("emoji_combined"), kj.Latents(bbox=[kj.Box("a", (0, 0, 1, 1))])
assert "jax" not in sys.modules
kj.KaleidoPipeline
print(os.environ.get("XLA_FLAGS"), "jax" in sys.modules)
"""


def test_the_face_is_whole():
    names = {*FACE, "Edited", "UserError", "load_recipe", "__version__"}
    assert names <= set(dir(kj)) and all(getattr(kj, name) is not None for name in names)
    with pytest.raises(AttributeError, match="no attribute 'KaleidoPipelin'"):
        _ = kj.KaleidoPipelin


def test_jax_comes_in_with_the_pipeline_and_gets_the_flag_of_the_cpu():
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", LAZY], env=env, cwd=REPO, capture_output=True, text=True, timeout=3600)
    assert "xla_cpu" in done.stdout and done.stdout.strip().endswith("True"), done.stderr


def test_measure_without_a_protocol_says_so(tmp_path):
    with pytest.raises(kj.errors.UserError, match="config.json cannot be read"):
        kj.measure(tmp_path)
    config = kj.load_config("emoji_combined", **{"eval.protocol": "none"})
    with pytest.raises(kj.errors.UserError, match="config.eval.protocol = 'none'; expected one of emoji"):
        kj.measure(tmp_path, config)
