"""Guidance and samplers through the public API, on random weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.config.codec import open_codec
from kaleido_jax.errors import UserError
from kaleido_jax.models.kaleido import abstract_params, build_model
from kaleido_jax.runtime.randomness import sample_keys
from kaleido_jax.sampling import functional
from kaleido_jax.sampling.batched import _image_step
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from tests.tiny import single_net_config

CONFIG = single_net_config(sample__num_steps=3, sample__gamma=3.0, sample__sampler="ddim")
CAPTIONS, LATENTS = ["fruit", "bird"], [(5, 6, 7, 1), (8, 9, 1)]


def random_params(codec, seed, config=CONFIG):
    rng = np.random.default_rng(seed)
    shapes = abstract_params(build_model(config, codec.tokenizer.base_vocab_size))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.3, jnp.float32), shapes)


@pytest.fixture(scope="module")
def pipeline():
    codec = open_codec(CONFIG)
    return KaleidoPipeline(CONFIG, random_params(codec, 0), codec, bad_params=random_params(codec, 1))


def draw(pipeline, captions=CAPTIONS, latents=LATENTS, indices=None, **sample):
    settings = dataclasses.replace(CONFIG.sample, **sample)
    return pipeline.sample_images(captions, latents, seed=0, indices=indices, sample=settings)


@pytest.fixture(scope="module")
def with_cfg(pipeline):
    return draw(pipeline)


@pytest.mark.parametrize(
    "same_as_cfg",
    [
        {"guidance": "cads", "cads_tau": (1.0, 1.0)},
        {"guidance": "apg", "apg_eta": 1.0, "apg_momentum": 0.0},
        {"guidance_interval": (0.0, 1e9)},
    ],
)
def test_a_rule_with_everything_off_draws_what_cfg_draws(pipeline, with_cfg, same_as_cfg):
    np.testing.assert_allclose(draw(pipeline, **same_as_cfg), with_cfg, atol=1e-4)


@pytest.mark.parametrize(
    ("segments", "latents", "said"),
    [
        (True, None, "no latents for a model with them; expected None for a baseline alone"),
        (True, [], "0 latents for 2 captions; expected one for each"),
        (True, LATENTS[:1], "1 latents for 2 captions"),
        (True, [*LATENTS, (9, 1)], "3 latents for 2 captions"),
        (False, LATENTS, "latents for a model without; expected None"),
    ],
)
def test_images_of_missing_or_miscounted_latents_are_refused(pipeline, segments, latents, said):
    if not segments:
        config = single_net_config(latents__segments=())
        codec = open_codec(config)
        pipeline = KaleidoPipeline(config, random_params(codec, 0, config), codec)
    with pytest.raises(UserError, match=said):
        draw(pipeline, latents=latents)


@pytest.mark.parametrize("guidance", ["cads", "apg", "autoguidance"])
def test_a_rule_changes_the_image_and_a_sample_stays_its_own(pipeline, with_cfg, guidance):
    settings = {"guidance": guidance, "cads_tau": (0.2, 0.6)}
    images = draw(pipeline, **settings)
    assert np.isfinite(images).all() and np.abs(images - with_cfg).max() > 1e-3
    elsewhere = draw(pipeline, [CAPTIONS[1], "dress"], [LATENTS[1], (9, 1)], [1, 5], **settings)
    np.testing.assert_allclose(elsewhere[0], images[1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", ["cads", "apg", "autoguidance"])
def test_a_guided_sample_does_not_depend_on_how_many_are_drawn(pipeline, guidance):
    settings = {"guidance": guidance, "cads_tau": (0.2, 0.6)}
    alone = draw(pipeline, CAPTIONS[1:], LATENTS[1:], [1], **settings)
    np.testing.assert_allclose(alone[0], draw(pipeline, **settings)[1], atol=1e-4)


@pytest.mark.slow
def test_autoguidance_away_from_the_same_weights_is_no_guidance(pipeline):
    same = KaleidoPipeline(CONFIG, pipeline.params, pipeline.codec, bad_params=pipeline.params)
    np.testing.assert_allclose(draw(same, guidance="autoguidance"), draw(pipeline, gamma=1.0), atol=1e-4)
    without = KaleidoPipeline(CONFIG, pipeline.params, pipeline.codec)
    with pytest.raises(UserError, match="loaded without a worse one"):
        draw(without, guidance="autoguidance")
    np.testing.assert_array_equal(draw(without, gamma=1.0, guidance="autoguidance"), draw(without, gamma=1.0))


def test_one_compiled_function_serves_every_gamma_and_number_of_steps(pipeline, with_cfg):
    before = _image_step._cache_size()
    assert np.abs(draw(pipeline, gamma=5.0) - with_cfg).max() > 1e-3
    assert np.abs(draw(pipeline, num_steps=5) - with_cfg).max() > 1e-3
    assert _image_step._cache_size() == before


@pytest.mark.slow
def test_micro_conditions_of_the_settings_reach_the_denoiser():
    net = dataclasses.replace(CONFIG.model.denoiser, micro=(("scale", 8.0),))
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, denoiser=net))
    codec = open_codec(config)
    pipeline = KaleidoPipeline(config, random_params(codec, 0, config), codec)
    default, native, enlarged = (draw(pipeline, micro=micro) for micro in ((), (("scale", 8.0),), (("scale", 2.0),)))
    np.testing.assert_allclose(native, default, atol=1e-5)
    assert np.abs(enlarged - default).max() > 1e-3


def test_each_step_can_be_watched_and_the_last_one_is_the_image(pipeline, with_cfg):
    seen = []
    captions = pipeline._batched.encode(pipeline.params, pipeline.caption_tokens(CAPTIONS))
    z = np.asarray([[5, 6, 7, 1], [8, 9, 1, 0]], np.int32)
    keys, settings = sample_keys(0, "image", 0, jnp.arange(2)), dataclasses.replace(CONFIG.sample)
    args = pipeline.params, captions, None, np.arange(2), np.pad(z, ((0, 0), (0, 12))), keys, settings
    x = pipeline._batched.sample_images(*args, watch=lambda *one: seen.append(one))
    assert [(done, of) for done, of, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_allclose(seen[-1][2], x, atol=1e-5)  # DDIM's last step is x0
    assert np.abs(seen[0][2] - seen[1][2]).max() > 1e-3

    def cancel(done, of, x0):
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline._batched.sample_images(*args, watch=cancel)


@pytest.mark.parametrize("settings", [{}, {"sampler": "heun"}, {"sampler": "ddpm", "guidance": "apg", "gamma": 5.0}])
def test_steps_one_by_one_are_the_one_program(pipeline, settings):
    sample = dataclasses.replace(CONFIG.sample, **settings)
    captions = pipeline._batched.encode(pipeline.params, pipeline.caption_tokens(CAPTIONS))
    z, keys = np.asarray([[5, 6, 7, 1], [8, 9, 1, 0]], np.int32), sample_keys(0, "image", 0, jnp.arange(2))
    options = {"diffusion": CONFIG.diffusion, "sample": sample}
    args = pipeline.params, captions, z, keys, jnp.float32(sample.gamma), None
    whole = jax.jit(functools.partial(functional.sample_images, pipeline._batched.model, **options))(*args)
    steps = pipeline._batched.sample_images(pipeline.params, captions, None, np.arange(2), z, keys, sample)
    np.testing.assert_allclose(steps, whole, atol=1e-4)
