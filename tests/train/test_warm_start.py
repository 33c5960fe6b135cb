"""A net trained at the low resolution becomes the inner net of a larger one (config.init.inner)."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from kaleido_jax.config.checks import mesh_sizes
from kaleido_jax.config.schema import UNet, to_config_dict
from kaleido_jax.config.stored import open_workdir
from kaleido_jax.errors import UserError
from kaleido_jax.interop.files.safetensors import write_safetensors
from kaleido_jax.interop.mdm.load import trained_settings
from kaleido_jax.interop.t5.load import load_t5
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.models.kaleido import abstract_params, build_model
from kaleido_jax.runtime import checkpoints
from kaleido_jax.runtime.mesh import make_mesh
from kaleido_jax.train.fit import check_weights
from kaleido_jax.train.optimizer import make_optimizer
from kaleido_jax.train.state import Guard, State, create_state
from kaleido_jax.train.warm_start import CARRIED, _check_settings, load_inner
from kaleido_jax.verbs import convert
from tests.interop.files import torch_files
from tests.tiny import tiny_config

INNER = UNet(
    image_size=8,
    channels=(32,),
    num_res_blocks=(1,),
    num_attn_layers=(1,),
    attention_ffn=False,
    mid_blocks=False,
    emb_channels=16,
    num_groups=4,
    text_proj_channels=16,
)
OUTER = dataclasses.replace(
    INNER, image_size=16, channels=(4, 8), num_res_blocks=(1, 1), num_attn_layers=(0, 0), inner=INNER
)
LOW = tiny_config(model__denoiser=to_config_dict(INNER))


@pytest.fixture(scope="module")
def ema():
    """Of a run at the low resolution: any numbers, so that no layer is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract_params(model_of(LOW)))


@pytest.fixture(scope="module")
def run(ema, tmp_path_factory):
    """A workdir with that checkpoint."""
    folder = open_workdir(LOW, tmp_path_factory.mktemp("low") / "run")
    params = jax.tree.map(np.zeros_like, ema)
    state = State(
        step=np.int32(2), params=params, ema=ema, opt_state=make_optimizer(LOW.train).init(params), guard=Guard.fresh()
    )
    with checkpoints.open_manager(folder, checkpoints.Settings(LOW.train.keep_checkpoints)) as manager:
        manager.save(2, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
    return folder


def config_from(path, **changes):
    return tiny_config(model__denoiser=to_config_dict(OUTER), init__inner=path and str(path), **changes)


def model_of(config):
    return build_model(config, load_tokenizer(config.model.t5.vocabulary, config.latents.codebook_size).base_vocab_size)


def state_from(config, **options):
    return create_state(
        config,
        model_of(config),
        make_optimizer(config.train),
        make_mesh(mesh_sizes(config.mesh, jax.device_count())),
        **options,
    )[0]


def equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def handed(run):
    return state_from(config_from(run))


@pytest.mark.slow
def test_the_low_resolution_is_bit_identical_after_the_hand_over(handed, ema):
    rng = np.random.default_rng(0)
    high, low = (jnp.asarray(rng.normal(size=(3, size, size, 3)), jnp.float32) for size in (16, 8))
    text, mask = jnp.asarray(rng.normal(size=(3, 5, 16)), jnp.float32), jnp.arange(5)[None] < jnp.array([[2], [5], [3]])
    times = jnp.array([0, 500, 999])

    def denoise(config, denoiser, images):
        model, params = model_of(config), {"params": {"denoiser": denoiser}}
        condition = model.apply(params, text, mask, method="condition")
        return model.apply(params, images, times, condition, method="denoise")

    alone = denoise(LOW, jax.tree.map(jnp.asarray, ema["denoiser"]), [low])
    outer, inner = denoise(config_from("unused"), handed.params["denoiser"], [high, low])
    assert np.abs(alone[0]).max() > 0
    assert np.array_equal(inner, alone[0])
    assert not np.any(outer)  # its last layer starts at zero


@pytest.mark.slow
def test_what_was_trained_carries_over_and_the_rest_starts_anew(handed, ema):
    equal(handed.params["denoiser"]["inner"], ema["denoiser"])
    for part in ("prior", "encoder"):
        equal(handed.params[part], ema[part])
    equal(handed.ema, handed.params)
    fresh = state_from(config_from(None))
    equal(handed.params["denoiser"]["outer"], fresh.params["denoiser"]["outer"])
    equal(handed.opt_state, fresh.opt_state)
    assert handed.step == 0
    assert not np.array_equal(
        handed.params["denoiser"]["inner"]["conv_in"]["kernel"], fresh.params["denoiser"]["inner"]["conv_in"]["kernel"]
    )


@pytest.fixture(scope="module")
def converted(run, tmp_path_factory):
    """Format -> folder, of the run's denoiser."""
    folder = tmp_path_factory.mktemp("converted")
    for form in ("kaleido", "mdm"):
        convert.run(run, folder / form, form)
    torch_files.write(folder / "vis_model.pth", {"state_dict": load_file(folder / "mdm" / "model.safetensors")})
    return folder


@pytest.mark.parametrize("name", ["kaleido", "kaleido/model.safetensors", "mdm", "vis_model.pth"])
def test_the_inner_net_starts_from_any_file(converted, name, handed, ema):
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), handed.params)
    equal(load_inner(config_from(converted / name), wanted), {"denoiser": {"inner": ema["denoiser"]}})


def test_a_runs_denoiser_is_converted_with_its_config(converted):
    for form in ("kaleido", "mdm"):
        written = json.loads((converted / form / "denoiser.json").read_text())
        assert written["denoiser"]["image_size"] == 8 and written["denoiser"]["num_groups"] == 4
        assert written["denoiser"]["masked_cross_attention"] and written["assumed"] == {}
    convert.run(converted / "kaleido", converted / "again", "mdm")
    again = json.loads((converted / "again" / "denoiser.json").read_text())
    assert again == json.loads((converted / "mdm" / "denoiser.json").read_text())
    convert.run(converted / "mdm", converted / "back", "kaleido")  # whose tensors have ml-mdm's names
    assert json.loads((converted / "back" / "denoiser.json").read_text()) == again


def test_a_restored_run_does_not_read_it():
    config = config_from("/gone")
    state_from(config, fresh=False)
    check_weights(config, fresh=False)
    with pytest.raises(UserError, match="config.init.inner = '/gone' is not on this machine") as caught:
        check_weights(config)
    assert "flickr64/vis_model.pth" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_another_net_is_refused_by_name(run, converted, tmp_path):
    wider = {"model__denoiser__inner__channels": (64,)}
    for path, changes, message in (
        (run, wider, r"config.init.inner: .* has model.denoiser.channels = \[32\]; expected \[64\]"),
        (converted / "mdm", wider, r"config.init.inner: .* has shape \(.*\); expected"),
        (converted / "vis_model.pth", {"model__denoiser__inner__num_text_layers": 2}, "missing names"),
        (run, {"model__denoiser__inner__num_groups": 2}, "has model.denoiser.num_groups = 4; expected 2"),
        (run, {"diffusion__prediction": "x0"}, "has diffusion.prediction = 'v'; expected 'x0', as in config.diffusion"),
        (run, {"diffusion__schedule": "linear"}, "has diffusion.schedule = 'squared_cosine'; expected 'linear'"),
        (run, {"diffusion__num_steps": 500}, "has diffusion.num_steps = 1000; expected 500"),
        (run, {"latents__codebook_size": 128}, "the prior of .* has shape"),
        (tmp_path / "nothing", {}, "no weights at"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            state_from(config_from(path, **changes))
        assert "\n" not in str(caught.value) and str(caught.value).count(";") >= 2


def test_a_field_of_the_diffusion_younger_than_the_run_has_its_default_there(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    del values["diffusion"]["schedule"]
    path.write_text(json.dumps(values))
    settings = trained_settings(values, path)
    _check_settings(config_from(run), tmp_path / "run", settings)
    with pytest.raises(UserError, match="has diffusion.schedule = 'squared_cosine'; expected 'cosine'"):
        _check_settings(config_from(run, diffusion__schedule="cosine"), tmp_path / "run", settings)


def test_a_field_of_the_net_younger_than_the_run_has_its_default_there(run, tmp_path):
    path = tmp_path / "config.json"
    values = json.loads((run / "config.json").read_text())
    values["model"]["denoiser"]["inner"] = dict(values["model"]["denoiser"])
    del values["model"]["denoiser"]["patch"], values["model"]["denoiser"]["inner"]["patch"]
    settings = trained_settings(values, path)
    assert settings["denoiser"]["patch"] == settings["denoiser"]["inner"]["patch"] == 1
    del values["model"]["denoiser"]["inner"]
    _check_settings(config_from(run), tmp_path, trained_settings(values, path))
    with pytest.raises(UserError, match="has model.denoiser.patch = 1; expected 2"):
        changes = {"model__denoiser__inner__patch": 2, "model__denoiser__image_size": 8}
        _check_settings(config_from(run, **changes), tmp_path, trained_settings(values, path))


@pytest.fixture(scope="module")
def exported(ema, tmp_path_factory):
    """The same weights as `export` writes them."""
    folder = tmp_path_factory.mktemp("exported")
    write_safetensors(flatten_dict(ema, sep="/").items(), folder)
    (folder / "config.json").write_text(LOW.to_json())
    return folder


def shapes_wanted(config):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=None), abstract_params(model_of(config))
    )


def test_an_exported_model_hands_over_what_its_run_does(exported, ema):
    config = config_from(exported)
    wanted = shapes_wanted(config)
    equal(load_inner(config, wanted), {part: ema[part] for part in CARRIED} | {"denoiser": {"inner": ema["denoiser"]}})
    frozen = {part: tree for part, tree in wanted.items() if part != "encoder"}
    assert load_inner(config, frozen).keys() == {"denoiser", "prior"}
    with pytest.raises(UserError, match="the prior of .* has shape"):
        other = config_from(exported, latents__codebook_size=128)
        load_inner(other, shapes_wanted(other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__denoiser__inner__num_groups": 2}, "has model.denoiser.num_groups = 4; expected 2"),
        ({"model__denoiser__inner__masked_cross_attention": False}, "masked_cross_attention = True; expected False"),
        ({"diffusion__prediction": "x0"}, "has diffusion.prediction = 'v'; expected 'x0', as in config.diffusion"),
    ],
)
def test_what_shapes_do_not_show_is_checked_of_files_too(change, message, exported, converted):
    for path in (exported, converted / "kaleido", converted / "mdm" / "model.safetensors"):
        config = config_from(path, **change)
        with pytest.raises(UserError, match=f"config.init.inner: .*{message}"):
            load_inner(config, shapes_wanted(config))
    config = config_from(converted / "vis_model.pth", **change)  # which says nothing of them
    load_inner(config, shapes_wanted(config))


def test_an_exported_model_is_converted_as_its_run(exported, converted, ema, tmp_path):
    for form in ("kaleido", "mdm"):
        convert.run(exported, tmp_path / form, form)
        for name in ("model.safetensors", "denoiser.json"):
            assert (tmp_path / form / name).read_bytes() == (converted / form / name).read_bytes()
    convert.run(exported, tmp_path / "t5x", "t5x")
    equal(stored_t5(ema, tmp_path / "t5x"), {part: ema[part] for part in CARRIED})
    equal(stored_t5(ema, exported), {part: ema[part] for part in CARRIED})
    shutil.copy(exported / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match="a model without .*config.json; expected the folder as it was exported"):
        convert.run(tmp_path / "model.safetensors", tmp_path / "out", "mdm")


def test_a_run_without_its_config_is_refused(run, tmp_path):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(UserError, match="config.json is missing or damaged"):
        state_from(config_from(tmp_path))


def test_only_a_nest_has_an_inner_net():
    with pytest.raises(UserError, match="config.init.inner without an inner net"):
        tiny_config(model__denoiser=to_config_dict(INNER), init__inner="somewhere")


def stored_t5(ema, path):
    """What a file holds for the encoder and prior, loaded like the EMA's."""
    targets = {part: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), ema[part]) for part in CARRIED}
    tokenizer = load_tokenizer(LOW.model.t5.vocabulary, LOW.latents.codebook_size)
    return load_t5(path, targets, num_pieces=tokenizer.num_pieces, base_vocab_size=tokenizer.base_vocab_size, seed=0)


def test_a_runs_t5_is_converted_with_both_its_tables(run, ema, tmp_path):
    convert.run(run, tmp_path / "t5x", "t5x")
    equal(stored_t5(ema, tmp_path / "t5x"), {part: ema[part] for part in CARRIED})
    with pytest.raises(UserError, match="tables of encoder .* that differ"):
        convert.run(run, tmp_path / "hf", "huggingface")


def test_a_frozen_encoder_comes_along_from_its_file(run, ema, tmp_path):
    convert.run(run, tmp_path / "start", "t5x")
    encoder = {"trainable": False}
    config = tiny_config(
        model__denoiser=to_config_dict(INNER), model__t5__encoder=encoder, model__t5__checkpoint=str(tmp_path / "start")
    )
    folder = open_workdir(config, tmp_path / "run")
    trained = {"prior": jax.tree.map(lambda leaf: leaf + 1, ema["prior"]), "denoiser": ema["denoiser"]}
    state = State(
        step=np.int32(2),
        params=trained,
        ema=trained,
        opt_state=make_optimizer(config.train).init(trained),
        guard=Guard.fresh(),
    )
    with checkpoints.open_manager(folder, checkpoints.Settings(config.train.keep_checkpoints)) as manager:
        manager.save(2, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
    values = json.loads((folder / "config.json").read_text())
    del values["model"]["t5"]["attention"], values["model"]["t5"]["remat"]  # as of a run that is older than these
    (folder / "config.json").write_text(json.dumps(values))
    convert.run(folder, tmp_path / "out", "t5x")
    equal(stored_t5(ema, tmp_path / "out"), {"encoder": ema["encoder"], "prior": trained["prior"]})
