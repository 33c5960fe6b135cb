"""The grid of some samples as a picture: for each caption its latents and their images, under a line that says how.

Several gammas stand side by side as columns; where there is one and z has nothing to draw, several z of a caption do.
Text is sized by the picture's width, so that a grid that fills a telephone's screen can still be read.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from kaleido_jax.latents.render.image import render_outlines
from kaleido_jax.latents.render.layout import drawings_of, line_height, load_font, shapes_of, shorten, wrap
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.validity import single_spaced
from kaleido_jax.sampling.recipe import Recipe

PAPER, CANVAS, INK, FAINT, WRONG = (255, 255, 255), (236, 238, 242), (22, 24, 30), (96, 102, 114), (176, 58, 20)
CELL_PX, WIDEST_PX, NARROWEST_PX, MARGIN_PX, GAP_PX = 224, 1240, 560, 24, 10
LETTERS_ACROSS = 34  # the picture is so many times as wide as its letters are high: 11 px on a telephone of 390 px
MOST_LINES = 3  # of what z says


@dataclass(frozen=True, kw_only=True)
class Row:
    """One z of a caption, and its images."""

    caption: str
    latents: Latents | None  # None if it does not parse, and for a baseline
    problem: str  # why it does not parse
    images: Sequence[Sequence[Image.Image]]  # for each column group, the images of this z


def render_grid(rows: Sequence[Row], recipes: Sequence[Recipe]) -> Image.Image:
    """The picture of rows whose images were sampled by these recipes, one for each group of columns.

    Args:
      rows: at least one, all with as many images; those of one caption that follow each other share its heading.
      recipes: of one model; they differ in gamma alone.

    Returns:
      RGB; all rows of it are equally high.
    """
    return _Sheet(rows, recipes).paint()


class _Sheet:
    """Sizes of one grid in px, and what is painted with them."""

    def __init__(self, rows: Sequence[Row], recipes: Sequence[Recipe]) -> None:
        self.rows, self.recipes = rows, recipes
        self.has_panel = any(row.latents is not None and _shows_shapes(row.latents) for row in rows)
        # One gamma: a line of images. Several: a column for each, and a line for each noise.
        self.matrix = [_columns(row.images) for row in rows]
        columns, self.left = len(self.matrix[0][0]), int(self.has_panel)
        room = (WIDEST_PX - 2 * MARGIN_PX + GAP_PX) // (columns + self.left) - GAP_PX
        self.cell = _cell(max(48, min(CELL_PX, room)), rows[0].images[0][0].width)
        self.runs = [list(run) for _, run in itertools.groupby(range(len(rows)), lambda i: rows[i].caption)]
        row_px = (columns + self.left) * (self.cell + GAP_PX) - GAP_PX
        # Rows of one caption in a line, as many as fit.
        self.beside = 1
        if not self.has_panel and len(recipes) == 1:
            fit = (WIDEST_PX - MARGIN_PX) // (row_px + MARGIN_PX)
            self.beside = max(1, min(fit, max(map(len, self.runs))))
        self.width = max(NARROWEST_PX, self.beside * (row_px + MARGIN_PX) + MARGIN_PX)
        self.row_px = row_px if self.beside > 1 else self._inner
        letters = round(self.width / LETTERS_ACROSS)
        self.big, self.small = (load_font(size) for size in (letters, round(letters * 0.82)))
        self.said = [self._said(row) for row in rows]
        self.lines = max(len(lines) for lines in self.said)
        self.block = len(self.matrix[0]) * (self.cell + GAP_PX) + self.lines * line_height(self.small) + GAP_PX
        self.labels = line_height(self.small) + GAP_PX // 2 if len(recipes) > 1 else 0

    def paint(self) -> Image.Image:
        """The whole picture."""
        title = [line for text in self._title() for line in wrap(text, self.big, self._inner)]
        step, heading = line_height(self.big), line_height(self.big) + GAP_PX // 2 + self.labels
        lines = [math.ceil(len(run) / self.beside) for run in self.runs]
        height = 2 * MARGIN_PX + len(title) * step + len(self.runs) * (heading + 2 * GAP_PX) + sum(lines) * self.block
        sheet = Image.new("RGB", (self.width, height), PAPER)
        draw, top = ImageDraw.Draw(sheet), MARGIN_PX
        for line in title:
            draw.text((MARGIN_PX, top), line, font=self.big, fill=FAINT)
            top += step
        for run, number in zip(self.runs, lines, strict=True):
            draw.line((MARGIN_PX, top + GAP_PX, self.width - MARGIN_PX, top + GAP_PX), fill=CANVAS, width=2)
            # Line ends would be drawn as such, over the images.
            caption = shorten(single_spaced(self.rows[run[0]].caption) or "(no caption)", self.big, self._inner)
            draw.text((MARGIN_PX, top + 2 * GAP_PX), caption, font=self.big, fill=INK)
            top += heading + 2 * GAP_PX
            self._label_columns(draw, top)
            for place, row in enumerate(run):
                left = MARGIN_PX + place % self.beside * (self.row_px + MARGIN_PX)
                self._paint_row(sheet, draw, (left, top + place // self.beside * self.block), row)
            top += number * self.block
        return sheet

    @property
    def _inner(self) -> int:
        return self.width - 2 * MARGIN_PX

    def _x(self, column: int) -> int:
        return MARGIN_PX + column * (self.cell + GAP_PX)

    def _title(self) -> list[str]:
        one = self.recipes[0]
        sample, model = one["sample"], one["model"]
        gammas = ", ".join(f"{recipe['sample']['gamma']:g}" for recipe in self.recipes)
        how = f"gamma {gammas} | {sample['sampler']}, {sample['num_steps']} steps | seed {one['seed']}"
        return [f"{how} | {model['name']}, step {model['step']:,}"]

    def _label_columns(self, draw: ImageDraw.ImageDraw, top: int) -> None:
        if self.labels:
            numbers = [f"{recipe['sample']['gamma']:g}" for recipe in self.recipes]
            named = [f"gamma {number}" for number in numbers]
            # Cut names would all be the same; the title says what the numbers are.
            fit = all(self.small.getlength(name) <= self.cell for name in named)
            for column, text in enumerate(named if fit else numbers, start=self.left):
                at = (self._x(column), top - self.labels)
                draw.text(at, shorten(text, self.small, self.cell), font=self.small, fill=FAINT)

    def _paint_row(self, sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], row: int) -> None:
        left, top = corner
        if self.has_panel:
            sheet.paste(self._panel(self.rows[row].latents), corner)
        for line in self.matrix[row]:
            for column, image in enumerate(line, start=self.left):
                sheet.paste(_resized(image, self.cell), (left + column * (self.cell + GAP_PX), top))
            top += self.cell + GAP_PX
        for text, color in self.said[row]:
            draw.text((left, top), text, font=self.small, fill=color)
            top += line_height(self.small)

    def _panel(self, z: Latents | None) -> Image.Image:
        """What z shows on the square, or why nothing is there."""
        canvas = Image.new("RGB", (self.cell, self.cell), CANVAS)
        if z is not None and _shows_shapes(z):
            return render_outlines(canvas, z, label_px=self.small.size * 0.8)
        text = "nothing to draw" if z is not None else "no z"
        lines = "\n".join(wrap(text, self.small, self.cell - 8))
        middle = (self.cell / 2, self.cell / 2)
        ImageDraw.Draw(canvas).multiline_text(middle, lines, FAINT, font=self.small, anchor="mm", align="center")
        return canvas

    def _said(self, row: Row) -> list[tuple[str, tuple[int, int, int]]]:
        """What z says in words, as (line, color); the last line is cut."""
        if row.latents is None:
            text, color = (f"z does not parse: {row.problem}", WRONG) if row.problem else ("", FAINT)
        else:
            text, color = " | ".join(_words(row.latents)), FAINT
        lines = wrap(text, self.small, self.row_px) if text else []
        if len(lines) > MOST_LINES:
            rest = shorten(f"{lines[MOST_LINES - 1]} {lines[MOST_LINES]}", self.small, self.row_px)
            lines = [*lines[: MOST_LINES - 1], rest]
        return [(line, color) for line in lines]


def _columns(groups: Sequence[Sequence[Image.Image]]) -> list[list[Image.Image]]:
    """The images as lines: those of one group in a line, those of several with a column for each."""
    return [list(groups[0])] if len(groups) == 1 else [list(line) for line in zip(*groups, strict=True)]


def _cell(most: int, image_px: int) -> int:
    """The largest side, at most `most`, that shows every pixel of a small image equally large."""
    return most // image_px * image_px if image_px <= most else most


def _resized(image: Image.Image, side: int) -> Image.Image:
    how = Image.Resampling.NEAREST if image.width <= side else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((side, side), how)


def _shows_shapes(z: Latents) -> bool:
    return any(True for _ in shapes_of(drawings_of(z)))


def _words(z: Latents) -> list[str]:
    """z in words: its text, or the phrases of its objects; then its vokens."""
    words = [z.text] if z.text else []
    objects = z.bbox or z.blob or ()
    if not words and objects:
        words.append(", ".join(dict.fromkeys(one.phrase for one in objects)))
    if z.voken:
        words.append(f"vokens {' '.join(map(str, z.voken))}")
    return words
