"""Stand-ins for trained models of the scenes: one that samples real scenes, and one that has collapsed."""

import dataclasses
import functools

import numpy as np

from kaleido_jax.config.checks import validate
from kaleido_jax.config.codec import open_codec
from kaleido_jax.data.sources.emoji import KINDS
from kaleido_jax.evaluate.emoji import Samples, real_samples
from kaleido_jax.sampling.pipeline import KaleidoPipeline
from kaleido_jax.sampling.tokens import SampledLatents

SIZE = 32


@functools.cache
def some_real_samples() -> Samples:
    """120 scenes with their true z; shared by all tests of a process."""
    return real_samples(120, 0, SIZE)


class PretendedModel(KaleidoPipeline):
    """Samples real scenes with their own z; a collapsed one the same scene of each kind, without z."""

    def __init__(self, collapsed=False):
        from configs.emoji_combined import get_config

        config = get_config()
        config.latents.segments = () if collapsed else ("text", "bbox", "blob")
        self.config = validate(config)
        self.codec, self.collapsed, self.sampled = open_codec(self.config), collapsed, []
        real = some_real_samples()
        self.of_kind = [np.flatnonzero(real.kinds == kind) for kind in range(len(KINDS))]

    def recipe(self, captions, images_per_caption, seed, sample, given=False):
        name = f"collapsed {self.collapsed}"
        return {"model": {"name": name, "weights": name, "worse": None}, "sample": dataclasses.asdict(sample)}

    def _rows(self, captions, indices):
        turns = [0 if self.collapsed else i // len(set(captions)) for i in indices]
        there = [self.of_kind[KINDS.index(caption)] for caption in captions]
        return [int(rows[turn % len(rows)]) for rows, turn in zip(there, turns, strict=True)]

    def sample_latents(self, captions, *, seed, indices=None, sample=None, prefix=None):
        z = [some_real_samples().latents[i] for i in self._rows(captions, indices)]
        return [SampledLatents(tokens=tuple(self.codec.encode(one)), latents=one) for one in z]

    def sample_images(self, captions, latents, *, seed, indices=None, sample=None):
        assert (latents is None) == self.collapsed
        self.sampled += list(indices)
        return (some_real_samples().pixels[self._rows(captions, indices)].astype(np.float32) - 127) / 128
