"""Vocabularies trained on the words of one data set: sentencepiece unigram models in T5's style for small priors."""

import io
import math
import re
import string
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import sentencepiece

from kaleido_jax.latents.validity import MAX_COORDINATE, is_writable

# Characters that a typed caption may contain. "|" and "#" only separate segments and vokens.
CHARACTERS = string.ascii_letters + string.digits + ".,'-#():;!?\"&/+%"
# Added after the training, which never joins words: one token instead of two before each number of a box except the
# first, and the segment separator, whose bar is deliberately not a piece of its own.
_JOINTS = (",▁", "▁|")
# So are the coordinates that latents.coordinate_step = 10 leaves: one token each instead of up to four. Others are
# spelled in digits.
_NUMBERS = tuple(str(n) for n in range(10, MAX_COORDINATE + 1, 10))
# sentencepiece skips sentences that are longer, or hold its own mark of what is unknown, which can be no piece either.
_MOST_BYTES, _RESERVED = 4192, "\u2585"
_LONGEST_WORD = 100  # letters; a longer run is a text without spaces, and sentencepiece loads no piece of 8 kB
_MOST_PIECES, _MOST_WORDS = 1_000, 500  # of data's own, besides the characters; each is a row of a small prior's table


def vocabulary_of(sentences: Sequence[str]) -> bytes:
    """The bytes of a model file that fits one data set: every character of it as it is written, frequent words whole.

    The one character that sentencepiece reserves, U+2585, stays unknown.

    Args:
      sentences: its captions, class names and lines of latents, without vokens.
    """
    written = {c for sentence in sentences for c in sentence if is_writable(c) and not c.isspace()}
    characters = sorted(written - {*CHARACTERS, "|", "▁", _RESERVED})
    words = Counter(word for sentence in sentences for word in re.findall(r"[^\W\d_]+", sentence))
    whole = {word: count for word, count in words.most_common(_MOST_WORDS) if 1 < len(word) <= _LONGEST_WORD}
    total = sum(words.values())
    return train_vocabulary(
        sentences if written - {"▁", _RESERVED} else (CHARACTERS,),  # images without any words: it cannot train on none
        max_pieces=_MOST_PIECES + len(characters),
        characters=CHARACTERS + "".join(characters),
        normalization="identity",  # what is written is what is read: "½" is not "1/2"
        words={word: count / total for word, count in whole.items()},
    )


def train_vocabulary(
    sentences: Iterable[str],
    *,
    max_pieces: int,
    characters: str = CHARACTERS,
    normalization: str = "nmt_nfkc",
    words: Mapping[str, float] = MappingProxyType({}),
) -> bytes:
    """The bytes of a model file; the same for the same arguments.

    Args:
      sentences: captions and lines of latents, without vokens.
      max_pieces: without the pieces that are added (joints, numbers and `words`); the trainer keeps fewer where the
        words are few.
      characters: that are pieces whether the sentences contain them or not.
      normalization: of sentencepiece; "identity" keeps every character as it is written.
      words: word -> its share of all words, 0..1. Each becomes one piece. The trainer alone takes a word as a whole
        only if it is part of several others, so with few captions it spells even the most frequent ones.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=(part for sentence in sentences for part in _parts(sentence)),
        model_writer=model,
        model_type="unigram",
        vocab_size=max_pieces,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name=normalization,
        split_digits=True,
        required_chars=characters,
        character_coverage=1.0,
        num_threads=1,  # sums in another order would change the scores
        minloglevel=2,
    )
    # As probable as a very common word, so always cheaper than its parts.
    added = dict.fromkeys(_JOINTS + _NUMBERS, 0.05)
    return _with_added(model.getvalue(), added | {f"▁{word}": share for word, share in words.items()})


def _parts(sentence: str) -> list[str]:
    """The sentence in parts that sentencepiece takes, between words where there are spaces."""
    sentence = sentence.replace(_RESERVED, " ")
    if len(sentence.encode()) <= _MOST_BYTES:
        return [sentence]
    return textwrap.wrap(sentence, _MOST_BYTES // 4, break_on_hyphens=False)  # a character has 4 bytes at most


def _with_added(model: bytes, shares: Mapping[str, float]) -> bytes:
    from sentencepiece import sentencepiece_model_pb2  # needs protobuf, which only this needs

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    known = {piece.piece for piece in proto.pieces}
    for piece, share in shares.items():
        if piece not in known:
            proto.pieces.add(piece=piece, score=math.log(share))
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString(deterministic=True)
