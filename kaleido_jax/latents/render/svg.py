"""Latents as SVG, for reports: one self-contained element without ids, so that many fit on one page."""

from html import escape

from kaleido_jax.latents.render.image import (
    HALO,
    chip_rows,
    chip_width,
    color_of,
    font_for,
    height_below,
    ink_on,
    label_font_for,
    labels_of,
    line_height,
    line_width,
    margin_of,
    wrap,
)
from kaleido_jax.latents.types import MAX_COORDINATE, Latents, validate

# Colors by the reader's preference. All names begin with "kaleido-", since a page's styles are one space.
_STYLE = (
    ".kaleido-z{--kaleido-canvas:#eceef2;--kaleido-paper:#ffffff;--kaleido-ink:#1a1c22;--kaleido-faint:#6b7280}"
    "@media (prefers-color-scheme:dark){"
    ".kaleido-z{--kaleido-canvas:#12141a;--kaleido-paper:#1e2129;--kaleido-ink:#eceef2;--kaleido-faint:#969ca8}}"
)


def to_svg(z: Latents, size_px: int = 256, image_href: str | None = None) -> str:
    """Z as one `<svg>` element: boxes and ellipses on a square, then text and voken chips below.

    Letters are fitted to the widths they were laid out with, so nothing overflows in another font.

    Args:
      z: latents; absent segments are not drawn.
      size_px: side of the square and width of the picture.
      image_href: URL (also a data URL) of the square crop, shown under the outlines.

    Raises:
      LatentsError: z is not valid.
    """
    validate(z)
    font, margin = font_for(size_px), margin_of(size_px)
    lines = wrap(z.text, font, size_px - 2 * margin) if z.text else []
    rows = chip_rows(z.voken or (), font, size_px - 2 * margin)
    height = size_px + height_below(lines, rows, font, size_px)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="kaleido-z" role="img" width="{size_px}" height="{height}"'
        f' viewBox="0 0 {size_px} {height}" font-family="sans-serif" font-size="{font.size:g}">',
        f"<style>{_STYLE}</style>",
        _rect(0, 0, size_px, height, 'fill="var(--kaleido-paper)"'),
        *_canvas(z, size_px, image_href),
        *_labels(z, size_px),
        *_below(lines, rows, font, size_px),
        "</svg>",
    ]
    return "\n".join(parts)


def _canvas(z, size_px, image_href):
    # An inner svg cuts what leaves the square, and has the latents' own coordinates.
    yield (
        f'<svg width="{size_px}" height="{size_px}" viewBox="0 0 {MAX_COORDINATE} {MAX_COORDINATE}"'
        ' overflow="hidden" fill="none">'
    )
    yield _rect(0, 0, MAX_COORDINATE, MAX_COORDINATE, 'fill="var(--kaleido-canvas)"')
    if image_href is not None:
        yield (
            f'<image href="{escape(image_href)}" width="{MAX_COORDINATE}" height="{MAX_COORDINATE}"'
            ' preserveAspectRatio="none"/>'
        )
    line = line_width(size_px)
    for index, blob in enumerate(z.blob or ()):
        xc, yc, major, minor, theta = blob.blob
        dashes = f'stroke-dasharray="{2 * line} {2 * line}"'
        shape = f'<ellipse rx="{major}" ry="{minor}"/><path d="M{-major} 0H{major}" {dashes}/>'
        yield _object(blob.phrase, shape, index, line, f' transform="translate({xc} {yc}) rotate({theta})"')
    # Half a line in, so that a box at the border keeps all four sides.
    inset = (line / 2 + 0.5) * MAX_COORDINATE / size_px
    for index, box in enumerate(z.bbox or ()):
        x1, y1, x2, y2 = box.box
        dx, dy = min(inset, (x2 - x1) / 2), min(inset, (y2 - y1) / 2)
        shape = _rect(x1 + dx, y1 + dy, x2 - x1 - 2 * dx, y2 - y1 - 2 * dy)
        yield _object(box.phrase, shape, index, line, "")
    yield "</svg>"


def _object(phrase, shape, index, line, transform):
    """A dark rim, then the color over it; the phrase shows when the pointer rests on the outline."""
    still = shape.replace("/>", ' vector-effect="non-scaling-stroke"/>')
    return (
        f"<g{transform}><title>{escape(phrase)}</title>"
        f'<g stroke="{_hex(HALO)}" stroke-width="{line + 2}">{still}</g>'
        f'<g stroke="{_hex(color_of(index))}" stroke-width="{line}">{still}</g></g>'
    )


def _labels(z, size_px):
    letters_px = label_font_for(size_px).size
    for label in labels_of(z, (size_px, size_px)):
        yield _rect(label.x, label.y, label.width, label.height, f'fill="{_hex(label.color)}"')
        middle = label.y + label.height / 2
        rest = f'font-size="{letters_px:g}" fill="{_hex(ink_on(label.color))}"'
        yield _text(label.x + 2, middle, label.text, label.width - 4, rest)


def _below(lines, rows, font, size_px):
    margin, step = margin_of(size_px), line_height(font)
    y = size_px + margin
    for line in lines:
        yield _text(margin, y + step / 2, line, font.getlength(line), 'fill="var(--kaleido-ink)"')
        y += step
    for row in rows:
        for x, index in row:
            width = chip_width(index, font)
            yield _rect(margin + x, y + 3, width, step, 'rx="4" fill="none" stroke="var(--kaleido-faint)"')
            yield _text(margin + x + 5, y + 3 + step / 2, str(index), width - 10, 'fill="var(--kaleido-ink)"')
        y += step + 6


def _rect(x, y, width, height, rest=""):
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" {rest}/>'


def _text(x, y, text, width, rest):
    # 0.35 em below the middle is where letters of most fonts stand.
    return (
        f'<text x="{x:.6g}" y="{y:.6g}" dy="0.35em" textLength="{width:.6g}" lengthAdjust="spacingAndGlyphs" {rest}>'
        f"{escape(text)}</text>"
    )


def _hex(color):
    return "#{:02x}{:02x}{:02x}".format(*color)
