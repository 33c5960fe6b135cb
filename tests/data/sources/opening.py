"""Small data sets on disk, and their sources."""

import json

from PIL import Image

from kaleido_jax.config.schema import Data
from kaleido_jax.data import sources
from kaleido_jax.errors import UserError


def open_source(name, split="", root=None, labels=(), images="", **own):
    data = Data(source=name, split=split, root=root and str(root), labels=labels, images=images, **own)
    return sources.open_source(data)


def photo(path, width=12, height=8, tone=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (tone, 0, 0)).save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def outcomes(source):
    """Of each index the caption, or what its error says."""
    found = []
    for index in range(len(source)):
        try:
            found.append(source[index].caption)
        except UserError as error:
            found.append(f"UserError: {error}")
    return found
