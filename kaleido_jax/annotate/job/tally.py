"""Tally of a job's images: counts in nested dicts of JSON, made for each shard and added up for the manifest.

objects     segment -> number of objects -> records, of the segments that are lists of objects
too_long    "caption" or "latents" -> tokens, eos included -> images that were left out for it
unknown     "caption" or segment -> images with characters that the vocabulary lacks
characters  "caption" or segment -> such a character -> images
dropped     segment -> objects that records lack, since the vocabulary has no character of their phrase
nameless    "label" -> labeled objects in the crop of which no phrase can be made
shape       "narrow" or "enlarged" -> images
empty       "caption" -> records with none
classes     class name -> records with this caption, where the source has classes
"""

from collections.abc import Iterable, Mapping
from typing import Any

from kaleido_jax.annotate.labels import phrase_of
from kaleido_jax.data.sources.base import Example
from kaleido_jax.latents import segments as registry
from kaleido_jax.latents.segments.objects import ObjectList
from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.latents.types import Latents, segments_of

NARROW = 4  # a photo is narrow if one side is more than so many times the other: the crop keeps less than a quarter


def add(tallies: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of nested counts, keys in order: numbers by size, then words."""
    total: dict[str, Any] = {}
    for tally in tallies:
        _add(total, tally)
    return _sorted(total)


def _add(total: dict[str, Any], tally: Mapping[str, Any]) -> None:
    for key, value in tally.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value


def _sorted(tally: Mapping[str, Any]) -> dict[str, Any]:
    keys = sorted(tally, key=lambda key: (not key.isdecimal(), int(key) if key.isdecimal() else 0, key))
    return {key: _sorted(tally[key]) if isinstance(tally[key], Mapping) else tally[key] for key in keys}


def objects_of(z: Latents) -> dict[str, dict[str, int]]:
    """The tally `objects` of one record."""
    lists = [segment for segment in segments_of(z) if isinstance(registry.get(segment), ObjectList)]
    return {segment: {str(len(getattr(z, segment))): 1} for segment in lists}


def unknown_in(texts: Mapping[str, str], tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """The tallies `unknown` and `characters` of one image, given its words by "caption" or segment."""
    found = {}
    for name, text in texts.items():
        if tokenizer.unk_id in tokenizer.encode(text):
            characters = sorted({c for c in text if tokenizer.unk_id in tokenizer.encode(c)})
            found[name] = dict.fromkeys(characters, 1)
    return {"unknown": dict.fromkeys(found, 1), "characters": found} if found else {}


def dropped_from(made: Latents, kept: Latents) -> dict[str, int]:
    """The tally `dropped` of one record, given its latents before and after they were fitted to the vocabulary."""
    numbers = {s: len(getattr(made, s)) - len(getattr(kept, s)) for s in objects_of(kept)}
    return {segment: number for segment, number in numbers.items() if number}


def nameless_in(example: Example) -> dict[str, dict[str, int]]:
    """The tally `nameless` of one photo's crop."""
    number = sum(not phrase_of(labeled) for labeled in example.objects)
    return {"nameless": {"label": number}} if number else {}


def shape_of(example: Example, image_size: int) -> dict[str, int]:
    """The tally `shape` of one photo, as the source gives it, for records of `image_size` px."""
    height, width = example.image.shape[:2]
    found = {"narrow": max(height, width) > NARROW * min(height, width), "enlarged": min(height, width) < image_size}
    return {name: 1 for name, is_so in found.items() if is_so}
