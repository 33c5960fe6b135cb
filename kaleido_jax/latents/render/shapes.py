"""Drawing of a segment: shapes on the square and blocks below it, as plain data for the renderers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rectangle:
    """The outline of an object, in the color of its index."""

    box: tuple[int, int, int, int]  # (x1, y1, x2, y2), 0..1000
    phrase: str
    index: int


@dataclass(frozen=True, kw_only=True)
class Ellipse:
    """The outline and the major axis of an object, in the color of its index."""

    blob: tuple[int, int, int, int, int]  # (xc, yc, r_major, r_minor, theta), 0..1000 and degrees
    phrase: str
    index: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A filled gray rectangle, for values over the whole square."""

    box: tuple[int, int, int, int]
    level: float  # 0 black .. 1 white


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """Words below the square, wrapped to its width."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Chips:
    """Short words below the square, each in a frame, in as many rows as they need."""

    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What one segment shows; earlier segments are painted over later ones."""

    square: tuple[Rectangle | Ellipse | Cell, ...] = ()
    below: tuple[Paragraph | Chips, ...] = ()
