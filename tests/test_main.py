import dataclasses
import functools
import pathlib
import subprocess
import sys
from operator import attrgetter

import jax
import pytest

from kaleido_jax import main
from kaleido_jax.config import load_config
from kaleido_jax.config.load import config_from_flags
from kaleido_jax.config.schema import Init, nested
from kaleido_jax.errors import UserError
from kaleido_jax.models.kaleido import Kaleido, abstract_params, count_params, split_frozen
from kaleido_jax.train import fit
from kaleido_jax.verbs import train

EMOJI = "--config=configs/emoji_combined.py"
NESTED = "--config=imagenet_combined"

BAD_INPUT = {
    "no config": (["--workdir=W"], "no --config"),
    "unknown variant": ([f"{EMOJI}:longer", "--workdir=W"], "one of short, long, baseline"),
    "no workdir": ([EMOJI], "no --workdir"),
    "bucket": ([EMOJI, "--workdir=gs://bucket/run"], "--workdir=gs://bucket/run; expected a path of"),
    "no such config": (["--config=configs/emojy.py", "--workdir=W"], "configs/emoji_combined.py"),
    "no such model": (
        ["sample", "--model=emoji-tinny", "--workdir=W"],
        "no model 'emoji-tinny'; expected a workdir, an exported folder or a bundled name (emoji-tiny, emoji-tiny-",
    ),
    "unknown verb": (["trian", EMOJI, "--workdir=W"], "did you mean 'train'"),
    "unknown flag": ([EMOJI, "--workdir=W", "--steps=3"], "unknown flag --steps=3"),
    "misspelled key": ([EMOJI, "--workdir=W", "--config.train.batchsize=3"], "expected 'train.batch_size'"),
    "misspelled group": ([EMOJI, "--workdir=W", "--config.trian.batch_size=3"], "expected 'train'"),
    "deep misspelled key": ([NESTED, "--workdir=W", "--config.model.denoiser.inner.chanels=3"], "inner.channels"),
    "wrong type": ([EMOJI, "--workdir=W", "--config.train.batch_size=many"], "train.batch_size=many; expected int"),
    "wrong type of a tuple": ([EMOJI, "--workdir=W", "--config.sample.captions=(1,)"], "sample.captions[0] = 1"),
    "out of range": ([EMOJI, "--workdir=W", "--config.diffusion.p_uncond=1.5"], "from 0 to 1"),
    "unknown choice": ([EMOJI, "--workdir=W", "--config.sample.sampler=ddmp"], "did you mean 'ddpm'"),
    "nesting": ([NESTED, "--workdir=W", "--config.model.denoiser.inner.image_size=8"], "expected 64"),
    "resolution": ([NESTED, "--workdir=W", "--config.model.denoiser.image_size=512"], "expected 128"),
    "patches": ([EMOJI, "--workdir=W", "--config.model.denoiser.patch=3"], "a multiple of 3 for"),
    "levels": ([EMOJI, "--workdir=W", "--config.model.denoiser.num_res_blocks=(1,1)"], "one for each level"),
    "segments": ([EMOJI, "--workdir=W", "--config.latents.segments=('voken','text')"], "in this order"),
    "more steps than the schedule": ([EMOJI, "--workdir=W", "--config.sample.num_steps=2000"], "at most"),
    "weights": (["--config=configs/imagenet_combined.py", "--workdir=W"], "gs://t5-data"),
    "limit without annotate": ([EMOJI, "--workdir=W", "--limit=3"], "unknown flag --limit=3"),
    "limit": (["annotate", EMOJI, "--workdir=W", "--limit=few"], "annotate.limit=few; expected int"),
    "no data": (["annotate", "--config=configs/annotate_coco.py", "--workdir=W"], "config.data.root = None"),
    "nothing to annotate": (["annotate", "--config=configs/imagenet_combined.py", "--workdir=W"], "data to annotate"),
    "required": (
        [EMOJI, "--workdir=W", "--config.annotate.required=('bbox',)", "--config.annotate.segments=('text',)"],
        "add it there",
    ),
    "number of processes": (
        [EMOJI, "--workdir=W", "--num_processes=two"],
        "--num_processes=two; expected a whole number",
    ),
    "processes": ([EMOJI, "--workdir=W", "--coordinator=a:1"], "without --num_processes, --process_id; expected"),
    "mesh": ([EMOJI, "--workdir=W", "--config.mesh.data=3"], "product is 1 devices"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_of_found_expected_and_what_to_do(case, tmp_path, monkeypatch):
    flags, message = BAD_INPUT[case]
    with pytest.raises(UserError) as error:
        main.main([flag.replace("=W", f"={tmp_path / 'w'}") for flag in flags])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).count(";") >= 2
    assert not (tmp_path / "w").exists()


def test_bad_input_ends_with_code_2_before_jax_is_loaded(tmp_path):
    source = (
        "import sys, atexit\nfrom kaleido_jax import main\n"
        f"sys.argv = ['kaleido_jax', '{EMOJI}', '--workdir={tmp_path}/w', '--config.train.batch_size=0']\n"
        "atexit.register(lambda: print('jax' in sys.modules))\nmain.run()"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and done.stdout == "False\n"
    assert done.stderr == "kaleido_jax: error: config.train.batch_size = 0; expected at least 1; raise it\n"


def test_fields_without_a_value_can_be_set_by_a_flag():
    fields = ("init.inner", "data.records", "model.t5.checkpoint")
    config = config_from_flags("imagenet_combined", [f"--config.{field}=somewhere" for field in fields])
    assert [attrgetter(field)(config) for field in fields] == ["somewhere"] * 3
    assert load_config("emoji_combined").data.records is None


def test_batch_that_does_not_divide_over_the_devices_is_refused(eight_devices):
    out = eight_devices(
        "from kaleido_jax import main\nfrom kaleido_jax.errors import UserError\n"
        f"try:\n    main.main(['{EMOJI}', '--workdir=/nowhere/w', '--config.train.batch_size=20'])\n"
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
    "latents.codebook_size": 8192,
    "latents.vokens_per_image": 32,
    "model.t5.d_model": 2048,
    "model.t5.num_decoder_layers": 24,
}


def test_imagenet_combined_is_the_papers():
    config = load_config("imagenet_combined")
    assert {key: attrgetter(key)(config) for key in APPENDIX_B} == APPENDIX_B
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

    params = shapes_of(config)
    trainable, frozen = split_frozen(params, config)
    assert count_params(params["denoiser"]) == 449_833_286  # the published count of this net
    assert count_params(params["prior"]) == 1_725_582_336  # 1.73B with 40320 rows in table and head
    assert set(trainable) == {"prior", "denoiser"} and count_params(frozen) == 1_223_527_424


def load(spec):
    return load_config(f"configs/{spec}")


@functools.cache
def shapes(model, codebook_size, has_prior):
    """Shapes of all parameters; many configs have the same nets."""
    return abstract_params(Kaleido(model, 32128, 32128 + codebook_size, has_prior))


def shapes_of(config):
    return shapes(config.model, config.latents.codebook_size, bool(config.latents.segments))


# Tensors and parameters of the published models, counted in ml-mdm.
RELEASED = {64: (713, 461_359_107), 256: (889, 476_613_958), 1024: (1063, 480_970_057)}


@pytest.mark.parametrize("size", RELEASED)
def test_mdms_configs_are_the_released_nets(size):
    config = load(f"mdm_{size}.py")
    denoiser = shapes_of(config)["denoiser"]
    assert (len(jax.tree.leaves(denoiser)), count_params(denoiser)) == RELEASED[size]
    nets = nested(config.model.denoiser)
    assert [net.image_size for net in nets] == [px for px in (1024, 256, 64) if px <= size]
    assert [net.normalize_input for net in nets] == {64: [False], 256: [False] * 2, 1024: [False, True, False]}[size]
    assert config.diffusion.shift_power == (2.0 if size == 1024 else 1.0)
    assert config.latents.segments == () and not nets[-1].masked_cross_attention


TEXT_TO_IMAGE = {  # segments and the longest z, in tokens
    "text": (("text",), 160),
    "bbox": (("bbox",), 192),
    "blob": (("blob",), 192),
    "voken": (("voken",), 64),
    "combined": (("text", "bbox", "voken"), 416),
}


@pytest.mark.parametrize("latents", TEXT_TO_IMAGE)
def test_the_text_to_image_models_differ_in_their_latents_alone(latents):
    config, base = load(f"cc12m.py:{latents}"), load("imagenet_combined.py")
    assert (config.latents.segments, config.latents.max_latents_tokens) == TEXT_TO_IMAGE[latents]
    assert (config.model, config.diffusion, config.train) == (base.model, base.diffusion, base.train)
    assert config.init.inner == f"runs/cc12m_64_{latents}" and config.sample.gamma == 7
    assert len(base.data.class_captions) == 999 and config.data.class_captions == ()
    small = load(f"cc12m_64.py:{latents}")
    assert small.model.denoiser == base.model.denoiser.inner and small.latents == config.latents
    assert small.init.inner is None and "256 px" in small.data.fetch


def test_the_baseline_is_the_same_without_latents():
    config, combined = load("imagenet_mdm.py"), load("imagenet_combined.py")
    assert config.latents.segments == ()
    for group in ("model", "diffusion", "train", "sample"):
        assert getattr(config, group) == getattr(combined, group)


@pytest.mark.parametrize("pair", [("long", "baseline"), ("accelerator", "accelerator-baseline")])
def test_an_emoji_baseline_differs_by_its_latents(pair):
    kaleido, baseline = (load_config(f"emoji_combined:{variant}") for variant in pair)
    assert kaleido.latents.segments and baseline.latents.segments == ()
    assert (kaleido.name, baseline.name) == ("emoji-tiny", "emoji-tiny-baseline")
    for group in ("model", "diffusion", "train", "eval"):
        assert getattr(baseline, group) == getattr(kaleido, group)
    assert dataclasses.replace(baseline.sample, num_steps=10) == kaleido.sample  # what each needs


def test_the_64_px_net_grows_around_the_long_run():
    long, larger = (load_config(f"emoji_combined:{variant}") for variant in ("long", "64"))
    assert larger.model.denoiser.inner == long.model.denoiser and larger.latents == long.latents


QUICK = ("emoji_combined.py", "imagenet_combined.py")  # the others take five seconds each to trace


@pytest.mark.parametrize(
    "name",
    [
        path.name if path.name in QUICK else pytest.param(path.name, marks=pytest.mark.slow)
        for path in sorted(pathlib.Path("configs").glob("*.py"))
        if not path.name.startswith("sweep_")
    ],
)
def test_every_config_builds(name):
    config = load(name)
    parts = {"encoder", "prior", "denoiser"} if config.latents.segments else {"encoder", "denoiser"}
    assert set(shapes_of(config)) == parts


@pytest.mark.parametrize("name", ["mdm_256", "cc12m:text", "imagenet_mdm"])
def test_what_is_missing_is_reported_with_where_to_get_it(name, tmp_path, monkeypatch):
    def message(config):
        with pytest.raises(UserError) as error:
            train.run(config, tmp_path / "w")
        assert "\n" not in str(error.value)
        return str(error.value)

    config = load_config(name)
    if config.init.inner:
        assert "flickr64/vis_model.pth" in message(config)
    config = dataclasses.replace(config, init=Init())
    assert "gs://t5-data" in message(config)
    monkeypatch.setattr(fit, "check_weights", lambda *args, **kwargs: None)
    assert message(config).endswith(config.data.fetch) and "set config.data.records" in config.data.fetch
