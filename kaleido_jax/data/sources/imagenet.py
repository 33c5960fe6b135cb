"""Captions of ImageNet-1k's classes, and of classes as data sets name them."""

import functools
from collections import Counter
from importlib import resources

from kaleido_jax.latents.validity import clean_phrase


@functools.cache
def captions_of_wnids() -> dict[str, str]:
    """WordNet id ("n01440764") -> caption, in the order of the class index.

    A caption is WordNet's first synonym, or all synonyms if several classes share the first. The bird and the machine
    called crane share even these, and therefore their caption.
    """
    lines = resources.files("kaleido_jax").joinpath("assets/imagenet/classes.tsv").read_text("utf-8").splitlines()
    names = dict(line.split("\t")[1:] for line in lines[1:])
    shared = Counter(name.split(",")[0] for name in names.values())
    return {wnid: name if shared[name.split(",")[0]] > 1 else name.split(",")[0] for wnid, name in names.items()}


def class_captions() -> tuple[str, ...]:
    """Each caption once, in the order of the class index, for config.data.class_captions."""
    return tuple(dict.fromkeys(captions_of_wnids().values()))


def class_caption(name: str) -> str:
    """The caption of a class: of ImageNet's ids ("n01440764") that of the table, otherwise the name's own words.

    Underscores become spaces, and of several names with commas the first is used.

    Raises:
      LatentsError: the name has no word.
    """
    return captions_of_wnids().get(name) or clean_phrase(name.split(",")[0].replace("_", " "))
