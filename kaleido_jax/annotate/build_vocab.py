"""Vocabulary of the emoji source: python -m kaleido_jax.annotate.build_vocab --out=FILE.

A sentencepiece unigram model in T5's style with the words of the source, small enough for a tiny prior.
The shipped one is kaleido_jax/assets/emoji/spiece.model.
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

from kaleido_jax.annotate.labels import LabeledBlobs, LabeledBoxes, LabeledText
from kaleido_jax.config.schema import Data, DataEmoji
from kaleido_jax.data.sources import emoji, open_source
from kaleido_jax.latents.grammar import serialize
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.vocabulary import train_vocabulary
from kaleido_jax.runtime.files import write_atomically

MAX_PIECES = 400  # without the joints and numbers below; the trainer keeps fewer, which makes 375, hence 384 rows
NUM_EXAMPLES = 500  # with the words below, every word occurs often


def build(num_examples: int = NUM_EXAMPLES) -> bytes:
    """The model file's bytes; the same on every call."""
    return train_vocabulary(_corpus(num_examples), max_pieces=MAX_PIECES)


def _corpus(num_examples: int) -> Iterator[str]:
    data = Data(source="emoji", split="train", emoji=DataEmoji(num_train=num_examples))
    source, annotators = open_source(data), (LabeledText(), LabeledBoxes(2), LabeledBlobs(2))
    for index in range(num_examples):
        example = source[index]
        yield example.caption
        for annotator in annotators:
            [z] = annotator([example], [Latents()])
            yield serialize(z, annotator.segments)
    # Words that hardly an example contains must be pieces too.
    words = (*emoji.KINDS, *emoji.SPRITE_NAMES, *emoji.BACKGROUNDS, *emoji.SIZES, *emoji.PLACES, *emoji.TILTS)
    for word in words:
        yield from [word] * (num_examples // 5)


def main() -> None:
    """Writes the vocabulary to --out."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    out = parser.parse_args().out
    write_atomically(out, build())
    logging.info("wrote %s", out)


if __name__ == "__main__":
    main()
