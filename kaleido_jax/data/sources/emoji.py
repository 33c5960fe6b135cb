"""Scenes of Noto emoji on a plain background, in any number, with exact labels.

A caption names kinds ("fruit"), and each kind has twelve sprites ("red apple", "pineapple", ...): the hidden modes of
the caption, whose true shares are known (SHARES). A scene shows one sprite, or two of different kinds, with place,
size, tilt and background. Text, boxes and masks are those of the drawing.

The held-out split shows only combinations of sprite, background, place, size and tilt that training never shows; the
sprites themselves are shared.
"""

import functools
import io
import itertools
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from kaleido_jax import array_types as at
from kaleido_jax.config.schema import DataEmoji
from kaleido_jax.data.sources import register
from kaleido_jax.data.sources.base import Example, LabeledObject, SourceSettings, check_index
from kaleido_jax.errors import user_error
from kaleido_jax.runtime.files import fingerprint

VERSION = "emoji/1"  # raise it when the drawing, the words or the split change
SPLITS = ("train", "test")
KINDS = ("fruit", "vegetable", "sweet", "bird", "bug", "sea animal", "flower", "vehicle", "ball", "heart")
SPRITES_PER_KIND = 12
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 244),
    "black": (28, 28, 34),
    "gray": (142, 144, 150),
    "pink": (250, 190, 212),
    "yellow": (252, 232, 140),
    "green": (150, 214, 158),
    "blue": (140, 190, 248),
    "purple": (186, 158, 232),
}
SIZES = ("small", "medium", "large")
PLACES = ("upper left", "top", "upper right", "left", "center", "right", "lower left", "bottom", "lower right")
TILTS = ("tilted left", "upright", "tilted right")

SMALLEST_PX = 16
_DRAWN_PX = (
    128  # least side on which sprites are drawn; smaller images are means of its pixels. Boxes are measured on it
)
_SIZE_BOUNDS = (0.54, 0.72)  # between the words of SIZES, in parts of the image's side
_PLACE_BOUNDS = (0.43, 0.57)  # between left, center and right, and between upper, middle and lower
_UPRIGHT_DEGREES = 12  # largest tilt that is still upright
_MOST_SIDE = 0.92  # of a sprite that is alone
_SIDE_OF_TWO = (0.4, 0.6)  # range of the side of one of two sprites
_FILLED = 0.92  # part of a sprite's square that its pixels reach into, from edge to edge
_APART = 0.56  # least distance of two centers, in parts of the sum of their sides; 0.5 = their circles touch
_HELD_OUT_ONE_IN = 10
_TRIES = 100  # for the place of a sprite; then the scene begins anew, with another background


def _asset() -> np.lib.npyio.NpzFile:
    packed = resources.files("kaleido_jax").joinpath("assets/emoji/noto_emoji_120.npz").read_bytes()
    return np.load(io.BytesIO(packed), allow_pickle=False)


def _true_shares() -> Float[np.ndarray, "k s"]:
    # The rank of a sprite must not follow the order of the file; a checksum of its name is a shuffle that is fixed.
    checksums = np.array([zlib.crc32(name.encode()) for name in SPRITE_NAMES]).reshape(len(KINDS), SPRITES_PER_KIND)
    weights = 1 / (2 + np.argsort(np.argsort(checksums, axis=1), axis=1))
    return weights / weights.sum(axis=1, keepdims=True)


with _asset() as _arrays:
    SPRITE_NAMES: tuple[str, ...] = tuple(str(name) for name in _arrays["name"])  # of kind k: 12 k .. 12 k + 11
SHARES = _true_shares()  # (kind, sprite within the kind): probability; rows sum to 1


# ---------------------------------------------------------------------------------------------- the scene
@dataclass(frozen=True, kw_only=True)
class PlacedSprite:
    """One sprite in a scene; lengths in parts of the image's side, x to the right, y down."""

    sprite: int  # index into SPRITE_NAMES
    x: float  # center, 0..1
    y: float
    side: float  # of the sprite's square before it is tilted, 0..1
    tilt: int  # degrees -45..45, clockwise as seen

    @property
    def kind(self) -> int:
        """Index into KINDS."""
        return self.sprite // SPRITES_PER_KIND

    @property
    def words(self) -> tuple[str, str, str]:
        """Its words of SIZES, PLACES and TILTS."""
        return size_word(self.side), place_word(self.x, self.y), tilt_word(self.tilt)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Sprites on a background, later ones in front."""

    sprites: tuple[PlacedSprite, ...]  # the source gives the larger of two first
    background: str  # of BACKGROUNDS


def size_word(side: float) -> str:
    """The word of SIZES for the side of a sprite, in parts of the image's."""
    return SIZES[sum(side >= bound for bound in _SIZE_BOUNDS)]


def place_word(x: float, y: float) -> str:
    """The word of PLACES for a center, 0..1."""
    column, row = (sum(v >= bound for bound in _PLACE_BOUNDS) for v in (x, y))
    return PLACES[3 * row + column]


def tilt_word(tilt: float) -> str:
    """The word of TILTS for degrees, clockwise."""
    return TILTS[1 + (tilt > _UPRIGHT_DEGREES) - (tilt < -_UPRIGHT_DEGREES)]


def caption(scene: Scene) -> str:
    """The kinds: "fruit", or "a fruit and a bird"."""
    kinds = [KINDS[placed.kind] for placed in scene.sprites]
    return kinds[0] if len(kinds) == 1 else " and ".join(f"a {kind}" for kind in kinds)


def describe(scene: Scene) -> str:
    """The text segment: "a large red apple, upper left, tilted left, on blue"."""
    parts = []
    for placed in scene.sprites:
        size, place, tilt = placed.words
        parts.append(f"a {size} {SPRITE_NAMES[placed.sprite]}, {place}, {tilt}")
    return f"{' and '.join(parts)}, on {scene.background}"


def is_held_out(placed: PlacedSprite, background: str) -> bool:
    """Whether this combination of sprite, background and words is of the held-out split: one in ten, by a checksum."""
    key = "|".join((SPRITE_NAMES[placed.sprite], background, *placed.words))
    return zlib.crc32(key.encode()) % _HELD_OUT_ONE_IN == 0


def draw_scene(
    rng: np.random.Generator,
    *,
    held_out: bool,
    two_share: float,
    kinds: tuple[str, ...] = (),
    least_side: float = DataEmoji.least_side,
    most_tilt: int = DataEmoji.most_tilt,
) -> Scene:
    """A random scene all of whose sprites are, or none of whose sprites is, of the held-out combinations.

    Kinds and sprites come first and are kept, so that both splits have the true shares of kinds, sprites and pairs.
    The arguments are those of config.data.emoji.
    """
    allowed = [KINDS.index(kind) for kind in kinds or KINDS]
    first = int(rng.random() * len(allowed))
    other = (first + 1 + int(rng.random() * (len(allowed) - 1))) % len(allowed)
    alone = (least_side, _MOST_SIDE)
    shown, sides = ((first, other), _SIDE_OF_TWO) if rng.random() < two_share else ((first,), alone)
    sprites = [SPRITES_PER_KIND * kind + _pick(SHARES[kind], rng.random()) for kind in (allowed[i] for i in shown)]
    while True:
        background = list(BACKGROUNDS)[int(rng.random() * len(BACKGROUNDS))]
        placed: list[PlacedSprite] = []
        for sprite in sprites:
            places = _places(rng, sprite, sides, most_tilt, placed)
            placed += itertools.islice((p for p in places if is_held_out(p, background) == held_out), 1)
        if len(placed) == len(sprites):
            return Scene(sprites=tuple(sorted(placed, key=lambda p: -p.side)), background=background)


def _pick(shares: Float[np.ndarray, "n"], uniform: float) -> int:
    return min(int(np.searchsorted(np.cumsum(shares), uniform, side="right")), len(shares) - 1)


def _places(
    rng: np.random.Generator, sprite: int, sides: tuple[float, float], most_tilt: int, others: list[PlacedSprite]
) -> Iterator[PlacedSprite]:
    """Random places of the sprite, apart from the others; few or none if these leave no room."""
    for_side, for_tilt, for_x, for_y = rng.random((4, _TRIES))
    side = sides[0] + for_side * (sides[1] - sides[0])
    tilt = np.floor(for_tilt * (2 * most_tilt + 1)) - most_tilt
    turn = np.radians(np.abs(tilt))
    reach = np.minimum(_FILLED * side * (np.cos(turn) + np.sin(turn)) / 2, 0.5)  # keeps it inside the image
    x, y = (reach + uniform * (1 - 2 * reach) for uniform in (for_x, for_y))
    apart = np.ones(_TRIES, bool)
    for other in others:
        apart &= np.hypot(x - other.x, y - other.y) > _APART * (side + other.side)
    for i in np.flatnonzero(apart):
        yield PlacedSprite(sprite=sprite, x=float(x[i]), y=float(y[i]), side=float(side[i]), tilt=int(tilt[i]))


# -------------------------------------------------------------------------------------------- the drawing
def render(scene: Scene, image_size: int) -> tuple[at.SquareImage, list[Bool[np.ndarray, "s s"]]]:
    """The image and, for each sprite, the mask of the pixels that show it.

    Args:
      scene: what to draw.
      image_size: px of the result, from 16.

    Raises:
      UserError: a smaller image.
    """
    if image_size < SMALLEST_PX:
        do = "raise config.annotate.image_size or the denoiser's"
        raise user_error(f"scenes of {image_size} px", f"at least {SMALLEST_PX} px", do)
    factor = -(-_DRAWN_PX // image_size)
    # Layers are premultiplied, so means of them are means of what is seen.
    layers = [np.asarray(layer.reduce(factor)) for layer in _layers(scene, image_size * factor)]
    canvas = np.full((image_size, image_size, 3), BACKGROUNDS[scene.background], np.float32)
    for layer in layers:
        canvas *= 1 - layer[..., 3:] / np.float32(255)
        canvas += layer[..., :3]
    # Bicubic weights may leave the range a little.
    return np.rint(canvas.clip(0, 255)).astype(np.uint8), _masks([layer[..., 3] for layer in layers])


def visible_boxes(scene: Scene) -> tuple[tuple[float, float, float, float], ...]:
    """For each sprite the box (x1, y1, x2, y2), 0..1, of the pixels that show it; the same for every image size.

    Raises:
      UserError: a sprite that cannot be seen.
    """
    boxes = []
    masks = _masks([np.asarray(layer)[..., 3] for layer in _layers(scene, _DRAWN_PX)])
    for placed, mask in zip(scene.sprites, masks, strict=True):
        if not mask.any():
            found = f"a scene in which {SPRITE_NAMES[placed.sprite]} cannot be seen"
            raise user_error(found, "sprites inside the image and not behind another", "move it")
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        boxes.append(tuple(float(edge) / _DRAWN_PX for edge in edges))
    return tuple(boxes)


def _masks(alphas: list[UInt8[np.ndarray, "s s"]]) -> list[Bool[np.ndarray, "s s"]]:
    """Where at least half of a pixel shows the sprite and not one in front of it."""
    masks, free = [], np.ones_like(alphas[0], np.float32)
    for alpha in reversed(alphas):
        masks.append(alpha * free >= 127.5)
        free *= 1 - alpha / np.float32(255)
    return masks[::-1]


@functools.lru_cache(maxsize=2)  # the boxes are measured on the layers of which the image was made just before
def _layers(scene: Scene, size_px: int) -> list[Image.Image]:
    """Each sprite alone on a transparent canvas, premultiplied."""
    return [_layer(placed, size_px) for placed in scene.sprites]


def _layer(placed: PlacedSprite, size_px: int) -> Image.Image:
    sprite = _sprites()[placed.sprite]
    scale = sprite.width / (placed.side * size_px)
    cos, sin = (scale * f(math.radians(placed.tilt)) for f in (math.cos, math.sin))
    x, y, middle = placed.x * size_px, placed.y * size_px, sprite.width / 2
    # Pillow wants the map from the canvas to the sprite: (x, y) -> (ax + by + c, dx + ey + f).
    to_sprite = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    return sprite.transform((size_px, size_px), Image.Transform.AFFINE, to_sprite, Image.Resampling.BICUBIC)


@functools.cache
def _sprites() -> list[Image.Image]:
    with _asset() as arrays:
        # RGBa is premultiplied, without which the colors of transparent pixels would bleed into the edges.
        return [Image.fromarray(rgba).convert("RGBa") for rgba in arrays["image"]]


# --------------------------------------------------------------------------------------------- the source
class EmojiSource:
    """Example i is a function of (seed, split, i)."""

    class_names: tuple[str, ...]  # its kinds

    def __init__(self, settings: SourceSettings) -> None:
        """Draws nothing yet.

        Raises:
          UserError: unknown split or kind, or images below 16 px.
        """
        data, size = settings.data, settings.image_size
        if data.split not in SPLITS:
            raise user_error(f"split {data.split!r}", f"one of {', '.join(SPLITS)}", "correct config.data.split")
        if size < SMALLEST_PX:
            do = "raise config.annotate.image_size or the denoiser's"
            raise user_error(f"scenes of {size} px", f"at least {SMALLEST_PX} px", do)
        self._split, self._seed, self._image_size = data.split, settings.seed, size
        _check_kinds(data.emoji)
        self._emoji = data.emoji
        self.class_names = data.emoji.kinds or KINDS
        self._num_examples = data.emoji.num_train if data.split == "train" else data.emoji.num_test
        drawn = f"{VERSION} {data.split} {settings.seed} {size} {data.emoji.two_share}"
        if (views := _views(data.emoji)) != _views(DataEmoji()):
            drawn += f" {views}"
        self.fingerprint = fingerprint(drawn)

    def __len__(self) -> int:
        return self._num_examples

    def id(self, index: int) -> str:
        """The id of one example, e.g. "emoji/train/000017"."""
        return f"emoji/{self._split}/{check_index(index, self._num_examples):06d}"

    def scene(self, index: int) -> Scene:
        """What one example shows."""
        split = SPLITS.index(self._split)
        sequence = np.random.SeedSequence((self._seed, split, check_index(index, self._num_examples)))
        # Philox is counter-based: nearby (seed, split, index) give unrelated streams, the same on every machine.
        rng = np.random.Generator(np.random.Philox(sequence))
        emoji = self._emoji
        return draw_scene(
            rng,
            held_out=self._split == "test",
            two_share=emoji.two_share,
            kinds=emoji.kinds,
            least_side=emoji.least_side,
            most_tilt=emoji.most_tilt,
        )

    def label(self, index: int) -> int:
        """Index into class_names of one example's first sprite."""
        return self.class_names.index(KINDS[self.scene(index).sprites[0].kind])

    def __getitem__(self, index: int) -> Example:
        scene = self.scene(index)
        image, masks = render(scene, self._image_size)
        objects = tuple(
            LabeledObject(
                phrase=SPRITE_NAMES[placed.sprite], box=tuple(edge * self._image_size for edge in box), mask=mask
            )
            for placed, box, mask in zip(scene.sprites, visible_boxes(scene), masks, strict=True)
        )
        return Example(
            id=self.id(index), image=image, caption=caption(scene), description=self._text(scene), objects=objects
        )

    def _text(self, scene: Scene) -> str:
        if self._emoji.names_alone:
            return " and ".join(SPRITE_NAMES[placed.sprite] for placed in scene.sprites)
        return describe(scene)


def _views(emoji: DataEmoji) -> tuple[tuple[str, ...], bool, float, int]:
    return emoji.kinds, emoji.names_alone, emoji.least_side, emoji.most_tilt


def _check_kinds(emoji: DataEmoji) -> None:
    unknown = [kind for kind in emoji.kinds if kind not in KINDS]
    if unknown or len(set(emoji.kinds)) < len(emoji.kinds):
        found = f"config.data.emoji.kinds = {emoji.kinds}"
        raise user_error(found, f"different ones of {', '.join(KINDS)}", "correct them")
    if len(emoji.kinds) == 1 and emoji.two_share:
        found = f"config.data.emoji.two_share = {emoji.two_share} with one kind"
        raise user_error(found, "0, since the two of a scene have different kinds", "set it, or add a kind")


register("emoji", EmojiSource, splits=SPLITS)
