"""Latents <-> string and latents <-> tokens: "text | bbox | blob | voken", then eos.

At token level vokens are single ids and never pass through a string: text that looks like a voken stays text.
"""

import re
from collections.abc import Sequence
from typing import Any

from kaleido_jax.latents.tokenizer import Tokenizer
from kaleido_jax.latents.types import (
    Blob,
    Box,
    Latents,
    LatentsError,
    check_segments,
    clean_phrase,
    clean_text,
    latents_error,
    select,
    validate,
)

SEPARATOR = "|"
_NUMBERS = re.compile(r"\(([^()]*)\)")
_VOKEN = re.compile(r"I([0-9]{1,9})", re.ASCII)
_WHOLE = re.compile(r"[0-9]{1,4}", re.ASCII)


# ------------------------------------------------------------------------------------------ string level
def serialize(z: Latents, segments: Sequence[str]) -> str:
    """The segments of z in one line; parse() gives them back exactly.

    Raises:
      LatentsError: z is not valid or lacks a segment.
    """
    z = validate(select(z, segments))
    return f" {SEPARATOR} ".join(_WRITE[s](getattr(z, s)) for s in segments)


def parse(string: str, segments: Sequence[str]) -> Latents:
    """The latents in a line that holds exactly these segments.

    Raises:
      LatentsError: what is wrong with the line.
    """
    segments = check_segments(segments)
    parts = string.split(SEPARATOR) if segments else []
    if len(parts) != len(segments):
        raise wrong_count(len(parts), segments)
    return validate(Latents(**{s: _READ[s](part.strip()) for s, part in zip(segments, parts, strict=True)}))


def _write_objects(field):
    return lambda items: " ".join(f"{i.phrase} ({', '.join(map(str, getattr(i, field)))})" for i in items)


def _write_voken(voken):
    return "#".join(f"I{v}" for v in voken)


def _read_text(part):
    return " ".join(part.split())


def _read_objects(kind, field, count):
    def read(part):
        # Splitting at the numbers leaves phrase, numbers, phrase, numbers, ..., rest.
        *pairs, rest = _NUMBERS.split(part)
        if rest.strip():
            raise latents_error(f"{field} list ends in {rest.strip()[:60]!r}", "a closing ')'", "add or drop it")
        phrases, numbers = pairs[::2], pairs[1::2]
        return tuple(
            kind(phrase=" ".join(phrase.split()), **{field: _read_numbers(values, field, count)})
            for phrase, values in zip(phrases, numbers, strict=True)
        )

    return read


def _read_numbers(values, field, count):
    numbers = [value.strip() for value in values.split(",")]
    if len(numbers) != count or not all(_WHOLE.fullmatch(n) for n in numbers):
        raise latents_error(f"{field} ({values[:60]})", f"{count} whole numbers", "write (1, 2, ...)")
    return tuple(int(n) for n in numbers)


def _read_voken(part):
    found = [_VOKEN.fullmatch(token.strip()) for token in part.split("#")]
    if not all(found):
        raise latents_error(f"voken list {part[:60]!r}", "the form I17#I403", "correct it")
    return tuple(int(match[1]) for match in found)


_WRITE = {
    "text": str,
    "bbox": _write_objects("box"),
    "blob": _write_objects("blob"),
    "voken": _write_voken,
}
_READ = {
    "text": _read_text,
    "bbox": _read_objects(Box, "box", 4),
    "blob": _read_objects(Blob, "blob", 5),
    "voken": _read_voken,
}


# ------------------------------------------------------------------------------------------- token level
def segment_tokens(z: Latents, segment: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of one segment, without separator and eos."""
    if segment == "voken":
        return _voken_tokens(z.voken, tokenizer)
    string = _WRITE[segment](getattr(z, segment))
    ids = tokenizer.encode(string)
    if tokenizer.decode(ids) != string:
        raise latents_error(
            f"{segment} {string[:80]!r} reads back as {tokenizer.decode(ids)[:80]!r}",
            "characters the vocabulary knows",
            "replace them, or use Codec.fit()",
        )
    return ids


def fit(z: Latents, tokenizer: Tokenizer) -> Latents:
    """Changes text and phrases of z to what the vocabulary can write: unknown characters are dropped.

    Raises:
      LatentsError: nothing of a text or phrase is left.
    """
    return Latents(
        text=None if z.text is None else _fit_words(z.text, clean_text, tokenizer),
        bbox=_fit_objects(z.bbox, "box", Box, tokenizer),
        blob=_fit_objects(z.blob, "blob", Blob, tokenizer),
        voken=z.voken,
    )


def _voken_tokens(voken, tokenizer):
    highest = max(voken)
    if highest >= tokenizer.codebook_size:
        raise latents_error(f"voken {highest}", f"0..{tokenizer.codebook_size - 1}", "use the matching codebook")
    joined = [tokenizer.hash_id] * (2 * len(voken) - 1)
    joined[::2] = [tokenizer.voken_id(index) for index in voken]
    return joined


def wrong_count(found: int, segments: Sequence[str]) -> LatentsError:
    """The error of a line or sequence with another number of segments."""
    return latents_error(
        f"{found} segments", f"{len(segments)} ({', '.join(segments)})", "check the ' | ' between them"
    )


def segment_from_tokens(segment: str, ids: Sequence[int], tokenizer: Tokenizer) -> Any:
    """The value of one segment."""
    if segment == "voken":
        return _vokens_from_tokens(ids, tokenizer)
    foreign = [i for i in ids if not tokenizer.unk_id < i < tokenizer.num_pieces]
    if foreign:
        raise latents_error(f"token {foreign[0]} in {segment}", "pieces of the vocabulary only", "sample again")
    return _READ[segment](tokenizer.decode(ids))


def _vokens_from_tokens(ids, tokenizer):
    vokens = tuple(tokenizer.voken_index(token) for token in ids[::2])
    joints = set(ids[1::2])
    if len(ids) % 2 == 0 or None in vokens or joints - {tokenizer.hash_id}:
        raise latents_error(f"voken tokens {ids[:8]}", "vokens joined by '#'", "sample again")
    return vokens


def _fit_objects(items, field, kind, tokenizer):
    if items is None:
        return None
    return tuple(
        kind(phrase=_fit_words(i.phrase, clean_phrase, tokenizer), **{field: getattr(i, field)}) for i in items
    )


def _fit_words(words, clean, tokenizer):
    # Dropping a character can bring its neighbors together into something new, hence until nothing changes.
    for _ in range(8):
        ids = [i for i in tokenizer.encode(clean(words)) if i != tokenizer.unk_id]
        known = clean(tokenizer.decode(ids))
        if known == words:
            return known
        words = known
    raise LatentsError(f"words {words[:60]!r} cannot be written; expected plain text; simplify them")
