"""What the picture of some samples shows, read from its pixels."""

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.latents.types import Latents
from kaleido_jax.sampling import grid
from kaleido_jax.sampling.grid import CANVAS, CELL_PX, GAP_PX, MARGIN_PX, PAPER, Row, render_grid

BOX = Latents.from_json({"text": "a pear", "bbox": [{"phrase": "pear", "box": [100, 100, 600, 600]}]})
WORDS = Latents.from_json({"text": "a pear in the middle", "voken": [1, 2, 3]})
COLORS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]


def recipe(gamma=4.0):
    sample = {"gamma": gamma, "sampler": "ddpm", "num_steps": 250}
    return {"sample": sample, "seed": 1, "model": {"name": "m", "step": 1200}}


def row(z, groups=1, images=4, caption="fruit", problem=""):
    pictures = [Image.new("RGB", (32, 32), COLORS[i % 4]) for i in range(images)]
    return Row(caption=caption, latents=z, problem=problem, images=[pictures] * groups)


def tops(sheet, color):
    """Where squares of a color begin, from the top."""
    column = np.asarray((np.asarray(sheet) == color).all(-1).sum(1) >= CELL_PX)
    return np.flatnonzero(column & ~np.roll(column, 1))


def test_rows_are_equally_high_whatever_z_says():
    long = WORDS.replace(text="a very long text " * 40)
    sheet = render_grid([row(BOX), row(long), row(None, problem="a token is missing"), row(BOX)], [recipe()])
    distances = np.diff(tops(sheet, COLORS[0]))
    assert len(distances) == 3 and len(set(distances)) == 1
    assert distances[0] < 2 * CELL_PX  # the long text was cut


@pytest.mark.parametrize("z", [WORDS, None])
def test_nothing_stands_where_z_has_nothing_to_draw(z):
    sheet = np.asarray(render_grid([row(z), row(z)], [recipe()]))
    assert not (sheet == CANVAS).all(-1)[:, MARGIN_PX : MARGIN_PX + 100].sum(1).max() > 100
    assert (sheet == PAPER).all(-1).mean() > 0.2 and (sheet.sum(-1) < 60).mean() < 0.02  # letters, no black squares
    assert (sheet[:, MARGIN_PX] == COLORS[0]).all(-1).sum() == 2 * CELL_PX  # images begin at the margin


def test_where_one_row_has_boxes_the_others_have_a_light_square_of_the_same_size():
    sheet = np.asarray(render_grid([row(BOX), row(BOX.replace(bbox=()))], [recipe()]))
    light = (sheet[:, MARGIN_PX + 2] == CANVAS).all(-1).sum()
    assert light >= 2 * CELL_PX and (sheet[:, MARGIN_PX + CELL_PX + GAP_PX] == COLORS[0]).all(-1).sum() == 2 * CELL_PX


def test_several_gammas_stand_side_by_side_with_their_names(monkeypatch):
    written = []
    monkeypatch.setattr(grid.ImageDraw.ImageDraw, "text", lambda self, at, text, *_, **__: written.append((at, text)))
    sheet = render_grid([row(BOX, groups=3, images=2), row(BOX, groups=3, images=2)], [recipe(g) for g in (1, 4, 8)])
    assert " ".join(t for _, t in written if "seed" in t) == "gamma 1, 4, 8 | ddpm, 250 steps | seed 1 | m, step 1,200"
    labels = {text: at[0] for at, text in written if text in ("gamma 1", "gamma 4", "gamma 8")}
    first = MARGIN_PX + CELL_PX + GAP_PX
    assert labels == {f"gamma {g}": first + i * (CELL_PX + GAP_PX) for i, g in enumerate((1, 4, 8))}
    assert [text for _, text in written].count("fruit") == 1  # one heading for two z of a caption
    pixels = np.asarray(sheet)
    assert len(tops(sheet, COLORS[0])) == len(tops(sheet, COLORS[1])) == 2
    assert (pixels[tops(sheet, COLORS[0])[0] + 5] == COLORS[0]).all(-1).sum() == 3 * CELL_PX


@pytest.fixture
def written(monkeypatch):
    """What is written on a grid, instead of being drawn."""
    texts = []
    monkeypatch.setattr(grid.ImageDraw.ImageDraw, "text", lambda self, at, text, *_, **__: texts.append(text))
    return texts


@pytest.mark.parametrize("caption", ["a pear\nand a fig", "a pear\tand\u2028 a fig\n", " a pear \r\n and a fig"])
def test_a_caption_is_one_line(written, caption):
    render_grid([row(BOX, caption=caption)], [recipe()])
    assert "a pear and a fig" in written and not any("\n" in text for text in written)


@pytest.mark.parametrize("gammas", [range(1, 9), [1 + i / 4 for i in range(12)]], ids=len)
def test_many_gammas_are_told_apart(written, gammas):
    render_grid([row(BOX, groups=len(gammas), images=1)], [recipe(g) for g in gammas])
    labels = written[written.index("fruit") + 1 :][: len(gammas)]
    assert labels == [f"{g:g}" for g in gammas]  # the title says of what


def test_several_z_of_a_caption_that_have_nothing_to_draw_stand_side_by_side():
    rows = [row(WORDS, images=2), row(WORDS, images=2), row(WORDS, images=2), row(None, images=2, caption="bird")]
    sheet = render_grid(rows, [recipe()])
    pixels, begins = np.asarray(sheet), tops(sheet, COLORS[0])
    assert len(begins) == 3 and sheet.width <= grid.WIDEST_PX  # two z of fruit, the third, then the bird
    columns = [(pixels[top + 5] == COLORS[0]).all(-1) for top in begins]
    assert [int(column.sum()) // CELL_PX for column in columns] == [2, 1, 1]
    second = 2 * MARGIN_PX + 2 * CELL_PX + GAP_PX
    assert np.flatnonzero(columns[0] & ~np.roll(columns[0], 1)).tolist() == [MARGIN_PX, second]
    with_boxes = render_grid([row(BOX, images=2), row(BOX, images=2)], [recipe()])
    assert len(tops(with_boxes, COLORS[0])) == 2


def test_a_grid_of_many_images_stays_narrow_enough_to_read():
    sheet = render_grid([row(BOX, images=12)], [recipe()])
    assert sheet.width <= grid.WIDEST_PX
    assert render_grid([row(None, images=1)], [recipe()]).width == grid.NARROWEST_PX


@pytest.mark.parametrize(("side", "cell"), [(32, 224), (64, 192), (16, 224), (300, 224), (224, 224)])
def test_small_images_are_enlarged_by_whole_numbers(side, cell):
    assert grid._cell(CELL_PX, side) == cell
