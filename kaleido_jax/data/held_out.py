"""Held-out share of a data set, chosen by the images' content."""

from hashlib import sha256

from kaleido_jax.data.sources.base import GrowingSource

TRAIN, TEST = SPLITS = ("train", "test")  # folders of records where a share is held out


def is_held_out(image: bytes, share: float) -> bool:
    """Whether an image is held out, by a hash of its encoded bytes alone.

    So an image never changes sides when others come or go, copies of it are on its side, and a larger share holds out
    the images of a smaller one too.

    Args:
      image: the encoded image.
      share: of all images, 0..1.
    """
    return int.from_bytes(sha256(image).digest()[:8]) < share * 2**64


def held_out(source: GrowingSource, index: int, share: float) -> bool:
    """Whether an example is held out; False if its image cannot be read."""
    try:
        return is_held_out(source.image_bytes(index), share)
    except Exception:  # noqa: BLE001  # one row is one failure, whatever it raises: it is counted where it is annotated
        return False
