"""Latents as pictures: outlines on an image, or on an empty canvas with the words and vokens below."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from kaleido_jax.latents.geometry import ellipse_to_polygon, to_pixels
from kaleido_jax.latents.types import Blob, Box, Latents

BACKGROUND, PAPER, INK, FAINT = (18, 20, 26), (30, 33, 41), (236, 238, 242), (150, 156, 168)
# One colour an object, told apart on dark and on photographs alike (Okabe and Ito, without black).
COLOURS = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
_SMALLEST_TEXT_PX = 11  # smaller letters cannot be read


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of the image, in RGB, with box outlines and their phrases."""
    out, draw, line, font = _prepare(image)
    for index, box in enumerate(boxes):
        corners = [float(v) for v in to_pixels(box.box, (*out.size, *out.size))]
        # One pixel in, so that a box at the border keeps all four sides.
        corners[2:] = (max(corners[0], corners[2] - 1), max(corners[1], corners[3] - 1))
        draw.rectangle(corners, outline=_colour(index), width=line)
        _label(draw, (corners[0], corners[1]), box.phrase, _colour(index), font, out.size)
    return out


def draw_blobs(image: Image.Image, blobs: Sequence[Blob], phrases: bool = True) -> Image.Image:
    """A copy of the image, in RGB, with ellipse outlines, their major axes and phrases."""
    out, draw, line, font = _prepare(image)
    for index, blob in enumerate(blobs):
        points = [tuple(map(float, p)) for p in to_pixels(ellipse_to_polygon(blob.blob, 96), out.size)]
        draw.line([*points, points[0]], fill=_colour(index), width=line, joint="curve")
        draw.line([points[0], points[48]], fill=_colour(index), width=max(1, line // 2))
        if phrases:
            top = min(points, key=lambda p: p[1])
            _label(draw, top, blob.phrase, _colour(index), font, out.size)
    return out


def latents_panel(z: Latents, size_px: int = 256) -> Image.Image:
    """Z as a picture of its own: an empty dark square with boxes and ellipses, then text and voken chips.

    Args:
      z: valid latents; absent segments are not drawn.
      size_px: side of the square and width of the panel; 128 or more can be read.
    """
    canvas = Image.new("RGB", (size_px, size_px), BACKGROUND)
    # Ellipses first and unlabelled where boxes name the same objects.
    canvas = draw_blobs(canvas, z.blob or (), phrases=not z.bbox)
    canvas = draw_boxes(canvas, z.bbox or ())
    font = font_for(size_px)
    lines = wrap(z.text, font, size_px - 2 * _margin(size_px)) if z.text else []
    rows = chip_rows(z.voken or (), font, size_px - 2 * _margin(size_px))
    step = _line_height(font)
    below = len(lines) * step + len(rows) * (step + 6) + 2 * _margin(size_px) if lines or rows else 0
    panel = Image.new("RGB", (size_px, size_px + below), PAPER)
    panel.paste(canvas, (0, 0))
    _write_below(ImageDraw.Draw(panel), lines, rows, font, size_px)
    return panel


def wrap(text: str, font: ImageFont.FreeTypeFont, width_px: int) -> list[str]:
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


def chip_rows(voken: Sequence[int], font: ImageFont.FreeTypeFont, width_px: int) -> list[list[tuple[float, int]]]:
    """Rows of (x offset in px, voken), so that every chip fits into width_px."""
    rows, x = [[]], 0.0
    for index in voken:
        width = _chip_width(index, font)
        if rows[-1] and x + width > width_px:
            rows.append([])
            x = 0.0
        rows[-1].append((x, index))
        x += width + 4
    return rows if rows[0] else []


def _prepare(image):
    out = image.convert("RGB")
    out = out.copy() if out is image else out
    return out, ImageDraw.Draw(out), max(1, round(min(out.size) / 128)), font_for(min(out.size))


def font_for(size_px: int) -> ImageFont.FreeTypeFont:
    """The font of a picture that is size_px wide; never too small to read."""
    return ImageFont.load_default(max(_SMALLEST_TEXT_PX, round(size_px / 18)))


def _line_height(font):
    return round(font.size * 1.35)


def _margin(size_px):
    return max(4, size_px // 32)


def _colour(index):
    return COLOURS[index % len(COLOURS)]


def _label(draw, corner, phrase, colour, font, size):
    text = _cut(phrase, font, size[0] - 4)[0]
    width, height = font.getlength(text) + 4, _line_height(font)
    # Above the outline if there is room, and never outside the image.
    x = min(max(0, corner[0]), size[0] - width)
    y = corner[1] - height if corner[1] >= height else min(corner[1], size[1] - height)
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 2, y + height / 2), text, fill=BACKGROUND, font=font, anchor="lm")


def _cut(word, font, width_px):
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width_px:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _chip_width(index, font):
    return font.getlength(str(index)) + 10


def _write_below(draw, lines, rows, font, size_px):
    margin, step = _margin(size_px), _line_height(font)
    y = size_px + margin
    for line in lines:
        draw.text((margin, y), line, fill=INK, font=font)
        y += step
    for row in rows:
        for x, index in row:
            x += margin
            box = (x, y + 3, x + _chip_width(index, font), y + step + 3)
            draw.rounded_rectangle(box, radius=4, outline=FAINT)
            draw.text((x + 5, y + 3 + step / 2), str(index), fill=INK, font=font, anchor="lm")
        y += step + 6
