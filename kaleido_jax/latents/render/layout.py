"""Layout of a picture of z in px, with its colors and fonts; shared by all renderers."""

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from PIL import ImageFont

from kaleido_jax.latents import segments as registry
from kaleido_jax.latents.geometry import ellipse_to_polygon, to_pixels
from kaleido_jax.latents.render.shapes import Cell, Chips, Drawing, Ellipse, Paragraph, Rectangle
from kaleido_jax.latents.types import Latents, segments_of

Color = tuple[int, int, int]

BACKGROUND, PAPER, INK, FAINT = (18, 20, 26), (30, 33, 41), (236, 238, 242), (150, 156, 168)
# Colors of the objects, distinguishable on dark canvases and on photographs (Okabe and Ito, without black).
COLORS = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
HALO = (16, 16, 16)  # around outlines
_SMALLEST_TEXT_PX = 11  # smaller letters are illegible
_CHIP_PADDING, _CHIP_GAP = 5, 4  # px


def drawings_of(z: Latents) -> list[Drawing]:
    """What each segment of z shows, in order."""
    return [registry.get(s).render(getattr(z, s)) for s in segments_of(z)]


def shapes_of(drawings: Sequence[Drawing]) -> Iterator[Rectangle | Ellipse | Cell]:
    """The shapes on the square, the lowest first."""
    for drawing in reversed(drawings):
        yield from drawing.square


# ------------------------------------------------------------------------------------------------ labels
@dataclass(frozen=True, kw_only=True)
class Label:
    """A phrase as it is written: its text, perhaps shortened, and its plate in px."""

    text: str
    x: float
    y: float
    width: float
    height: float
    color: Color


def labels_of(drawings: Sequence[Drawing], size: tuple[int, int], letters_px: float | None = None) -> list[Label]:
    """The phrases of the first segment that has objects, on a canvas of (width, height) px.

    One object has one color and one name in all segments, so labels of a second one would only say it again.
    """
    outlines = next((o for o in map(_outlines, drawings) if o), [])
    font = label_font_for(min(size), letters_px)
    texts = [shorten(outline.phrase, font, 0.6 * size[0]) for outline in outlines]
    sizes = [(font.getlength(text) + 4, float(line_height(font))) for text in texts]
    corners = place_labels([_corner(outline, size) for outline in outlines], sizes, size)
    return [
        Label(text=text, x=corner[0], y=corner[1], width=w, height=h, color=color_of(outline.index))
        for outline, text, corner, (w, h) in zip(outlines, texts, corners, sizes, strict=True)
        if corner is not None
    ]


def _outlines(drawing: Drawing) -> list[Rectangle | Ellipse]:
    return [shape for shape in drawing.square if not isinstance(shape, Cell)]


def _corner(outline: Rectangle | Ellipse, size: tuple[int, int]) -> tuple[float, float]:
    """The upper left corner of a box, the highest point of an ellipse."""
    if isinstance(outline, Rectangle):
        x, y = to_pixels(outline.box[:2], size)
    else:
        points = to_pixels(ellipse_to_polygon(outline.blob, 96), size)
        x, y = points[np.argmin(points[:, 1])]
    return float(x), float(y)


def place_labels(
    corners: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], canvas: tuple[int, int]
) -> list[tuple[float, float] | None]:
    """Upper left corners for labels: just above their objects' corners, or the nearest free place in the canvas.

    None for a label that no place is left for; labels never overlap. Everything in px.
    """
    places, taken = [], np.zeros((0, 4))
    for (x, y), (width, height) in zip(corners, sizes, strict=True):
        room = np.array([canvas[0] - width, canvas[1] - height])
        if (room < 0).any():
            places.append(None)
            continue
        # Above the outline if there is room, else just inside.
        wished = np.clip([x, y - height if y >= height else y], 0, room)
        step = max(2.0, height / 4)
        axes = [np.append(np.arange(0, room[i], step), room[i]) for i in (0, 1)]
        grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
        spots = np.concatenate([wished[None], grid[np.argsort(((grid - wished) ** 2).sum(axis=-1), kind="stable")]])
        free = _is_free(spots, (width, height), taken)
        places.append(tuple(map(float, spots[np.argmax(free)])) if free.any() else None)
        if places[-1] is not None:
            taken = np.concatenate([taken, [[*places[-1], places[-1][0] + width, places[-1][1] + height]]])
    return places


def _is_free(
    spots: Float[np.ndarray, "s 2"], size: tuple[float, float], taken: Float[np.ndarray, "t 4"]
) -> Bool[np.ndarray, "s"]:
    low, high = spots[:, None], spots[:, None] + np.asarray(size)
    overlap = ((low < taken[:, 2:]) & (high > taken[:, :2])).all(axis=-1)
    return ~overlap.any(axis=1)


def shorten(text: str, font: ImageFont.FreeTypeFont, width_px: float) -> str:
    """The text, cut and ended by "..." if it is wider than width_px."""
    if font.getlength(text) <= width_px:
        return text
    text = text[: int(width_px) + 1]  # letters are at least a pixel wide
    while text and font.getlength(text + "...") > width_px:
        text = text[:-1]
    return text.rstrip() + "..."


# ----------------------------------------------------------------------------------------- below the square
@dataclass(frozen=True, kw_only=True)
class Piece:
    """Words below the square, and the px they take; chips have a frame around them."""

    text: str
    x: float
    y: float
    width: float
    height: float
    framed: bool

    @property
    def text_x(self) -> float:
        """Where the letters begin; their middle is that of the piece."""
        return self.x + (_CHIP_PADDING if self.framed else 0)

    @property
    def text_width(self) -> float:
        """Px of the letters."""
        return self.width - (2 * _CHIP_PADDING if self.framed else 0)


def pieces_below(drawings: Sequence[Drawing], size_px: int) -> tuple[list[Piece], int]:
    """The lines and chips below a square of size_px, and the whole picture's height."""
    font, margin = font_for(size_px), max(4, size_px // 32)
    step, inner = line_height(font), size_px - 2 * margin
    pieces, y = [], size_px + margin
    for block in (block for drawing in drawings for block in drawing.below):
        if isinstance(block, Paragraph):
            rows = [[(0.0, line)] for line in wrap(block.text, font, inner)] if block.text else []
            framed, lead, padding = False, 0, 0
        else:
            rows, framed, lead, padding = chip_rows(block, font, inner), True, 3, 2 * _CHIP_PADDING
        for row in rows:
            pieces += [
                Piece(
                    text=text,
                    x=margin + x,
                    y=y + lead,
                    width=font.getlength(text) + padding,
                    height=step,
                    framed=framed,
                )
                for x, text in row
            ]
            y += step + 2 * lead
    return pieces, y + margin if pieces else size_px


def wrap(text: str, font: ImageFont.FreeTypeFont, width_px: float) -> list[str]:
    """The text in lines no wider than width_px; a word that is wider itself is cut."""
    lines = [""]
    for word in text.split():
        for piece in _cut(word, font, width_px):
            joined = f"{lines[-1]} {piece}".strip()
            if font.getlength(joined) <= width_px:
                lines[-1] = joined
            else:
                lines.append(piece)
    return lines


def _cut(word: str, font: ImageFont.FreeTypeFont, width_px: float) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width_px:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def chip_rows(chips: Chips, font: ImageFont.FreeTypeFont, width_px: float) -> list[list[tuple[float, str]]]:
    """Rows of (x offset in px, text), so that every chip fits into width_px."""
    rows: list[list[tuple[float, str]]] = [[]]
    x = 0.0
    for text in chips.texts:
        width = font.getlength(text) + 2 * _CHIP_PADDING
        if rows[-1] and x + width > width_px:
            rows.append([])
            x = 0.0
        rows[-1].append((x, text))
        x += width + _CHIP_GAP
    return rows if rows[0] else []


# --------------------------------------------------------------------------------------- fonts, colors
@functools.cache
def load_font(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans of matplotlib; Pillow's own font shows letters with accents, and those of other scripts, as boxes."""
    (matplotlib,) = importlib.util.find_spec("matplotlib").submodule_search_locations  # without importing it
    return ImageFont.truetype(Path(matplotlib) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size_px)


def font_for(size_px: int) -> ImageFont.FreeTypeFont:
    """The font of a picture that is size_px wide; never too small to read."""
    return load_font(max(_SMALLEST_TEXT_PX, round(size_px / 18)))


def label_font_for(size_px: int, letters_px: float | None = None) -> ImageFont.FreeTypeFont:
    """The font of labels on a picture that is size_px wide; smaller, since they hide what they name."""
    return load_font(max(_SMALLEST_TEXT_PX, round(size_px / 28 if letters_px is None else letters_px)))


def line_height(font: ImageFont.FreeTypeFont) -> int:
    """Px from one line to the next."""
    return round(font.size * 1.35)


def line_width(size_px: int) -> int:
    """Px of an outline."""
    return max(1, round(size_px / 160))


def color_of(index: int) -> Color:
    """The color of object `index`."""
    return COLORS[index % len(COLORS)]


def ink_on(color: Color) -> Color:
    """Dark or white letters, whichever has the higher contrast (WCAG 2) on the color."""
    light = _luminance(color) + 0.05
    return BACKGROUND if light / (_luminance(BACKGROUND) + 0.05) >= 1.05 / light else (255, 255, 255)


def _luminance(color: Color) -> float:
    channels = [v / 255 for v in color]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
