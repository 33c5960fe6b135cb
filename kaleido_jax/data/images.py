"""Photographs: files and bytes decoded to upright RGB arrays."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from kaleido_jax import array_types as at
from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.files import LFS_POINTER

MAX_PIXELS = 2**26  # 67 M, 200 MB as RGB; a small file that unpacks to more is more likely a bomb than a photo
# Formats of photographs. Pillow knows others, some of which start other programs (EPS) or hold no pixels.
PHOTO_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "JPEG2000", "PPM")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff", ".gif", ".bmp", ".jp2", ".ppm")
# Photographs that are not read: of phones, of cameras, and of other programs.
UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".jxl"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
    *(".tga", ".psd"),
)

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF

# How a photo is turned upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on broken files; found by damaging files of every format in a test.
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError, RuntimeError)
_BROKEN += (struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)


def read_image(path: Path) -> at.Image:
    """The photo in a file.

    Raises:
      UserError: it is missing or cannot be decoded. The message has no path, so that equal failures count as one.
    """
    return decode_photo(read_photo(path))


def read_photo(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
      UserError: it is missing or no file, without its path as in `read_image`.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for its other end, without end
            raise user_error("image file: a folder, pipe or device", "a file", "correct the name, or leave the row out")
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise user_error(f"image file: {reason}", "a readable file", "fetch it, or leave the row out") from error


def decode_photo(data: bytes) -> at.Image:
    """An encoded image as RGB, turned upright by its EXIF orientation; the first frame if there are several.

    Transparent parts become white, grays of 12 and 16 bits keep their upper byte, grays of a wider type are of 8 bits
    if none is above 255 and else of 16, CMYK is converted without its ink profile, and color profiles are not applied.

    Raises:
      UserError: not an image of PHOTO_FORMATS, broken or truncated, more than MAX_PIXELS, of a mode without colors, or
        of numbers whose white is unknown.
    """
    if data.startswith(LFS_POINTER):
        raise user_error("an image file that is a git-LFS pointer", "the image", "run `git lfs pull` in its repository")
    Image.init()  # open() fails on names that this build of Pillow lacks
    formats = [name for name in PHOTO_FORMATS if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height == 0:
                raise user_error("an image without a pixel", "at least one", "leave the file out")
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(f"{image.width} x {image.height} px")
            return _to_rgb(image)
    except UnidentifiedImageError as error:
        raise user_error(
            f"{len(data)} bytes that are not an image", f"one of {', '.join(PHOTO_FORMATS)}", "leave the file out"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("a size beyond Pillow's own limit") from error
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise user_error(f"an image that cannot be decoded ({reason})", "a whole file", "fetch it again") from error


def _too_large(found: str) -> UserError:
    return user_error(f"an image of {found}", f"at most {MAX_PIXELS} px in all", "shrink it or leave it out")


def _extra_bits(image: Image.Image) -> int:
    """How many bits of a gray are below its upper byte: 8 of 16, 4 of a TIFF's 12, in wider types as their values say.

    Raises:
      UserError: values that are neither 8 nor 16 bits without a sign.
    """
    if image.format == "TIFF" and image.tag_v2.get(_BITS_PER_SAMPLE) == (12,):  # which Pillow does not scale to 16
        return 4
    if image.mode != "I" or image.format in ("PNG", "PPM"):  # which have no more, and are scaled to 16 by Pillow
        return 8
    least, most = image.getextrema()
    if least < 0 or most > 65535:
        found = "an image of wide integers, some below 0 or above 65535"
        raise user_error(found, "8 or 16 bits a channel", "convert it, since its white is unknown")
    return 8 if most > 255 else 0


def _upright(image: Image.Image) -> Image.Image:
    """Pillow's own exif_transpose also writes all EXIF anew, and fails where a tag that nobody reads is bad."""
    image.load()  # a PNG may have its EXIF behind its pixels
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)


def _to_rgb(opened: Image.Image) -> at.Image:
    image = _upright(opened)  # without what the file says about its numbers
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255 instead of scaling.
        grey = np.asarray(image, np.int64)
        if opened.format == "TIFF" and opened.tag_v2.get(_PHOTOMETRIC) == 0:  # white is 0, which Pillow turns in 8 bits
            grey = 65535 - grey
        grey >>= _extra_bits(opened)
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode == "F":
        raise user_error("an image of floats", "8 or 16 bits a channel", "convert it, since its white is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        # Transparent pixels may hold any color; web images are made for white pages.
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))
