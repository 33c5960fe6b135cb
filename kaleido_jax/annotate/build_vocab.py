"""Vocabulary of the emoji source: python -m kaleido_jax.annotate.build_vocab --out=FILE.

A sentencepiece unigram model in T5's style with the words of the source, small enough for a tiny prior.
The shipped one is kaleido_jax/assets/emoji/spiece.model.
"""

import argparse
import io
import logging
import math
import string
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from kaleido_jax.annotate.labels import LabeledBlobs, LabeledBoxes, LabeledText
from kaleido_jax.config.schema import Data, DataEmoji
from kaleido_jax.data.sources import emoji, open_source
from kaleido_jax.latents.geometry import MAX_COORDINATE
from kaleido_jax.latents.grammar import serialize
from kaleido_jax.latents.types import Latents
from kaleido_jax.runtime.files import write_atomically

MAX_PIECES = 400  # without the joints and numbers below; the trainer keeps fewer, which makes 375, hence 384 rows
NUM_EXAMPLES = 500  # with the words below, every word occurs often
# Characters that a typed caption may contain. "|" and "#" only separate segments and vokens.
_CHARACTERS = string.ascii_letters + string.digits + ".,'-#():;!?\"&/+%"
# Added after the training, which never joins words: one token instead of two before each number of a box except the
# first, and the segment separator, whose bar is deliberately not a piece of its own.
_JOINTS = (",▁", "▁|")
# So are the coordinates that latents.coordinate_step = 10 leaves: one token each instead of up to four. Others are
# spelled in digits.
_NUMBERS = tuple(str(n) for n in range(10, MAX_COORDINATE + 1, 10))


def build(num_examples: int = NUM_EXAMPLES) -> bytes:
    """The model file's bytes; the same on every call."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=_corpus(num_examples),
        model_writer=model,
        model_type="unigram",
        vocab_size=MAX_PIECES,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        split_digits=True,
        required_chars=_CHARACTERS,
        character_coverage=1.0,
        num_threads=1,  # sums in another order would change the scores
        minloglevel=2,
    )
    return _with_added(model.getvalue())


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


def _with_added(model: bytes) -> bytes:
    from sentencepiece import sentencepiece_model_pb2  # needs protobuf, which only this tool uses

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    for piece in _JOINTS + _NUMBERS:
        # As probable as a very common word, so always cheaper than its parts.
        proto.pieces.add(piece=piece, score=math.log(0.05))
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString(deterministic=True)


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
