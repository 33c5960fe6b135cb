"""Image of z: outlines on a picture, and on an empty canvas with the words and vokens below."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from kaleido_jax.latents.geometry import ellipse_to_polygon, to_pixels
from kaleido_jax.latents.render.layout import (
    BACKGROUND,
    FAINT,
    HALO,
    INK,
    PAPER,
    color_of,
    drawings_of,
    font_for,
    ink_on,
    label_font_for,
    labels_of,
    line_width,
    pieces_below,
    shapes_of,
)
from kaleido_jax.latents.render.shapes import Cell, Drawing, Ellipse, Rectangle
from kaleido_jax.latents.types import Latents


def render_panel(z: Latents, size_px: int = 256, image: Image.Image | None = None) -> Image.Image:
    """Z as a picture: what its segments show on a square, then text and chips below.

    Args:
      z: valid latents; absent segments are not drawn.
      size_px: side of the square and width of the panel; 128 or more can be read.
      image: shown under the outlines, resized to the square; an empty dark square without.
    """
    size = (size_px, size_px)
    canvas = Image.new("RGB", size, BACKGROUND) if image is None else image.convert("RGB").resize(size)
    drawings = drawings_of(z)
    pieces, height = pieces_below(drawings, size_px)
    panel = Image.new("RGB", (size_px, height), PAPER)
    panel.paste(_paint(canvas, drawings), (0, 0))
    draw, font = ImageDraw.Draw(panel), font_for(size_px)
    for piece in pieces:
        if piece.framed:
            corners = (piece.x, piece.y, piece.x + piece.width, piece.y + piece.height)
            draw.rounded_rectangle(corners, radius=4, outline=FAINT)
        draw.text((piece.text_x, piece.y + piece.height / 2), piece.text, fill=INK, font=font, anchor="lm")
    return panel


def render_outlines(image: Image.Image, z: Latents, label_px: float | None = None) -> Image.Image:
    """A copy of the image, in RGB, with what z shows on the square; one object has one color in all segments.

    Args:
      image: of any size.
      z: valid latents.
      label_px: height of the labels' letters; by default it follows from the size.
    """
    out = image.convert("RGB")
    return _paint(out.copy() if out is image else out, drawings_of(z), label_px)


def _paint(image: Image.Image, drawings: Sequence[Drawing], label_px: float | None = None) -> Image.Image:
    draw = ImageDraw.Draw(image)
    for shape in shapes_of(drawings):
        if isinstance(shape, Cell):
            _fill(draw, shape, image.size)
        elif isinstance(shape, Ellipse):
            _outline_ellipse(draw, shape, image.size)
        else:
            _outline_rectangle(draw, shape, image.size)
    font = label_font_for(min(image.size), label_px)
    for label in labels_of(drawings, image.size, label_px):
        draw.rectangle((label.x, label.y, label.x + label.width - 1, label.y + label.height - 1), fill=label.color)
        draw.text((label.x + 2, label.y + label.height / 2), label.text, ink_on(label.color), font=font, anchor="lm")
    return image


def _fill(draw: ImageDraw.ImageDraw, cell: Cell, size: tuple[int, int]) -> None:
    x1, y1, x2, y2 = (float(v) for v in to_pixels(cell.box, (*size, *size)))
    draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), fill=(round(255 * cell.level),) * 3)


def _outline_rectangle(draw: ImageDraw.ImageDraw, shape: Rectangle, size: tuple[int, int]) -> None:
    line = line_width(min(size))
    x1, y1, x2, y2 = (float(v) for v in to_pixels(shape.box, (*size, *size)))
    # One pixel in, so that a box at the border keeps all four sides.
    corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
    outer = (x1 - 1, y1 - 1, corners[2] + 1, corners[3] + 1)
    draw.rectangle(outer, outline=HALO, width=line + 2)
    draw.rectangle(corners, outline=color_of(shape.index), width=line)


def _outline_ellipse(draw: ImageDraw.ImageDraw, shape: Ellipse, size: tuple[int, int]) -> None:
    line = line_width(min(size))
    points = [tuple(map(float, p)) for p in to_pixels(ellipse_to_polygon(shape.blob, 96), size)]
    # A dark rim, so that a color shows on any photograph.
    for color, wider in ((HALO, 2), (color_of(shape.index), 0)):
        draw.line([*points, points[0]], fill=color, width=line + wider, joint="curve")
        draw.line([points[0], points[48]], fill=color, width=max(1, line // 2) + wider)
