import dataclasses

import numpy as np
import pytest

from kaleido_jax.latents import grammar
from kaleido_jax.latents.codec import Codec
from kaleido_jax.latents.segments import names
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.segments.blob import Blob
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.latents.types import Latents, select, validate
from kaleido_jax.latents.validity import LatentsError, clean_phrase, clean_text

SEGMENTS = names()
TOKENIZERS = {name: load_tokenizer(name, codebook_size) for name, codebook_size in (("t5", 8192), ("emoji", 64))}
MANY = 10_000
CHOICES = [tuple(s for i, s in enumerate(SEGMENTS) if bits >> i & 1) for bits in range(16)]
SPECIAL = [
    "I17#I403",
    "</s> <pad>",
    "<extra_id_0>",
    "a | b",
    "x, | y,",
    "½ ﬁ (ｗｉｄｅ)",
    "boot (1, 2, 3, 4)",
    " | ",
    "(",
    "#",
]
ALPHABETS = [
    np.arange(0x20, 0x7F),
    np.array([ord(ch) for ch in "aI1(#|), \u2581\u3000.-\n0"]),
    np.arange(0xA0, 0x3000),
    np.arange(0x110000),
]


def codec(tokenizer, segments=SEGMENTS):
    """A codec for any number of vokens."""
    return Codec(tokenizer=tokenizer, segments=segments)


def random_strings(rng, count):
    """Strings of up to 20 characters, each of one of the alphabets, and the special ones."""
    strings = list(SPECIAL)
    for alphabet in ALPHABETS:
        letters = rng.choice(alphabet, (count // len(ALPHABETS), 20))
        lengths = rng.integers(0, 21, len(letters))
        strings += ["".join(map(chr, row[:n])) for row, n in zip(letters, lengths, strict=True)]
    return strings


def cleaned(strings, clean):
    kept = []
    for string in strings:
        try:
            kept.append(clean(string))
        except LatentsError:
            continue
    assert len(kept) > len(strings) / 2
    return kept


def random_latents(rng, count, texts, phrases):
    """Valid latents with all segments: up to two boxes and blobs, up to six vokens of 64."""
    corners = np.sort(rng.integers(0, 1000, (count, 2, 2, 2)), axis=2)
    corners[:, :, 1] += 1  # never without an area
    axes = np.sort(rng.integers(1, 1001, (count, 2, 2)))[..., ::-1]
    blobs = np.concatenate([rng.integers(0, 1001, (count, 2, 2)), axes, rng.integers(0, 180, (count, 2, 1))], axis=-1)
    vokens, lengths = rng.integers(0, 64, (count, 6)).tolist(), rng.integers(0, 3, (count, 3)).tolist()
    named = rng.integers(0, len(phrases), (count, 4)).tolist()
    said, corners, blobs = (
        rng.integers(0, len(texts), count).tolist(),
        corners.reshape(count, 2, 4).tolist(),
        blobs.tolist(),
    )
    for i in range(count):
        names = [phrases[k] for k in named[i]]
        yield Latents(
            text=texts[said[i]],
            bbox=tuple(Box(phrase=names[k], box=tuple(corners[i][k])) for k in range(lengths[i][0])),
            blob=tuple(Blob(phrase=names[2 + k], blob=tuple(blobs[i][k])) for k in range(lengths[i][1])),
            voken=tuple(vokens[i][: 2 * lengths[i][2] + 1]),
        )


def writable_latents(tokenizer, rng, count):
    """As random_latents, in words that the vocabulary can write."""
    strings = random_strings(rng, 1000)
    texts = cleaned(strings, lambda s: codec(tokenizer).fit(Latents(text=clean_text(s))).text)
    boxes = ((Box(phrase=clean_phrase(s), box=(0, 0, 1, 1)),) for s in cleaned(strings, clean_phrase))
    phrases = cleaned(list(boxes), lambda box: codec(tokenizer).fit(Latents(bbox=box)).bbox[0].phrase)
    return random_latents(rng, count, texts, phrases)


def choices(rng, count):
    return [CHOICES[k] for k in rng.integers(0, len(CHOICES), count)]


@pytest.fixture(scope="module")
def many():
    """10,000 latents with any characters that latents may hold, and which segments of each to write."""
    rng = np.random.default_rng(0)
    strings = random_strings(rng, 2000)
    latents = random_latents(rng, MANY, cleaned(strings, clean_text), cleaned(strings, clean_phrase))
    return list(zip(latents, choices(rng, MANY), strict=True))


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def many_tokens(request):
    """(tokenizer, 10,000 latents that it can write, their segments and ids)."""
    tokenizer, rng = TOKENIZERS[request.param], np.random.default_rng(1)
    rows = []
    for z, segments in zip(writable_latents(tokenizer, rng, MANY), choices(rng, MANY), strict=True):
        rows.append((z, segments, codec(tokenizer, segments).encode(z)))
    return tokenizer, rows


def test_string_round_trip_is_exact_10000_times(many):
    for z, segments in many:
        wanted = select(z, segments)
        assert grammar.parse(grammar.serialize(z, segments), segments) == wanted
        assert Latents.from_json(wanted.to_json()) == wanted


@pytest.mark.parametrize("step", [10, 20])
def test_snapped_latents_are_valid_and_near(many, step):
    """Off by half a step at most, unless a corner or an axis would leave its range; snapping again changes nothing."""
    coarse = dataclasses.replace(codec(TOKENIZERS["t5"]), coordinate_step=step)
    near = total = 0
    for z, _ in many[:1000]:
        snapped = coarse.snap(z)
        assert validate(snapped) == coarse.snap(snapped) and (snapped.text, snapped.voken) == (z.text, z.voken)
        for old, new in zip([*z.bbox, *z.blob], [*snapped.bbox, *snapped.blob], strict=True):
            old, new = (np.asarray(getattr(item, "box", getattr(item, "blob", None))) for item in (old, new))
            assert not (new % step).any()
            off = np.abs(new - old)
            off[4:] = np.minimum(off[4:], 180 - off[4:])  # a half turn is the same ellipse
            near, total = near + (off <= step / 2).sum(), total + off.size
    assert near / total > 0.96
    assert codec(TOKENIZERS["t5"]).snap(many[0][0]) is many[0][0]


def test_token_round_trip_is_exact_10000_times(many_tokens):
    tokenizer, rows = many_tokens
    for z, segments, ids in rows:
        assert ids[-1] == tokenizer.eos_id and min(ids) >= 0 and max(ids) < tokenizer.vocab_size
        assert codec(tokenizer, segments).decode([*ids, 0, 0, 5]) == select(z, segments)


def test_joined_segment_tokens_equal_tokens_of_the_joined_string(many_tokens):
    tokenizer, rows = many_tokens
    for z, segments, ids in rows[:2000]:
        if "voken" not in segments:
            assert ids[:-1] == tokenizer.encode(grammar.serialize(z, segments))


def test_10000_mutated_strings_are_refused_or_valid(many):
    rng = np.random.default_rng(2)
    pieces, refused = random_strings(rng, 400), 0
    cuts = np.sort(rng.random((MANY, 2)))
    inserted = rng.integers(0, len(pieces), MANY)
    for (z, segments), (start, stop), piece in zip(many, cuts, inserted, strict=True):
        string = grammar.serialize(z, segments)
        start = int(start * len(string))
        stop = min(int(stop * len(string)), start + 4)
        try:
            found = grammar.parse(string[:start] + pieces[piece] + string[stop:], segments)
        except LatentsError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        assert validate(found) is found
        assert grammar.parse(grammar.serialize(found, segments), segments) == found
    assert 0.1 * MANY < refused < 0.9 * MANY  # both ways were taken


def test_10000_mutated_tokens_are_refused_or_valid(many_tokens):
    tokenizer, rows = many_tokens
    rng = np.random.default_rng(3)
    places, others = rng.random((MANY, 2)), rng.integers(0, tokenizer.vocab_size, (MANY, 2))
    refused = 0
    for (_, segments, ids), at, other in zip(rows, places, others, strict=True):
        ids = list(ids)
        for place, token in zip(at, other, strict=True):
            ids[int(place * len(ids))] = int(token)
        try:
            found = codec(tokenizer, segments).decode(ids)
        except LatentsError:
            refused += 1
            continue
        assert validate(found) is found
    assert 0.1 * MANY < refused < 0.99 * MANY


def test_serialized_form_is_the_papers():
    z = Latents(
        text="a small black boot",
        bbox=(Box(phrase="boot", box=(1, 33, 995, 995)), Box(phrase="lap", box=(1, 630, 785, 998))),
        blob=(Blob(phrase="boot", blob=(500, 514, 410, 90, 12)),),
        voken=(17, 403),
    )
    assert grammar.serialize(z, SEGMENTS) == (
        "a small black boot | boot (1, 33, 995, 995) lap (1, 630, 785, 998) | boot (500, 514, 410, 90, 12) | I17#I403"
    )
    ids = codec(TOKENIZERS["t5"]).segment_tokens(z, "voken")
    assert ids == [32128 + 17, 4663, 32128 + 403]


def test_text_that_looks_like_vokens_stays_text():
    tokenizer = TOKENIZERS["t5"]
    z = Latents(text="I17#I403", voken=(17,))
    words = codec(tokenizer, ("text", "voken"))
    assert max(words.segment_tokens(z, "text")) < tokenizer.num_pieces
    assert words.decode(words.encode(z)) == z


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "a | b"}, "text with '|'"),
        ({"text": "two  spaces"}, "spaces together"),
        ({"text": ""}, "empty text"),
        ({"bbox": (Box(phrase="boot (left)", box=(1, 2, 3, 4)),)}, "phrase of bbox"),
        ({"bbox": (Box(phrase="boot", box=(3, 2, 1, 4)),)}, "x1 < x2"),
        ({"blob": (Blob(phrase="boot", blob=(1, 2, 3, 4, 5)),)}, "r_minor <= r_major"),
        ({"blob": (Blob(phrase="boot", blob=(1, 2, 4, 3, 180)),)}, "theta < 180"),
        ({"voken": ()}, "at least one"),
        ({"voken": None}, "latents without voken"),
    ],
)
def test_latents_that_cannot_round_trip_are_refused(change, message):
    good = Latents(text="a", bbox=(), blob=(), voken=(1,))
    with pytest.raises(LatentsError, match=message.replace("|", r"\|")):
        grammar.serialize(good.replace(**change), SEGMENTS)


def test_wrong_number_of_vokens_and_unknown_voken_are_refused():
    three = Codec(tokenizer=TOKENIZERS["emoji"], segments=("voken",), vokens_per_image=3)
    ids = three.encode(Latents(voken=(1, 2, 3)))
    assert three.decode(ids).voken == (1, 2, 3)
    with pytest.raises(LatentsError, match="3 vokens; expected 4"):
        dataclasses.replace(three, vokens_per_image=4).decode(ids)
    for count in (2, 4):
        with pytest.raises(LatentsError, match=f"{count} vokens; expected 3 per image"):
            three.encode(Latents(voken=(5,) * count))
    with pytest.raises(LatentsError, match="vokens joined by '#'"):
        three.decode([ids[0], ids[0], ids[2], three.tokenizer.eos_id])
    with pytest.raises(LatentsError, match="voken 64"):
        three.encode(Latents(voken=(1, 2, 64)))


def test_characters_outside_the_vocabulary_are_reported_and_fit_drops_them():
    z = Latents(text="a {boot} ~")
    with pytest.raises(LatentsError, match="the vocabulary has no '{', '}', '~'; expected .*; replace or remove these"):
        codec(TOKENIZERS["t5"], ("text",)).encode(z)
    assert codec(TOKENIZERS["t5"]).fit(z).text == "a boot"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("emoji", "a caf\u00e9", "text 'a caf\u00e9', but the vocabulary has no '\u00e9'; expected"),
        ("emoji", "".join(map(chr, range(0x4E00, 0x4E28))), "has no '\u4e00', .*'\u4e07' and 32 more; expected"),
        ("t5", "a boot \u2460", "text 'a boot \u2460', which the vocabulary reads as 'a boot 1'; expected"),
        ("t5", "a | b", "text with .\\|.; expected none of these; remove them"),
        (
            "t5",
            "a  b",
            "text with spaces together or at an end; expected single ones inside; remove the others",
        ),
    ],
    ids=["unknown", "many", "normalized", "reserved", "spaces"],
)
def test_refusals_name_the_characters_and_no_function(name, text, line):
    with pytest.raises(LatentsError, match=line) as caught:
        codec(TOKENIZERS[name], ("text",)).encode(Latents(text=text))
    assert "()" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(("segment", "kind", "numbers"), [("bbox", Box, (1, 2, 3, 4)), ("blob", Blob, (1, 2, 3, 4, 5))])
def test_fit_drops_objects_of_whose_phrase_nothing_is_left_but_not_all_of_them(segment, kind, numbers):
    fit = codec(TOKENIZERS["t5"]).fit
    dog, exit_sign, empty = kind("dog", numbers), kind("出口", numbers), Latents(**{segment: ()})
    assert fit(Latents(**{segment: (exit_sign, dog)})) == Latents(**{segment: (dog,)})
    assert fit(empty) == empty
    with pytest.raises(LatentsError, match="words '出口' that cannot be written; expected characters the vocabulary"):
        fit(Latents(**{segment: (exit_sign,)}))


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"txt": "a"},
        {"text": 3},
        {"bbox": [{"phrase": "boot"}]},
        {"bbox": [{"phrase": "boot", "box": [1, 2, 3, 4.0]}]},
        {"bbox": {"phrase": "boot"}},
        {"blob": [{"phrase": "boot", "blob": [1, 2, 3]}]},
        {"voken": "17"},
        {"voken": [True]},
    ],
)
def test_json_of_another_form_is_refused(value):
    with pytest.raises(LatentsError):
        Latents.from_json(value)


def test_segments_out_of_order_are_refused():
    with pytest.raises(LatentsError, match="this order"):
        grammar.parse("a | b", ("bbox", "text"))
    with pytest.raises(LatentsError, match="one of text, bbox, blob, voken"):
        grammar.parse("a", ("txt",))
