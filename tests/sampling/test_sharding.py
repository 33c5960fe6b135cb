"""Samples over several devices."""

import numpy as np
import pytest

from kaleido_jax.config.codec import open_codec
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from tests.sampling.test_pipeline import CONFIG, random_params

CAPTIONS = ["fruit", "bird", "bug", "fruit", "heart", "sea animal"]
SPLIT = """
import dataclasses, jax, numpy as np, flax.linen as nn
from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.config.codec import open_codec
from kaleido_jax.config.schema import Mesh
from kaleido_jax.models.kaleido import build_model, init_params
from kaleido_jax.runtime.mesh import batch_sharding, make_mesh, shardings_of
from kaleido_jax.sampling import batched
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from tests.sampling.test_pipeline import CONFIG, random_params
from tests.sampling.test_sharding import CAPTIONS

config = dataclasses.replace(CONFIG, mesh=Mesh(data=2, fsdp=2, tensor=2))
codec = open_codec(config)
mesh = make_mesh(mesh_sizes(config.mesh, 8))
boxed = jax.eval_shape(lambda: init_params(build_model(config, codec.tokenizer.base_vocab_size), jax.random.key(0)))
shardings = shardings_of(boxed, mesh, config.mesh.rules)
params = jax.device_put(random_params(codec, 0), shardings)
assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))

outputs = []
def spied(function):
    return lambda *args, **kwargs: outputs.append(function(*args, **kwargs)) or outputs[-1]
batched._sample_latents, batched._finish = spied(batched._sample_latents), spied(batched._finish)
constrain, placed = jax.lax.with_sharding_constraint, []
jax.lax.with_sharding_constraint = lambda x, sharding: placed.append(sharding) or constrain(x, sharding)
out = KaleidoPipeline(config, params, codec)(CAPTIONS, images_per_caption=2, seed=3)

assert {{sharding.mesh for sharding in placed}} == {{mesh}}
assert any("tensor" in str(sharding.spec) for sharding in placed)  # activations inside the networks, not the rows alone
assert len(outputs) == 2  # 6 captions fill up to 8 rows, 12 images are 12 rows
for array, rows in zip(outputs, (8, 12)):
    assert array.shape[0] == rows and array.sharding.is_equivalent_to(batch_sharding(mesh), array.ndim), array.sharding
    assert {{shard.data.shape[0] for shard in array.addressable_shards}} == {{rows // 4}}
    assert len({{str(shard.index) for shard in array.addressable_shards}}) == 4  # two devices hold each
for leaf, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(shardings)):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
np.savez({path!r}, x=out.x, tokens=np.asarray([str(s.tokens) for s in out.samples]))
"""


@pytest.mark.slow
def test_rows_are_split_over_devices_and_are_those_of_one(eight_devices, tmp_path):
    eight_devices(SPLIT.format(path=str(tmp_path / "out.npz")))
    split = np.load(tmp_path / "out.npz")
    codec = open_codec(CONFIG)
    whole = KaleidoPipeline(CONFIG, random_params(codec, 0), codec)(CAPTIONS, images_per_caption=2, seed=3)
    assert list(split["tokens"]) == [str(sample.tokens) for sample in whole.samples]
    np.testing.assert_allclose(split["x"], whole.x, atol=1e-4)
    assert np.abs(whole.x[:, 0] - whole.x[:, 1]).max() > 1e-2
