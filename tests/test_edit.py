"""The verb `edit`: flags to edits, files, and whose model is opened."""

import numpy as np
import pytest
from PIL import Image

from kaleido_jax import main
from kaleido_jax.config.load import MODELS
from kaleido_jax.errors import UserError
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents
from kaleido_jax.sampling.pipeline import BUNDLED, KaleidoPipeline
from kaleido_jax.sampling.recipe import load_recipe
from kaleido_jax.verbs.edit import _model
from tests.sampling.test_call import CONFIG, pipe  # noqa: F401

Z = Latents(text="a fruit", bbox=(Box("fruit", (100, 100, 400, 400)),), blob=(), voken=(1, 2, 3, 4))


@pytest.fixture(scope="module")
def picture(pipe, tmp_path_factory):  # noqa: F811
    """A picture that the model drew."""
    folder = tmp_path_factory.mktemp("samples")
    pipe("fruit", latents=Z, seed=3).save(folder)
    return folder / "00-fruit-0.png"


@pytest.fixture
def edit(pipe, picture, tmp_path, monkeypatch):  # noqa: F811
    """A function that runs the verb; its output goes to tmp_path/edit."""
    monkeypatch.setattr(main, "start_logging", lambda: None)
    monkeypatch.setattr(KaleidoPipeline, "from_pretrained", lambda name: {"runs/a": pipe}[name])

    def run(*flags, recipe=picture, output=tmp_path / "edit"):
        main.main(["edit", f"--recipe={recipe}", "--model=runs/a", f"--output={output}", *flags])
        return output

    return run


def test_flags_become_an_edit_with_its_pictures(pipe, picture, edit, tmp_path, capsys):  # noqa: F811
    flags = ("--set.bbox.0=(0,500,500,900)", "--set.bbox.0.phrase=pear", "--sample.gamma=2.0", "--follow=no")
    output = edit(*flags)
    z = Z.replace(bbox=(Box("pear", (0, 500, 500, 900)),))
    expected = pipe("fruit", latents=z, seed=3, gamma=2.0)
    np.testing.assert_array_equal(np.asarray(Image.open(output / "after.png")), expected.pixels[0, 0])
    before = np.asarray(Image.open(output / "before.png"))
    np.testing.assert_array_equal(before, np.asarray(Image.open(picture)))
    assert sorted(p.name for p in output.iterdir()) == ["after.png", "before.png", "difference.png", "strip.png"]
    recipe = load_recipe(output / "after.png")
    assert recipe["history"][0]["settings"] == {"gamma": 2.0} and recipe["history"][0]["changed"] == ["bbox"]
    printed = capsys.readouterr().out
    assert (
        "blob and voken are behind bbox and may no longer fit; kept (--follow=yes resamples blob and voken)\n"
        in printed
    )
    assert f"edited: {output / 'after.png'}" in printed
    content = (output / "after.png").read_bytes()
    with pytest.raises(UserError, match=r"after.png of another edit"):  # known when it has been drawn
        edit("--set.text=a bug")
    assert edit(*flags) == output and (output / "after.png").read_bytes() == content
    with pytest.raises(UserError, match=r"before.png of another edit"):  # and this before
        edit("--set.text=a bug", recipe=output / "after.png")
    edit("--lock=text", "--resample=blob, voken", recipe=output / "after.png", output=tmp_path / "next")
    history = load_recipe(tmp_path / "next" / "after.png")["history"]
    assert [(one["locked"], one["resampled"]) for one in history] == [([], []), (["text"], ["blob", "voken"])]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set.bbox.0=(1,2)"], "4 whole numbers"),
        (["--set.bbx.0=(1,2)"], "did you mean 'bbox'"),
        (["--set=(1,2)"], "unknown flag --set=.1,2.; expected .*--set.ADDRESS=VALUE"),
        (["--set.text"], "unknown flag --set.text"),
        (["--sample.gamma=x"], "--sample.gamma=x; expected float"),
        (["--sample.gama=1"], "sample.gama"),
        (["--sample.captions=a"], "unknown argument 'captions'"),
        (["--follow=perhaps"], "expected one of yes, no"),
        (["--seed=-1"], "--seed=-1"),
        (["--lock=bbox", "--resample=text"], "text resampled before bbox"),
        (["--recipe=no.png"], "cannot be read"),
    ],
)
def test_bad_flags_end_in_one_line(edit, flags, message):
    with pytest.raises(UserError, match=message) as error:
        edit(*flags)
    assert "\n" not in str(error.value)


def test_only_a_bundled_model_is_opened_by_the_name_in_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / BUNDLED[0]).mkdir()  # a folder of that name is not it
    assert _model(None, BUNDLED[0]) == MODELS / BUNDLED[0] and _model("runs/a", "x") == "runs/a"
    for name in ("x", str(tmp_path), f"../models/{BUNDLED[0]}"):
        with pytest.raises(UserError, match="no --model, and the recipe is of"):
            _model(None, name)


def test_what_cannot_be_written_is_not_drawn(edit, tmp_path, monkeypatch):
    monkeypatch.setattr(KaleidoPipeline, "edit", lambda *_, **__: pytest.fail("drawn"))
    (tmp_path / "file").write_text("a file")
    for output in (tmp_path / "file", tmp_path / "file" / "a" / "b", "gs://bucket/edit"):
        with pytest.raises(UserError, match=r"--output=.*; expected a (folder to write into|path of this machine)"):
            edit("--set.text=a bug", output=output)
    with pytest.raises(UserError, match="no segment 'txt'|segment 'txt'"):
        edit("--set.txt=a bug", output=tmp_path / "new" / "edit")
    assert not (tmp_path / "new").exists()
