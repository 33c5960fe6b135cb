"""MDM's weights in and out of files: .pth, safetensors of ml-mdm's names and ours."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from kaleido_jax import main
from kaleido_jax.config import schema as cfg
from kaleido_jax.errors import UserError
from kaleido_jax.interop.mdm import layout as mdm
from kaleido_jax.interop.mdm.convert import convert_denoiser
from kaleido_jax.interop.mdm.load import open_denoiser
from kaleido_jax.interop.mdm.sizes import read_sizes
from tests.interop.files import torch_files
from tests.mdm_config import config_from_mdm, denoiser_to_mdm
from tests.models.test_mdm_golden import image_size, meta, names_of, state_of

INNER = cfg.UNet(
    channels=(32, 64),
    num_res_blocks=(1, 2),
    num_attn_layers=(0, 1),
    emb_channels=32,
    text_proj_channels=16,
    num_text_layers=1,
    masked_cross_attention=False,
    micro=(("scale", 64.0),),
)
NET = cfg.UNet(
    image_size=128,
    channels=(32, 32),
    num_res_blocks=(1, 1),
    num_attn_layers=(0, 0),
    attention_ffn=False,
    mid_blocks=False,
    emb_channels=32,
    masked_cross_attention=False,
    micro=(("scale", 128.0),),
    inner=INNER,
)


@pytest.fixture(autouse=True, scope="module")
def traced_once():
    """Most tests read the same net, whose shapes take a second to trace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mdm, "denoiser_shapes", functools.cache(mdm.denoiser_shapes))
        yield


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), mdm.denoiser_shapes(NET, 24))


@pytest.fixture(scope="module")
def state(params):
    """The same under ml-mdm's names."""
    return denoiser_to_mdm(params, NET)


def checkpoint(state):
    """What ml-mdm saves: the weights beside objects of classes that nobody has."""
    args = torch_files.call("argparse", "Namespace", torch_files.call("models.unet", "UNetConfig"))
    return {"state_dict": state, "batch_num": 5, "loss": None, "args": args}


@pytest.fixture(scope="module")
def pth(state, tmp_path_factory):
    return torch_files.write(tmp_path_factory.mktemp("mdm") / "vis_model.pth", checkpoint(state))


def convert(source, output, form):
    main.main(["convert", f"--input={source}", f"--output={output}", f"--format={form}"])


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_pth_becomes_ours_and_ml_mdms_again(pth, params, state, tmp_path, capsys):
    convert(pth, tmp_path / "ours", "kaleido")
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert f"{len(state)} tensors, {size:,} parameters: a net of 128 px" in capsys.readouterr().out
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert ours["denoiser/inner/conv_in/kernel"].shape == (3, 3, 3, 32)
    same(ours, {"denoiser/" + "/".join(path): leaf for path, leaf in flatten_dict(params).items()})
    for number, source in enumerate((tmp_path / "ours", tmp_path / "ours" / "model.safetensors", pth)):
        convert(source, tmp_path / str(number), "mdm")
        same(load_file(tmp_path / str(number) / "model.safetensors"), state)
    convert(tmp_path / "0", tmp_path / "again", "kaleido")
    same(load_file(tmp_path / "again" / "model.safetensors"), ours)


def test_a_pth_of_an_older_torch_is_read_too(state, tmp_path):
    path = torch_files.write_legacy(tmp_path / "old.pth", state)
    convert(path, tmp_path / "mdm", "mdm")
    same(load_file(tmp_path / "mdm" / "model.safetensors"), state)


def test_the_config_beside_the_weights_is_that_of_the_net(pth, tmp_path):
    convert(pth, tmp_path / "ours", "kaleido")
    written = json.loads((tmp_path / "ours" / "denoiser.json").read_text())
    assert written["denoiser"] == json.loads(json.dumps(dataclasses.asdict(NET)))
    assert written["text_channels"] == 24 and written["diffusion"] == {"shift_power": 1.0}
    assert set(written["assumed"]) >= {"num_groups", "masked_cross_attention", "normalize_input"}


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", ""])
def test_a_damaged_config_beside_the_weights_is_one_line(content, pth, tmp_path):
    convert(pth, tmp_path / "ours", "kaleido")
    (tmp_path / "ours" / "denoiser.json").write_text(content)
    with pytest.raises(UserError, match=r"denoiser.json is damaged \(.*\); expected what the verb convert wrote; conv"):
        open_denoiser(tmp_path / "ours")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "int32"])
def test_other_types_become_float32(state, tmp_path, kind):
    import ml_dtypes

    dtype = getattr(ml_dtypes, kind, kind)
    path = torch_files.write(tmp_path / "x.pth", {name: value.astype(dtype) for name, value in state.items()})
    convert(path, tmp_path / "mdm", "mdm")
    same(
        load_file(tmp_path / "mdm" / "model.safetensors"),
        {name: value.astype(dtype).astype(np.float32) for name, value in state.items()},
    )


@pytest.mark.parametrize("name", names_of("UNet", "NestedUNet"))
def test_sizes_are_those_of_ml_mdms_config(name):
    values, shapes = meta(name)["config"], {k: v.shape for k, v in state_of(name).items()}
    found, text_channels = read_sizes(Shapes(shapes))
    assert text_channels == values["conditioning_feature_dim"]
    expected = cfg.nested(config_from_mdm(values, image_size(name)))
    message = ("channels", "num_res_blocks", "num_attn_layers", "mid_blocks", "emb_channels", "text_proj_channels")
    for ours, theirs in zip(cfg.nested(found), expected, strict=True):
        for field in (*message, "num_text_layers"):
            assert getattr(ours, field) == getattr(theirs, field), field
        assert {n for n, _ in ours.micro} == {n for n, _ in theirs.micro}


@dataclasses.dataclass
class Shapes:
    """A source of shapes alone."""

    shapes: dict
    path: pathlib.Path = pathlib.Path("somewhere")

    @property
    def names(self):
        return tuple(sorted(self.shapes))

    def shape(self, name):
        return self.shapes[name]

    def read(self, name):
        raise AssertionError(f"{name} is read")


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


WRONG = {
    "missing": (lambda s: without(s, "inner_unet.cond_emb.weight"), "inner_unet.cond_emb.weight"),
    "missing bias": (lambda s: without(s, "in_adapter.bias"), r"1 missing names \(in_adapter.bias\)"),
    "unknown": (lambda s: s | {"extra.weight": np.ones(2, np.float32)}, r"1 unknown names \(extra.weight\)"),
    "shape": (
        lambda s: s | {"conv_out.weight": np.ones((3, 32, 1, 1), np.float32)},
        r"conv_out.weight has shape \(3, 32, 1, 1\); expected \(3, 32, 3, 3\)",
    ),
    "rank": (lambda s: s | {"temb_layer2.weight": np.ones((), np.float32)}, r"temb_layer2.weight of shape \(\)"),
    "width": (
        lambda s: s | {"down_blocks.0.resnets.0.conv1.weight": np.ones((7, 32, 3, 3), np.float32)},
        r"2 missing names \(down_blocks.1.resnets.0.conv3.bias, ",
    ),
    "no net": (lambda s: {"encoder.weight": np.ones(3, np.float32)}, "holds no MDM denoiser"),
    "empty": (lambda s: {}, r"holds no MDM denoiser \(it has no tensor\)|holds no state dict"),
    "no levels": (lambda s: {k: v for k, v in s.items() if "down_blocks" not in k}, "of 0 levels"),
    "no text": (lambda s: s | {"inner_unet.lm_proj.weight": np.ones(16, np.float32)}, "lm_proj.weight"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_weights_are_refused_and_nothing_is_written(case, state, tmp_path):
    change, message = WRONG[case]
    for file, write in (("x.pth", torch_files.write), ("x.safetensors", lambda path, s: save_file(s, path))):
        write(tmp_path / file, change(state))
        with pytest.raises(UserError, match=message) as caught:
            convert_denoiser(open_denoiser(tmp_path / file), tmp_path / "out", "kaleido")
        assert "\n" not in str(caught.value) and str(caught.value).count(";") >= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pth", "x.safetensors"]


def test_damage_in_a_tensor_is_found_and_nothing_is_written(pth, tmp_path):
    content = bytearray(pth.read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        convert(tmp_path / "x.pth", tmp_path / "out", "kaleido")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_other_files_are_distinguished_from_weights(pth, tmp_path):
    for path, form, message in (
        (tmp_path / "none.pth", "mdm", "no weights at"),
        (pth.parent, "mdm", "name vis_model.pth"),
        (pth, "t5x", "is a pickle"),
    ):
        with pytest.raises(UserError, match=message):
            convert(path, tmp_path / "out", form)
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    with pytest.raises(UserError, match="is a web page"):
        convert(tmp_path / "page.pth", tmp_path / "out", "kaleido")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="exists"):
        convert(pth, tmp_path / "out", "kaleido")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("kind", ["int8", "uint8", "bool"])
def test_quantized_weights_are_refused_by_type(state, tmp_path, kind):
    path = torch_files.write(tmp_path / "x.pth", {name: value.astype(kind) for name, value in state.items()})
    with pytest.raises(UserError, match=f"is stored as {kind}; expected one of float64"):
        convert(path, tmp_path / "out", "kaleido")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_weights_that_are_not_finite_are_refused_by_name(state, tmp_path):
    bad = state | {"conv_out.bias": np.full_like(state["conv_out.bias"], np.nan)}
    path = torch_files.write(tmp_path / "x.pth", bad)
    with pytest.raises(UserError, match="conv_out.bias holds NaN or infinity"):
        convert(path, tmp_path / "out", "mdm")


@pytest.mark.parametrize("name", ["vis_model.pth", "model.safetensors"])
def test_pointers_of_git_lfs_are_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match=f"{name} is a git-LFS pointer; .*git lfs pull"):
        convert(tmp_path / name, tmp_path / "out", "mdm")


def test_torch_loads_what_is_exported(pth, state, tmp_path):
    pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    convert(pth, tmp_path / "mdm", "mdm")
    loaded = load_torch(str(tmp_path / "mdm" / "model.safetensors"))
    same({name: value.numpy() for name, value in loaded.items()}, state)
