from operator import attrgetter

import pytest

from kaleido_jax.config import Config, fields
from kaleido_jax.config.checks import check_worse_model
from kaleido_jax.config.fields import MAY_CHANGE, PATH, hints_of, marked, read_type
from kaleido_jax.config.schema import Mesh, allow
from kaleido_jax.errors import UserError
from tests.tiny import single_net_config, tiny_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample__sampler": "dpmpp2m"}, "did you mean 'dpmpp_2m'"),
        ({"sample__guidance": "cad"}, "did you mean 'cads'"),
        ({"sample__guidance": "autoguidance"}, "config.sample.autoguidance_step"),
        (
            {"eval__protocol": "edits", "data__source": "emoji", "latents__segments": ("text", "voken")},
            "protocol = 'edits' with config.latents.segments without bbox",
        ),
        ({"sample__guidance_interval": (1.0,)}, "config.sample.guidance_interval = "),
        ({"sample__guidance_interval": (2.0, 1.0)}, "0 <= low < high"),
        ({"sample__cads_tau": (0.9, 0.6)}, "config.sample.cads_tau = "),
        ({"sample__apg_momentum": 1.0}, "config.sample.apg_momentum = 1.0"),
        ({"sample__apg_eta": 1.5}, "config.sample.apg_eta = 1.5"),
        ({"annotate__endpoint__base_url": "localhost:8000"}, "expected http://"),
        ({"annotate__endpoint__timeout_s": 0.0}, "config.annotate.endpoint.timeout_s = 0.0"),
        ({"annotate__endpoint__concurrency": 0}, "config.annotate.endpoint.concurrency = 0"),
        ({"annotate__endpoint__image_format": "jpg"}, "did you mean 'jpeg'"),
        ({"annotate__text__kind": "openai"}, "config.annotate.endpoint.base_url and config.annotate.endpoint.model"),
        ({"annotate__bbox__kind": "transformers"}, "config.annotate.bbox.model"),
        (
            {"annotate__bbox__kind": "transformers", "annotate__bbox__model": "x", "annotate__bbox__image_size": 500}
            | {"annotate__bbox__coordinates": "pixels"},
            "use 504",
        ),
        ({"train__mixed_ratio": (2, 1, 1)}, "2 numbers from 0, one for each resolution"),
        ({"train__mixed_ratio": (0, 1)}, "config.train.mixed_ratio = "),
        ({"train__mixed_ratio": (0, 0), "train__accumulate": 2}, "config.train.mixed_ratio = "),
        ({"train__mixed_ratio": (1, 99)}, "whose first leaves a row"),
        ({"train__mixed_ratio": (2.5, 1)}, r"config.train.mixed_ratio\[0\] = 2.5"),
        ({"train__mixed_ratio": (1, 2), "train__accumulate": 2}, "that the ratio divides evenly"),
        ({"train__accumulate": 3}, "a divisor of config.train.batch_size = 8"),
        ({"train__logits_chunk": 16, "train__scheduled_sampling": 0.5}, "draws from all logits"),
        ({"train__clip_part_norms": (("head", 1.0),)}, "encoder, prior or denoiser"),
        ({"train__profile_steps": (100,)}, r"\(first, number\) or \(\)"),
        ({"train__profile_steps": (0, 5)}, r"profile_steps\[0\] = 0; expected at least 1"),
        ({"train__profile_steps": (1, 0)}, r"profile_steps\[1\] = 0; expected at least 1"),
        ({"data__length_buckets": (64, 32)}, "ascending lengths"),
        (
            {"data__length_buckets": (16,), "model__denoiser__inner__masked_cross_attention": False},
            "expected one length of z, since padding is a part of such a net",
        ),
        ({"mesh__rules": (("batch", "data"),)}, "config.mesh.rules without 'act_conv'"),
        ({"mesh__rules": (*((n, a) for n, a in Mesh().rules if n != "batch"), ("batch", "date"))}, "correct 'date'"),
        ({"mesh__rules": (*((n, a) for n, a in Mesh().rules if n != "embed"), ("embed", "fsdp+fsdp"))}, "axis once"),
        (
            {"eval__every_steps": 2, "data__class_captions": ("fruit",), "model__t5__encoder__trainable": False}
            | {"model__t5__checkpoint": "x"},
            "whose encoder is then gone",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(changes, message):
    with pytest.raises(UserError, match=message):
        tiny_config(**changes)


def test_what_can_work_is_taken():
    for changes in (
        {"sample__guidance_interval": (0.3, 5.0), "sample__sampler": "heun"},
        {"sample__guidance": "autoguidance", "sample__autoguidance_step": 2},
        {"train__mixed_ratio": (2, 1)},
        {"annotate__text__kind": "transformers", "annotate__text__model": "x"},
        {"annotate__text__kind": "openai", "annotate__text__model": "x"}
        | {"annotate__endpoint__base_url": "http://localhost:8000/v1"},
    ):
        tiny_config(**changes)
    for ratio in ((2, 1), (0,)):
        with pytest.raises(UserError, match="1 numbers"):
            single_net_config(train__mixed_ratio=ratio)


@pytest.mark.parametrize(
    ("step", "keep", "is_kept"),
    [
        (100, {}, True),
        (75, {}, True),  # the second newest
        (80, {}, False),  # not written
        (125, {}, False),
        (50, {}, False),  # deleted
        (50, {"train__keep_every_steps": 25}, True),
        (50, {"train__keep_every_steps": 100}, False),
        (50, {"train__keep_checkpoints": 3}, True),
        (50, {"sample__autoguidance_workdir": "exported"}, True),
    ],
)
def test_autoguidances_worse_model_must_be_there_when_training_ends(step, keep, is_kept):
    few = {"train__num_steps": 100, "train__checkpoint_every_steps": 25, "train__keep_checkpoints": 2} | keep
    config = tiny_config(sample__guidance="autoguidance", sample__autoguidance_step=step, **few)
    if is_kept:
        check_worse_model(config)
    else:
        with pytest.raises(UserError, match=f"autoguidance_step = {step}, of which there is no checkpoint when"):
            check_worse_model(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "config.seed = -1; expected a number from 0 to 4294967295"),
        ({"seed": 2**32}, "from 0 to 4294967295"),
        ({"model__t5__num_heads": 0}, "config.model.t5.num_heads = 0; expected at least 1"),
        ({"model__denoiser__channels": (0, 0)}, r"config.model.denoiser.channels\[0\] = 0; expected at least 1"),
        ({"model__denoiser__inner__num_res_blocks": (1, 0)}, r"inner.num_res_blocks\[1\] = 0"),
        ({"latents__codebook_size": -5}, "config.latents.codebook_size = -5"),
        ({"data__coco__licenses": (-1, -1)}, r"config.data.coco.licenses\[0\] = -1"),
        ({"train__adam_eps": -1.0}, "config.train.adam_eps = -1.0; expected at least 1e-16"),
        ({"train__clip_norm": 0.0}, "config.train.clip_norm = 0.0; expected more than 0"),
        ({"train__clip_norm": 1e-46}, "config.train.clip_norm = 1e-46, which is 0 in float32"),
        ({"train__adam_b1": 1.0}, "config.train.adam_b1 = 1.0, an average that never moves"),
        ({"train__ema_decay": 1.0}, "config.train.ema_decay = 1.0"),
        ({"train__num_steps": 50, "train__ema_every_steps": 100}, "ema_every_steps = 100, an EMA that never moves"),
        ({"train__ema_profiles": (0.1, 0.1)}, r"config.train.ema_profiles = \(0.1, 0.1\); expected different widths"),
        ({"train__ema_profiles": (0.05, 0.3)}, r"ema_profiles\[1\] = 0.3; expected a number between 0 and 0.2886"),
        ({"train__ema_snapshot_every_steps": 9}, "ema_snapshot_every_steps without averages to write"),
        ({"train__num_steps": 10**20}, "expected at most 2147483647; lower it"),
        ({"mesh__data": -2}, "config.mesh.data = -2"),
        ({"mesh__data": 0}, "config.mesh.data = 0; expected at least 1, or -1"),
        ({"model__denoiser__inner__text_proj_channels": 33}, "text of width 33 .* expected a multiple of 8"),
        ({"latents__vokens_per_image": 500}, "config.latents.max_latents_tokens = 64; expected at least 1000"),
    ],
)
def test_seeds_and_sizes_have_ends(changes, message):
    with pytest.raises(UserError, match=message):
        tiny_config(**changes)


def float_fields(group=Config, path=""):
    for name, hint in hints_of(group).items():
        below, field = f"{path}__{name}".lstrip("_"), read_type(hint)
        if field.group is not None and field.group is not group:
            yield from float_fields(field.group, below)
        elif field.bare is float:
            yield below


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_every_number_is_finite(value):
    found = [field for field in float_fields() if not field.startswith(("model__point", "model__denoiser"))]
    assert len(found) > 20
    for field in found:
        with pytest.raises(UserError, match=f"config.{field.replace('__', '.')} = .*; expected a finite number"):
            single_net_config(**{field: value})
    with pytest.raises(UserError, match=r"guidance_interval\[1\] = .*; expected a finite number"):
        single_net_config(sample__guidance_interval=(0.0, value))


def test_a_tilde_is_the_home_folder_in_every_path_of_the_config(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = sorted(marked(Config, PATH))
    assert {"data.root", "data.records", "init.inner", "model.t5.checkpoint", "annotate.text.model"} <= set(paths)
    config = tiny_config(**{path.replace(".", "__"): "~/x" for path in paths})
    assert {attrgetter(path)(config) for path in paths} == {f"{tmp_path}/x"}
    assert tiny_config(data__labels=("~/a",)).data.labels == (f"{tmp_path}/a",)
    with pytest.raises(UserError, match="config.data.root=~nobody.here/x; expected the home folder"):
        tiny_config(data__root="~nobody.here/x")


def test_a_word_allowed_from_outside_is_taken_like_the_others():
    with pytest.raises(UserError, match="config.sample.sampler = 'mine'"):
        tiny_config(sample__sampler="mine")
    allow("sample.sampler", "mine")
    try:
        assert tiny_config(sample__sampler="mine").sample.sampler == "mine"
        with pytest.raises(UserError, match="did you mean 'mine'"):
            tiny_config(sample__sampler="mines")
    finally:
        fields._more_words.clear()
    with pytest.raises(UserError, match="expected 'sample.sampler'"):
        allow("sample.samplr", "mine")
    with pytest.raises(TypeError, match="not a choice of words"):
        allow("sample.gamma", "mine")


def test_micro_conditions_that_the_denoiser_lacks_are_refused():
    with pytest.raises(UserError, match="config.sample.micro has 'scale'; expected .*it has none"):
        tiny_config(sample__micro=(("scale", 32.0),))
    with pytest.raises(UserError, match="config.model.denoiser.micro has a scale of 0"):
        tiny_config(model__denoiser__micro=(("scale", 0.0),))


def test_processes_that_read_do_not_keep_the_records_each():
    with pytest.raises(UserError, match="config.data.in_memory and data.num_workers = 2; expected one of them"):
        tiny_config(data__in_memory=True, data__num_workers=2)


def test_what_may_change_in_a_workdir_is_said_at_the_field():
    assert marked(Config, MAY_CHANGE) == {
        *("name", "init", "sample", "eval", "mesh"),
        *(f"train.{f}" for f in ("num_steps", "log_every_steps", "checkpoint_every_steps")),
        *(f"train.{f}" for f in ("keep_checkpoints", "keep_every_steps", "sample_at_end", "full_disk")),
        *(f"train.{f}" for f in ("max_skipped_steps", "profile_steps", "ema_snapshot_every_steps", "wandb_project")),
        *(f"data.{f}" for f in ("verify", "fetch", "records", "root", "tar.index", "num_workers", "max_bad_share")),
        *("data.in_memory", "model.t5.attention", "model.t5.remat", "model.denoiser.remat", "model.denoiser.attention"),
        *(f"annotate.{f}" for f in ("batch_size", "date", "endpoint", "engine", "num_workers", "ray_address")),
        *(f"annotate.{f}" for f in ("worker_cpus", "worker_gpus", "report_samples")),
    }
