"""Latents as pictures: outlines on an image, or on an empty canvas with the words and vokens below."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kaleido_jax.latents.geometry import ellipse_to_polygon, to_pixels
from kaleido_jax.latents.types import Blob, Box, Latents

BACKGROUND, PAPER, INK, FAINT = (18, 20, 26), (30, 33, 41), (236, 238, 242), (150, 156, 168)
# One color an object, told apart on dark and on photographs alike (Okabe and Ito, without black).
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
_SMALLEST_TEXT_PX = 11  # smaller letters cannot be read


@dataclass(frozen=True, kw_only=True)
class Label:
    """A phrase as it is written: its text, perhaps shortened, and its plate in px."""

    text: str
    x: float
    y: float
    width: float
    height: float
    color: tuple[int, int, int]


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of the image, in RGB, with box outlines and their phrases; the image shows the whole square crop."""
    out = _copy(image)
    _outline_boxes(out, boxes)
    _write_labels(out, box_labels(boxes, out.size))
    return out


def draw_blobs(image: Image.Image, blobs: Sequence[Blob], phrases: bool = True) -> Image.Image:
    """A copy of the image, in RGB, with ellipse outlines, their major axes and phrases."""
    out = _copy(image)
    _outline_blobs(out, blobs)
    if phrases:
        _write_labels(out, blob_labels(blobs, out.size))
    return out


def draw_latents(image: Image.Image, z: Latents) -> Image.Image:
    """A copy of the image, in RGB, with the boxes and ellipses of z; one object has one color in both."""
    out = _copy(image)
    _outline_blobs(out, z.blob or ())
    _outline_boxes(out, z.bbox or ())
    _write_labels(out, labels_of(z, out.size))
    return out


def latents_panel(z: Latents, size_px: int = 256, image: Image.Image | None = None) -> Image.Image:
    """Z as a picture: boxes and ellipses on a square, then text and voken chips below.

    Args:
      z: valid latents; absent segments are not drawn.
      size_px: side of the square and width of the panel; 128 or more can be read.
      image: shown under the outlines, resized to the square; an empty dark square without.
    """
    size = (size_px, size_px)
    canvas = Image.new("RGB", size, BACKGROUND) if image is None else image.convert("RGB").resize(size)
    canvas = draw_latents(canvas, z)
    font, inner = font_for(size_px), size_px - 2 * margin_of(size_px)
    lines = wrap(z.text, font, inner) if z.text else []
    rows = chip_rows(z.voken or (), font, inner)
    panel = Image.new("RGB", (size_px, size_px + height_below(lines, rows, font, size_px)), PAPER)
    panel.paste(canvas, (0, 0))
    _write_below(ImageDraw.Draw(panel), lines, rows, font, size_px)
    return panel


# ------------------------------------------------------------------------------------------------ layout
def labels_of(z: Latents, size: tuple[int, int]) -> list[Label]:
    """The labels of z's objects on a canvas of (width, height) px: of the boxes, or of the blobs without any."""
    return box_labels(z.bbox, size) if z.bbox else blob_labels(z.blob or (), size)


def box_labels(boxes: Sequence[Box], size: tuple[int, int]) -> list[Label]:
    """Labels at the upper left corners."""
    corners = [to_pixels(box.box[:2], size) for box in boxes]
    return _labels([box.phrase for box in boxes], corners, size)


def blob_labels(blobs: Sequence[Blob], size: tuple[int, int]) -> list[Label]:
    """Labels at the highest points of the ellipses."""
    outlines = [to_pixels(ellipse_to_polygon(blob.blob, 96), size) for blob in blobs]
    return _labels([blob.phrase for blob in blobs], [p[np.argmin(p[:, 1])] for p in outlines], size)


def _labels(phrases, corners, size):
    font = label_font_for(min(size))
    texts = [shorten(phrase, font, 0.6 * size[0]) for phrase in phrases]
    sizes = [(font.getlength(text) + 4, float(line_height(font))) for text in texts]
    places = place_labels(corners, sizes, size)
    return [
        Label(text=text, x=place[0], y=place[1], width=w, height=h, color=color_of(index))
        for index, (text, place, (w, h)) in enumerate(zip(texts, places, sizes, strict=True))
        if place is not None
    ]


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


def _is_free(spots, size, taken):
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
        width = chip_width(index, font)
        if rows[-1] and x + width > width_px:
            rows.append([])
            x = 0.0
        rows[-1].append((x, index))
        x += width + 4
    return rows if rows[0] else []


def font_for(size_px: int) -> ImageFont.FreeTypeFont:
    """The font of a picture that is size_px wide; never too small to read."""
    return ImageFont.load_default(max(_SMALLEST_TEXT_PX, round(size_px / 18)))


def label_font_for(size_px: int) -> ImageFont.FreeTypeFont:
    """The font of labels on a picture that is size_px wide; smaller, since they hide what they name."""
    return ImageFont.load_default(max(_SMALLEST_TEXT_PX, round(size_px / 28)))


def line_height(font: ImageFont.FreeTypeFont) -> int:
    """Px from one line to the next."""
    return round(font.size * 1.35)


def margin_of(size_px: int) -> int:
    """Px around what stands below a square of size_px."""
    return max(4, size_px // 32)


def height_below(lines: list[str], rows: list, font: ImageFont.FreeTypeFont, size_px: int) -> int:
    """Px that lines of text and rows of chips take below the square; 0 without any."""
    step = line_height(font)
    return len(lines) * step + len(rows) * (step + 6) + 2 * margin_of(size_px) if lines or rows else 0


def color_of(index: int) -> tuple[int, int, int]:
    """The color of object `index`."""
    return COLORS[index % len(COLORS)]


def ink_on(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Dark or white letters, whichever has the higher contrast (WCAG 2) on the color."""
    light = _luminance(color) + 0.05
    return BACKGROUND if light / (_luminance(BACKGROUND) + 0.05) >= 1.05 / light else (255, 255, 255)


def _luminance(color):
    channels = [v / 255 for v in color]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


# ----------------------------------------------------------------------------------------------- drawing
def _copy(image):
    out = image.convert("RGB")
    return out.copy() if out is image else out


def line_width(size_px: int) -> int:
    """Px of an outline."""
    return max(1, round(size_px / 160))


def _outline_boxes(image, boxes):
    draw, line = ImageDraw.Draw(image), line_width(min(image.size))
    for index, box in enumerate(boxes):
        x1, y1, x2, y2 = (float(v) for v in to_pixels(box.box, (*image.size, *image.size)))
        # One pixel in, so that a box at the border keeps all four sides.
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        outer = (x1 - 1, y1 - 1, corners[2] + 1, corners[3] + 1)
        draw.rectangle(outer, outline=HALO, width=line + 2)
        draw.rectangle(corners, outline=color_of(index), width=line)


def _outline_blobs(image, blobs):
    draw, line = ImageDraw.Draw(image), line_width(min(image.size))
    for index, blob in enumerate(blobs):
        points = [tuple(map(float, p)) for p in to_pixels(ellipse_to_polygon(blob.blob, 96), image.size)]
        # A dark rim, so that a color shows on any photograph.
        for color, wider in ((HALO, 2), (color_of(index), 0)):
            draw.line([*points, points[0]], fill=color, width=line + wider, joint="curve")
            draw.line([points[0], points[48]], fill=color, width=max(1, line // 2) + wider)


def _write_labels(image, labels):
    draw, font = ImageDraw.Draw(image), label_font_for(min(image.size))
    for label in labels:
        draw.rectangle((label.x, label.y, label.x + label.width - 1, label.y + label.height - 1), fill=label.color)
        draw.text((label.x + 2, label.y + label.height / 2), label.text, ink_on(label.color), font=font, anchor="lm")


def _cut(word, font, width_px):
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width_px:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def chip_width(index: int, font: ImageFont.FreeTypeFont) -> float:
    """Px of a voken's chip."""
    return font.getlength(str(index)) + 10


def _write_below(draw, lines, rows, font, size_px):
    margin, step = margin_of(size_px), line_height(font)
    y = size_px + margin
    for line in lines:
        draw.text((margin, y), line, fill=INK, font=font)
        y += step
    for row in rows:
        for x, index in row:
            x += margin
            box = (x, y + 3, x + chip_width(index, font), y + step + 3)
            draw.rounded_rectangle(box, radius=4, outline=FAINT)
            draw.text((x + 5, y + 3 + step / 2), str(index), fill=INK, font=font, anchor="lm")
        y += step + 6
