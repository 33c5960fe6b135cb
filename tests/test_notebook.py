"""The notebook of examples/ runs from its first cell to its last, without Jupyter."""

import ast
import json
from pathlib import Path

import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parent.parent / "examples" / "sample_and_edit.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def run_cell(source, names):
    """The value of a cell's last expression, which Jupyter would show; None if it ends with a statement."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None


def test_the_notebook_has_no_output_of_a_run():
    assert [cell["id"] for cell in CELLS if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.slow
def test_the_cells_run_in_their_order_and_show_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = {"__name__": "notebook"}
    shown = [run_cell("".join(cell["source"]), names) for cell in CELLS if cell["cell_type"] == "code"]
    pictures = [value for value in shown if isinstance(value, Image.Image)]
    assert len(pictures) == 4 and all(len(set(picture.getdata())) > 100 for picture in pictures)
    assert "pineapple" in names["second"].latents.text
    x1, y1, x2, y2 = names["edit"].latents.bbox[0].box
    assert (x1 + x2) / 2 > 600 and (y1 + y2) / 2 < 400  # upper right, where the notebook moves it
    assert len({z.text for z in names["out"].latents}) > 1
    assert "pineapple" in capsys.readouterr().out
