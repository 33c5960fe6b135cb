import json

import pytest
from PIL import Image

from examples import edit_chain
from kaleido_jax.errors import UserError
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.types import Latents

Z = Latents(text="a medium pear, right, upright, on purple", bbox=(Box("pear", (300, 200, 800, 900)),))


def test_the_chain_names_each_edit_of_the_text_before():
    texts = [edit for _, edit in edit_chain.edits(Z, "lemon", "(0,0,500,700)", "blue")]
    assert texts == [
        "text=a medium lemon, right, upright, on purple",
        "bbox.0=(0,0,500,700)",
        "text=a medium lemon, right, upright, on blue",
    ]
    with pytest.raises(UserError, match="expected one of the emoji scenes"):
        edit_chain.edits(Z.replace(text="a pear"), "lemon", "(0,0,500,700)", "blue")


def test_long_titles_fit_their_columns():
    column = (("text: brown mushroom", "to an aubergine of the longest name"), Image.new("RGB", (32, 32), "red"), Z)
    sheet = edit_chain.picture([column] * 4)
    assert sheet.width == edit_chain.WIDTH
    gaps = [i * (edit_chain.WIDTH - edit_chain.MARGIN) // 4 + edit_chain.MARGIN // 2 for i in range(5)]
    assert all(sheet.getpixel((x, y)) == edit_chain.PAPER for x in gaps for y in range(sheet.height))


@pytest.mark.slow
def test_one_command_draws_the_chain(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(edit_chain, "start_logging", lambda: None)
    edit_chain.main([f"--out={tmp_path}"])
    recipe = json.loads((tmp_path / "chain.json").read_text())
    assert [edit["changed"] for edit in recipe["history"]] == [["text"], ["bbox"], ["text"]]
    assert [edit["resampled"] for edit in recipe["history"]] == [["bbox", "blob", "voken"], ["blob", "voken"], []]
    assert recipe["rows"][0]["latents"]["bbox"] == [{"phrase": "pineapple", "box": [40, 360, 410, 970]}]
    assert Image.open(tmp_path / "chain.png").width == edit_chain.WIDTH
    assert "picture: " in capsys.readouterr().out
