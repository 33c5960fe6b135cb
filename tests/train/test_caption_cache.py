import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.annotate.prepare import prepare_records
from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.config.codec import open_codec
from kaleido_jax.data.sources.emoji import KINDS
from kaleido_jax.errors import UserError
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.models.kaleido import build_model, init_params, split_frozen
from kaleido_jax.runtime.mesh import make_mesh
from kaleido_jax.train import loop
from kaleido_jax.train.caption_cache import TABLE, class_captions, encode_once
from kaleido_jax.train.fit import make_batches
from kaleido_jax.train.step import joint_loss
from tests.tiny import single_net_config, tiny_batch

NAMES = ("fruit", "bird", "sea animal")
CONFIG = single_net_config(data__class_captions=NAMES, model__t5__encoder__trainable=False, diffusion__p_uncond=0.5)
TOKENIZER = load_tokenizer("emoji", CONFIG.latents.codebook_size)


@pytest.fixture
def parts():
    model = build_model(CONFIG, TOKENIZER.base_vocab_size)
    trainable, frozen = split_frozen(nn.meta.unbox(init_params(model, jax.random.key(0))), CONFIG)
    return model, trainable, frozen


def batch_of(captions):
    table = class_captions(CONFIG, TOKENIZER)
    batch = tiny_batch(CONFIG, rows=len(captions))
    return table, batch | {"encoder_input_tokens": table.tokens[[NAMES.index(c) for c in captions]]}


@pytest.mark.slow
def test_the_step_with_a_table_is_the_step_with_the_encoder(parts):
    model, trainable, frozen = parts
    table, batch = batch_of(["bird", "fruit", "sea animal", "fruit"])
    batch = jax.tree.map(jnp.asarray, table.add_rows(batch))
    loss = jax.jit(lambda params: joint_loss(params, model, CONFIG, batch, 0)[1])
    before = loss(trainable | frozen)
    kept, shardings = encode_once(table, model, frozen, make_mesh(mesh_sizes(CONFIG.mesh, jax.device_count())))
    assert set(kept) == {TABLE} and kept[TABLE]["states"].shape[0] == len(NAMES) + 1
    assert jax.tree.structure(kept) == jax.tree.structure(shardings)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(frozen["encoder"]))
    after = loss(trainable | kept)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), after, before)


def test_the_table_has_captions_as_records_hold_them():
    config = single_net_config(data__class_captions=("sea\xa0animal",), model__t5__encoder__trainable=False)
    [tokens] = class_captions(config, TOKENIZER).tokens
    assert TOKENIZER.decode(tokens[tokens > 0]) == "sea animal"


def test_a_record_with_another_caption_is_named():
    table, batch = batch_of(["bird", "fruit"])
    batch["encoder_input_tokens"] = batch["encoder_input_tokens"] + np.asarray([[0], [1]], np.int32)
    with pytest.raises(UserError, match="record 1 with another caption"):
        table.add_rows(batch)


def test_a_table_needs_a_frozen_encoder_and_no_table_is_none():
    with pytest.raises(UserError, match="trainable encoder"):
        single_net_config(data__class_captions=NAMES)
    none = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, class_captions=()))
    assert class_captions(none, TOKENIZER) is None


@pytest.mark.slow
def test_a_run_trains_on_the_table(tmp_path):
    names = KINDS
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, class_captions=tuple(names)))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=2))
    codec = open_codec(config)
    batches = make_batches(config, prepare_records(config, tmp_path, codec), codec)
    state = loop.train(config, tmp_path, TOKENIZER, batches)
    assert int(state.step) == 2 and set(state.params) == {"prior", "denoiser"}
