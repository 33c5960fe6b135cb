import subprocess
import sys

import pytest

from kaleido_jax import main
from kaleido_jax.config import lookup, nested, validate
from kaleido_jax.errors import UserError
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.models.kaleido import abstract_params, build_model
from kaleido_jax.train.state import count, split_frozen

FASHION = "--config=configs/fashion_combined.py"

BAD_INPUT = {
    "no config": (["--workdir=W"], "no --config"),
    "no workdir": ([FASHION], "no --workdir"),
    "no such config": (["--config=configs/fashon.py", "--workdir=W"], "configs/fashion_combined.py"),
    "unknown verb": (["trian", FASHION, "--workdir=W"], "did you mean 'train'"),
    "unknown flag": ([FASHION, "--workdir=W", "--steps=3"], "unknown flag --steps=3"),
    "misspelt key": ([FASHION, "--workdir=W", "--config.train.batchsize=3"], "expected 'train.batch_size'"),
    "misspelt group": ([FASHION, "--workdir=W", "--config.trian.batch_size=3"], "expected 'train'"),
    "deep misspelt key": ([FASHION, "--workdir=W", "--config.model.denoiser.inner.chanels=3"], "inner.channels"),
    "wrong type": ([FASHION, "--workdir=W", "--config.train.batch_size=many"], "train.batch_size=many; expected int"),
    "wrong type of a tuple": ([FASHION, "--workdir=W", "--config.sample.captions=(1,)"], "sample.captions[0] = 1"),
    "out of range": ([FASHION, "--workdir=W", "--config.diffusion.p_uncond=1.5"], "from 0 to 1"),
    "unknown choice": ([FASHION, "--workdir=W", "--config.sample.sampler=ddmp"], "did you mean 'ddpm'"),
    "nesting": ([FASHION, "--workdir=W", "--config.model.denoiser.inner.image_size=8"], "expected 16"),
    "resolution": ([FASHION, "--workdir=W", "--config.model.denoiser.image_size=64"], "expected 32"),
    "levels": ([FASHION, "--workdir=W", "--config.model.denoiser.num_res_blocks=(1,)"], "one a level"),
    "segments": ([FASHION, "--workdir=W", "--config.latents.segments=('voken','text')"], "in this order"),
    "more steps than the schedule": ([FASHION, "--workdir=W", "--config.sample.num_steps=2000"], "at most"),
    "weights": (["--config=configs/imagenet_combined.py", "--workdir=W"], "gs://t5-data"),
    "mesh": ([FASHION, "--workdir=W", "--config.mesh.data=3"], "product is 1 devices"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_of_found_expected_and_what_to_do(case, tmp_path, monkeypatch):
    flags, told = BAD_INPUT[case]
    with pytest.raises(UserError) as error:
        main.main([flag.replace("=W", f"={tmp_path / 'w'}") for flag in flags])
    assert told in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).count(";") >= 2
    assert not (tmp_path / "w").exists()


def test_bad_input_ends_with_code_2_before_jax_is_loaded(tmp_path):
    source = (
        "import sys, atexit\nfrom kaleido_jax import main\n"
        f"sys.argv = ['kaleido_jax', '{FASHION}', '--workdir={tmp_path}/w', '--config.train.batch_size=0']\n"
        "atexit.register(lambda: print('jax' in sys.modules))\nmain.run()"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "False\n"
    assert done.stderr == "kaleido_jax: error: config.train.batch_size = 0; expected at least 1; raise it\n"


def test_fields_without_a_value_can_be_set_by_a_flag():
    fields = ("init.inner", "data.records", "model.t5.checkpoint")
    config = validate(
        main.load_config("configs/fashion_combined.py", [f"--config.{field}=somewhere" for field in fields])
    )
    assert [lookup(config, field) for field in fields] == ["somewhere"] * 3
    assert lookup(validate(main.load_config("configs/fashion_combined.py", [])), "data.records") is None


def test_batch_that_does_not_divide_over_the_devices_is_refused(eight_devices):
    out = eight_devices(
        "from kaleido_jax import main\nfrom kaleido_jax.errors import UserError\n"
        f"try:\n    main.main(['{FASHION}', '--workdir=/nowhere/w', '--config.train.batch_size=20'])\n"
        "except UserError as error:\n    print(error)"
    )
    assert "config.train.batch_size = 20; expected a multiple of 8" in out


APPENDIX_B = {
    "train.batch_size": 512,
    "train.num_steps": 400_000,
    "train.learning_rate": 1e-4,
    "train.warmup_steps": 10_000,
    "train.adam_b1": 0.9,
    "train.adam_b2": 0.99,
    "train.adam_eps": 1e-8,
    "train.clip_norm": 2.0,
    "train.ema_decay": 0.9999,
    "sample.sampler": "ddpm",
    "sample.num_steps": 250,
    "latents.segments": ("text", "bbox", "voken"),
    "latents.num_vokens": 8192,
    "latents.vokens_per_image": 32,
    "model.t5.d_model": 2048,
    "model.t5.num_decoder_layers": 24,
}


def test_imagenet_combined_is_the_papers():
    config = validate(main.load_config("configs/imagenet_combined.py", []))
    assert {key: lookup(config, key) for key in APPENDIX_B} == APPENDIX_B
    outer, inner = nested(config.model.denoiser)
    assert (outer.image_size, outer.channels, outer.num_res_blocks, outer.num_attn_layers) == (
        256,
        (64, 128, 256),
        (2, 2, 1),
        (0, 0, 0),
    )
    assert (inner.image_size, inner.channels, inner.num_res_blocks, inner.num_attn_layers) == (
        64,
        (256, 512, 768),
        (2, 2, 2),
        (0, 1, 5),
    )
    assert (inner.emb_channels, inner.text_proj_channels, inner.num_text_layers) == (1024, 1024, 2)

    tokenizer = load_tokenizer(config.model.t5.vocabulary, config.latents.num_vokens)
    params = abstract_params(build_model(config, tokenizer.base_rows))
    trainable, frozen = split_frozen(params, config)
    assert count(params["denoiser"]) == 449_833_286  # the published count of this net
    assert count(params["prior"]) == 1_725_582_336  # 1.73B with 40320 rows in table and head
    assert set(trainable) == {"prior", "denoiser"} and count(frozen) == 1_223_527_424


def test_every_config_builds():
    import pathlib

    for path in sorted(pathlib.Path("configs").glob("*.py")):
        validate(main.load_config(str(path), []))
