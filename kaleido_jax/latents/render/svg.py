"""SVG of z, for reports: one self-contained element without ids, so that many fit on one page."""

from collections.abc import Iterator, Sequence
from html import escape

from kaleido_jax.latents.render.layout import (
    HALO,
    Color,
    Piece,
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
from kaleido_jax.latents.types import Latents, validate
from kaleido_jax.latents.validity import MAX_COORDINATE

# Colors by the reader's preference. All names begin with "kaleido-", since a page's styles are one space.
_STYLE = (
    ".kaleido-z{--kaleido-canvas:#eceef2;--kaleido-paper:#ffffff;--kaleido-ink:#1a1c22;--kaleido-faint:#6b7280}"
    "@media (prefers-color-scheme:dark){"
    ".kaleido-z{--kaleido-canvas:#12141a;--kaleido-paper:#1e2129;--kaleido-ink:#eceef2;--kaleido-faint:#969ca8}}"
)


def render_svg(z: Latents, size_px: int = 256, image_href: str | None = None) -> str:
    """Z as one `<svg>` element: what its segments show on a square, then text and chips below.

    Letters are fitted to the widths they were laid out with, so nothing overflows in another font.

    Args:
      z: latents; absent segments are not drawn.
      size_px: side of the square and width of the picture.
      image_href: URL (also a data URL) of the square crop, shown under the outlines.

    Raises:
      LatentsError: z is not valid.
    """
    drawings = drawings_of(validate(z))
    pieces, height = pieces_below(drawings, size_px)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="kaleido-z" role="img" width="{size_px}" height="{height}"'
        f' viewBox="0 0 {size_px} {height}" font-family="sans-serif" font-size="{font_for(size_px).size:g}">',
        f"<style>{_STYLE}</style>",
        _rect(0, 0, size_px, height, 'fill="var(--kaleido-paper)"'),
        *_canvas(drawings, size_px, image_href),
        *_labels(drawings, size_px),
        *_below(pieces),
        "</svg>",
    ]
    return "\n".join(parts)


def _canvas(drawings: Sequence[Drawing], size_px: int, image_href: str | None) -> Iterator[str]:
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
    for shape in shapes_of(drawings):
        if isinstance(shape, Cell):
            yield _cell(shape)
        elif isinstance(shape, Ellipse):
            yield _ellipse(shape, line)
        else:
            yield _rectangle(shape, line, size_px)
    yield "</svg>"


def _cell(shape: Cell) -> str:
    x1, y1, x2, y2 = shape.box
    return _rect(x1, y1, x2 - x1, y2 - y1, f'fill="{_hex((round(255 * shape.level),) * 3)}"')


def _ellipse(shape: Ellipse, line: int) -> str:
    xc, yc, major, minor, theta = shape.blob
    dashes = f'stroke-dasharray="{2 * line} {2 * line}"'
    outline = f'<ellipse rx="{major}" ry="{minor}"/><path d="M{-major} 0H{major}" {dashes}/>'
    return _object(shape, outline, line, f' transform="translate({xc} {yc}) rotate({theta})"')


def _rectangle(shape: Rectangle, line: int, size_px: int) -> str:
    # Half a line in, so that a box at the border keeps all four sides.
    inset = (line / 2 + 0.5) * MAX_COORDINATE / size_px
    x1, y1, x2, y2 = shape.box
    dx, dy = min(inset, (x2 - x1) / 2), min(inset, (y2 - y1) / 2)
    return _object(shape, _rect(x1 + dx, y1 + dy, x2 - x1 - 2 * dx, y2 - y1 - 2 * dy), line, "")


def _object(shape: Rectangle | Ellipse, outline: str, line: int, transform: str) -> str:
    """A dark rim, then the color over it; the phrase shows when the pointer rests on the outline."""
    still = outline.replace("/>", ' vector-effect="non-scaling-stroke"/>')
    return (
        f"<g{transform}><title>{escape(shape.phrase)}</title>"
        f'<g stroke="{_hex(HALO)}" stroke-width="{line + 2}">{still}</g>'
        f'<g stroke="{_hex(color_of(shape.index))}" stroke-width="{line}">{still}</g></g>'
    )


def _labels(drawings: Sequence[Drawing], size_px: int) -> Iterator[str]:
    letters_px = label_font_for(size_px).size
    for label in labels_of(drawings, (size_px, size_px)):
        yield _rect(label.x, label.y, label.width, label.height, f'fill="{_hex(label.color)}"')
        middle = label.y + label.height / 2
        rest = f'font-size="{letters_px:g}" fill="{_hex(ink_on(label.color))}"'
        yield _text(label.x + 2, middle, label.text, label.width - 4, rest)


def _below(pieces: Sequence[Piece]) -> Iterator[str]:
    for piece in pieces:
        if piece.framed:
            frame = 'rx="4" fill="none" stroke="var(--kaleido-faint)"'
            yield _rect(piece.x, piece.y, piece.width, piece.height, frame)
        yield _text(piece.text_x, piece.y + piece.height / 2, piece.text, piece.text_width, 'fill="var(--kaleido-ink)"')


def _rect(x: float, y: float, width: float, height: float, rest: str = "") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" {rest}/>'


def _text(x: float, y: float, text: str, width: float, rest: str) -> str:
    # 0.35 em below the middle is where letters of most fonts stand.
    return (
        f'<text x="{x:.6g}" y="{y:.6g}" dy="0.35em" textLength="{width:.6g}" lengthAdjust="spacingAndGlyphs" {rest}>'
        f"{escape(text)}</text>"
    )


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
