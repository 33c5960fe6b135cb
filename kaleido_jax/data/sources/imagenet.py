"""Captions of ImageNet-1k's classes, and of classes as data sets name them."""

import functools
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from kaleido_jax.data.sources.base import warn_once
from kaleido_jax.latents.validity import clean_phrase

_LISTED = 10  # captions, and classes of each, that a line of the log names


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


def class_caption(name: str, *, synonyms: bool = True) -> str:
    """The caption of a class: of ImageNet's ids ("n01440764") that of the table, otherwise the name's own words.

    Underscores become spaces. With `synonyms` a comma stands between several names, as in WordNet, and the first is
    used; otherwise it is a part of the name ("Paris, Texas").

    Raises:
      LatentsError: the name has no word.
    """
    words = name.split(",")[0] if synonyms else name
    return captions_of_wnids().get(name) or clean_phrase(words.replace("_", " "))


def warn_of_shared(classes: Iterable[tuple[str, str]], where: Path) -> None:
    """Tells which classes, (name, caption), have one caption; ImageNet's cranes are known to."""
    by_caption: dict[str, list[str]] = {}
    for name, caption in classes:
        by_caption.setdefault(caption, []).append(name)
    told = [
        f"{caption!r} of {', '.join(map(repr, names[:_LISTED]))}{' and more' if len(names) > _LISTED else ''}"
        for caption, names in by_caption.items()
        if len(names) > 1 and not captions_of_wnids().keys() >= set(names)
    ]
    if told:
        more = f" and {len(told) - _LISTED} more" if len(told) > _LISTED else ""
        warn_once(f"{where}: one caption for several classes: {'; '.join(told[:_LISTED])}{more}")
