"""Captions of ImageNet-1k's classes."""

import functools
from collections import Counter
from importlib import resources


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
