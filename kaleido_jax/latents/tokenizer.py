"""Tokenizer: a sentencepiece vocabulary as T5 uses it, pad 0, eos 1, unk 2, with rows for the vokens.

Rows of the token table: pieces | extra ids (sentinels) | padding to a multiple of 128 | one row for each voken.
"""

from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import sentencepiece
from jaxtyping import Int

from kaleido_jax.errors import user_error
from kaleido_jax.runtime.files import fingerprint

ROW_MULTIPLE = 128  # table rows are padded to this, so that they shard evenly (T5: 32100 -> 32128)
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
SHIPPED = {
    "t5": ("assets/t5/spiece.model", 100),
    "emoji": ("assets/emoji/spiece.model", 0),
}  # file, extra ids


class Tokenizer:
    """Text <-> ids with seqio's method names, and rows for the vokens.

    Control strings in the text ("</s>", "<extra_id_0>", "I17") are ordinary text and never become control ids.
    """

    def __init__(self, model_path: Path | Traversable | str, extra_ids: int = 100, codebook_size: int = 8192) -> None:
        """Loads a sentencepiece model file.

        Args:
          model_path: path of the file.
          extra_ids: number of sentinels after the pieces (100 in every T5).
          codebook_size: entries of the voken codebook, one new row each.

        Raises:
          UserError: no such file, not a sentencepiece model, or other pad/eos/unk ids than T5's.
        """
        self.model = _read(model_path)  # the file's bytes
        self._pieces = _load(self.model, model_path)
        self.extra_ids = extra_ids
        self.codebook_size = codebook_size
        self.fingerprint = fingerprint(self.model, f"|{extra_ids}|{codebook_size}")
        self.base_vocab_size = round_up(self.num_pieces + extra_ids, ROW_MULTIPLE)

    @property
    def num_pieces(self) -> int:
        """Pieces in the model file (T5: 32000)."""
        return self._pieces.get_piece_size()

    @property
    def num_text_ids(self) -> int:
        """Pieces plus extra ids (T5: 32100); the vokens are not counted."""
        return self.num_pieces + self.extra_ids

    @property
    def vocab_size(self) -> int:
        """Rows of the prior's token table: base_vocab_size + codebook_size (T5 with 8192 vokens: 40320)."""
        return self.base_vocab_size + self.codebook_size

    @property
    def pad_id(self) -> int:
        """0, which also starts the decoder."""
        return PAD_ID

    @property
    def eos_id(self) -> int:
        """1, the end of every sequence."""
        return EOS_ID

    @property
    def unk_id(self) -> int:
        """2, for characters the vocabulary does not know."""
        return UNK_ID

    @property
    def hash_id(self) -> int:
        """The id of "#", which joins vokens (T5: 4663).

        Raises:
          UserError: the vocabulary has no such piece.
        """
        found = self._pieces.piece_to_id("#")
        if found == UNK_ID:
            raise user_error("a vocabulary without the piece '#'", "one that has it", "use another model file")
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without eos; unknown characters become unk.

        Raises:
          UserError: half of a surrogate pair, which file names, tables and JSON can hold but UTF-8 cannot.
        """
        try:
            return self._pieces.encode(text)
        except (RuntimeError, UnicodeEncodeError) as error:
            bad = sorted({ascii(ch) for ch in text if "\ud800" <= ch <= "\udfff"})
            if not bad:
                raise
            raise user_error(f"text with {', '.join(bad)}", "characters of UTF-8", "remove them") from error

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " n"]) -> str:
        """Text of the ids up to the first eos; vokens are shown as "I17", sentinels as "<extra_id_0>".

        Raises:
          UserError: an id outside the table.
        """
        out, run, num_pieces = [], [], self.num_pieces
        for token in _until_eos(ids):
            if 0 <= token < num_pieces:
                run.append(int(token))
            else:
                out += [self._pieces.decode(run), self._show(int(token))]
                run = []
        return "".join([*out, self._pieces.decode(run)])

    def unknown(self, text: str) -> list[str]:
        """Characters of the text that the vocabulary lacks, each once; it may read them as unk in other company too.

        Raises:
          UserError: as `encode`.
        """
        if UNK_ID not in self.encode(text):
            return []
        return [ch for ch in dict.fromkeys(text) if UNK_ID in self.encode(ch)]

    def piece(self, token: int) -> str:
        """The spelling of one id inside the vocabulary, with "▁" for a space."""
        return self._pieces.id_to_piece(int(token)) if token < self.num_pieces else self._show(int(token))

    def voken_id(self, index: int) -> int:
        """The id of codebook entry `index`.

        Raises:
          UserError: index outside 0..codebook_size-1.
        """
        if not 0 <= index < self.codebook_size:
            raise user_error(f"voken {index}", f"0..{self.codebook_size - 1}", "use the matching codebook")
        return self.base_vocab_size + int(index)

    def voken_index(self, token: int) -> int | None:
        """The codebook entry of an id; None if the id is not a voken."""
        return int(token) - self.base_vocab_size if self.base_vocab_size <= token < self.vocab_size else None

    def _show(self, token: int) -> str:
        index = self.voken_index(token)
        if index is not None:
            return f"I{index}"
        if self.num_pieces <= token < self.num_text_ids:
            return f"<extra_id_{self.num_text_ids - 1 - token}>"  # T5 counts its sentinels downwards
        raise user_error(f"token id {token}", f"an id below {self.vocab_size}", "use the matching vocabulary")


def load_tokenizer(name_or_path: str, codebook_size: int) -> Tokenizer:
    """A shipped vocabulary ("t5" with 100 extra ids, "emoji" with none) or a file with 100 extra ids.

    Raises:
      UserError: the file is missing or is not a sentencepiece model.
    """
    if name_or_path in SHIPPED:
        file, extra_ids = SHIPPED[name_or_path]
        return Tokenizer(resources.files("kaleido_jax").joinpath(file), extra_ids, codebook_size)
    return Tokenizer(Path(name_or_path), 100, codebook_size)


def vocabulary_name(fingerprint: str, codebook_size: int) -> str:
    """The vocabulary with this fingerprint, as words for a message: a shipped one has a name."""
    for name in SHIPPED:
        if load_tokenizer(name, codebook_size).fingerprint == fingerprint:
            return f"vocabulary {name!r}"
    return f"a vocabulary of its own ({fingerprint})"


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is at least `value`."""
    return -(-value // multiple) * multiple


def _until_eos(ids: Iterable[SupportsIndex]) -> Iterator[SupportsIndex]:
    for token in ids:
        if token == EOS_ID:
            return
        yield token


def _read(path: Path | Traversable | str) -> bytes:
    try:
        return (Path(path) if isinstance(path, str) else path).read_bytes()
    except OSError as error:
        raise user_error(
            f"vocabulary {path} cannot be read ({error.strerror})",
            "a sentencepiece model file",
            "correct the path",
        ) from error


def _load(model: bytes, path: Path | Traversable | str) -> sentencepiece.SentencePieceProcessor:
    pieces = sentencepiece.SentencePieceProcessor()
    do = "download the raw file again"
    if model.startswith(b"version https://git-lfs"):
        do = "it is a git-LFS pointer: run `git lfs pull`"
    elif model.startswith(b"{"):
        do = "it is JSON, as Hugging Face's tokenizer.json: name the spiece.model beside it"
    expected = "a sentencepiece model"
    try:
        # Empty bytes mean "no model yet" to the library and would fail only later.
        loaded = bool(model) and pieces.LoadFromSerializedProto(model) and pieces.get_piece_size() > UNK_ID
    except RuntimeError as error:
        raise user_error(f"{path} ({len(model)} bytes) is not a model file", expected, do) from error
    if not loaded:
        raise user_error(f"{path} ({len(model)} bytes) is not a model file", expected, do)
    special = (pieces.pad_id(), pieces.eos_id(), pieces.unk_id())
    if special != (PAD_ID, EOS_ID, UNK_ID):
        raise user_error(f"{path} with pad, eos, unk = {special}", "0, 1, 2 as in T5", "use a T5 vocabulary")
    return pieces
