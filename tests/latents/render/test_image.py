import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.latents.render import layout
from kaleido_jax.latents.render.image import render_outlines, render_panel
from kaleido_jax.latents.render.layout import load_font, place_labels
from kaleido_jax.latents.render.svg import render_svg
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.segments.blob import Blob
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.validity import LatentsError

SVG = "{http://www.w3.org/2000/svg}"


def test_panel_shows_every_segment():
    z = Latents(
        text="a very long sentence " * 8 + "w" * 200,
        bbox=(Box(phrase="boot", box=(0, 0, 1000, 1000)),),
        blob=(Blob(phrase="boot", blob=(500, 500, 400, 100, 30)),),
        voken=tuple(range(32)),
    )
    empty = render_panel(Latents(), 160)
    assert empty.size == (160, 160)
    full = render_panel(z, 160)
    assert full.width == 160 and full.height > 320
    for segment in ("text", "bbox", "blob", "voken"):
        part = render_panel(Latents(**{segment: getattr(z, segment)}), 160)
        assert len(part.getcolors(1 << 16)) > 2, segment


def test_drawing_leaves_the_given_image_alone():
    image = render_panel(Latents(), 64)
    before = image.tobytes()
    assert render_outlines(image, Latents(bbox=[Box("a", (0, 0, 500, 500))])).tobytes() != before
    assert render_outlines(image, Latents(blob=[Blob("a", (500, 500, 300, 200, 0))])).tobytes() != before
    assert image.tobytes() == before


def random_labels(seed, count, canvas):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, canvas, (count, 2)), np.stack([rng.uniform(10, 90, count), np.full(count, 14.0)], axis=-1)


@pytest.mark.parametrize("count", [1, 12, 40])
def test_labels_never_overlap_nor_leave_the_canvas(count):
    for seed in range(5):
        corners, sizes = random_labels(seed, count, 256)
        low = np.array(place_labels(*(list(map(tuple, each.tolist())) for each in (corners, sizes)), (256, 256)))
        high = low + sizes
        assert low.min() >= 0 and high.max() <= 256 + 1e-9
        apart = (low[:, None] >= high[None] - 1e-9).any(-1)
        assert (apart | apart.T | np.eye(count, dtype=bool)).all()


def test_labels_stand_above_their_objects_where_there_is_room():
    assert place_labels([(10, 100)], [(30, 14)], (256, 256)) == [(10, 86)]
    assert place_labels([(10, 3)], [(30, 14)], (256, 256)) == [(10, 3)]  # no room above: inside
    assert place_labels([(250, 100)], [(30, 14)], (256, 256)) == [(226, 86)]
    first, second = place_labels([(10, 100)] * 2, [(30, 14)] * 2, (256, 256))
    assert first == (10, 86) and np.hypot(second[0] - 10, second[1] - 86) < 20  # and near it where there is none


def test_labels_without_room_are_left_out():
    places = place_labels([(0, 0)] * 9, [(20, 10)] * 9, (45, 32))
    assert places.count(None) == 3  # two columns, three rows
    assert place_labels([(0, 0)], [(20, 10)], (15, 32)) == [None]


def test_letters_can_be_read_on_every_color():
    for color in layout.COLORS:
        lights = sorted(layout._luminance(c) + 0.05 for c in (color, layout.ink_on(color)))
        assert lights[1] / lights[0] >= 4.5  # WCAG 2, level AA


def test_outlines_lie_where_the_latents_say():
    black = Image.new("RGB", (200, 200))
    z = Latents(
        bbox=(Box(phrase="a", box=(250, 500, 750, 900)),), blob=(Blob(phrase="a", blob=(500, 300, 200, 50, 90)),)
    )
    drawn = np.asarray(render_outlines(black, z))
    colored = (drawn == layout.COLORS[0]).all(-1)
    assert colored[150, 50] and colored[150, 149] and colored[179, 100]  # left, right and lower side
    assert colored[95:105, 98:103].any() and colored[18:23, 98:103].any()  # both ends of the major axis
    assert not colored[120:170, 60:140].any()
    # A white photo shows the dark rim, a dark one the color.
    white = np.asarray(render_outlines(Image.new("RGB", (200, 200), "white"), Latents(bbox=z.bbox)))
    assert (white == layout.HALO).all(-1).sum() > 300


def test_panel_shows_the_photo_under_the_outlines():
    photo = Image.new("RGB", (300, 300), (200, 10, 10))
    panel = render_panel(Latents(voken=(1, 2)), 160, photo)
    assert panel.getpixel((80, 80)) == (200, 10, 10) and panel.height > 160


# ----------------------------------------------------------------------------------------------------- SVG
HOSTILE = "</text><script>alert('1')</script> & \"boot\""
FULL = Latents(
    text=HOSTILE + " a long description" * 9,
    bbox=(
        Box(phrase="boot", box=(0, 0, 1000, 1000)),
        Box(phrase=HOSTILE.replace("(", "").replace(")", ""), box=(5, 5, 9, 9)),
    ),
    blob=(Blob(phrase="boot", blob=(500, 400, 300, 100, 30)),),
    voken=tuple(range(0, 8192, 256)),
)


@pytest.mark.parametrize("size", [128, 512])
def test_svg_holds_every_segment_and_users_text_as_data(size):
    href = 'data:image/png;base64,AAAA"><script>'
    svg = render_svg(FULL, size, href)
    root = ElementTree.fromstring(svg)
    assert "<script" not in svg and not list(root.iter(f"{SVG}script"))
    assert not [e for e in root.iter() if "id" in e.attrib]  # many on one page do not collide
    (image,) = root.iter(f"{SVG}image")
    assert image.get("href") == href
    titles = [e.text for e in root.iter(f"{SVG}title")]
    assert titles == [FULL.blob[0].phrase, *(b.phrase for b in FULL.bbox)]
    texts = [e.text for e in root.iter(f"{SVG}text")]
    assert " ".join(texts).count("description") == 9 and [t for t in texts if t.isdigit()] == [
        str(v) for v in FULL.voken
    ]
    (place,) = {e.get("transform") for e in root.iter(f"{SVG}g")} - {None}
    assert place == "translate(500 400) rotate(30)"
    assert {(e.get("rx"), e.get("ry")) for e in root.iter(f"{SVG}ellipse")} == {("300", "100")}


@pytest.mark.parametrize("size", [64, 256])
def test_svg_text_stays_inside(size):
    root = ElementTree.fromstring(render_svg(FULL, size))
    height = float(root.get("height"))
    assert list(root.iter(f"{SVG}text"))
    for text in root.iter(f"{SVG}text"):
        # The browser gets the width, whatever its font is.
        assert float(text.get("x")) >= 0 and float(text.get("x")) + float(text.get("textLength")) <= size + 1e-3
        assert 0 < float(text.get("y")) < height


def test_svg_is_readable_in_light_and_dark_and_leaves_the_page_alone():
    svg = render_svg(Latents(text="a boot"))
    assert "prefers-color-scheme:dark" in svg
    style = svg.partition("<style>")[2].partition("</style>")[0]
    assert style.count("--kaleido-") == 8 and style.count(".kaleido-z") == 2 and style.count("{") == 3


def test_svg_of_nothing_is_an_empty_square():
    root = ElementTree.fromstring(render_svg(Latents(), 100))
    assert root.get("viewBox") == "0 0 100 100" and not list(root.iter(f"{SVG}text"))
    with pytest.raises(LatentsError):
        render_svg(Latents(text="a | b"))


def test_letters_with_accents_and_of_other_scripts_are_not_boxes():
    font = load_font(20)
    missing = font.getmask("\uffff").getbbox(), bytes(font.getmask("\uffff"))
    for letter in "äßéñøŁжΩ":
        assert (font.getmask(letter).getbbox(), bytes(font.getmask(letter))) != missing
