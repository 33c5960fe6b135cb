import dataclasses

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kaleido_jax.latents import grammar
from kaleido_jax.latents.tokenizer import load_tokenizer
from kaleido_jax.latents.types import (
    SEGMENTS,
    Blob,
    Box,
    Latents,
    LatentsError,
    clean_phrase,
    clean_text,
    select,
    validate,
)

TOKENIZERS = {name: load_tokenizer(name, num_vokens) for name, num_vokens in (("t5", 8192), ("fashion", 64))}
QUICK = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
CHOICES = st.lists(st.sampled_from(SEGMENTS), unique=True).map(lambda s: tuple(x for x in SEGMENTS if x in s))

anything = st.one_of(
    st.text(max_size=30),
    st.text("aI1(#|), \u2581\u3000.-", max_size=20),
    st.sampled_from(
        ["I17#I403", "</s> <pad>", "<extra_id_0>", "a | b", "x, | y,", "½ ﬁ (ｗｉｄｅ)", "boot (1, 2, 3, 4)"]
    ),
)
coordinate = st.integers(0, 1000)


def cleaned(clean):
    def attempt(string):
        try:
            return clean(string)
        except LatentsError:
            return "boot"

    return anything.map(attempt)


boxes = st.builds(
    lambda phrase, x, y: Box(phrase=phrase, box=(min(x), min(y), max(x), max(y))),
    cleaned(clean_phrase),
    st.sets(coordinate, min_size=2, max_size=2),
    st.sets(coordinate, min_size=2, max_size=2),
)
blobs = st.builds(
    lambda phrase, xc, yc, r, theta: Blob(phrase=phrase, blob=(xc, yc, max(r), min(r), theta)),
    cleaned(clean_phrase),
    coordinate,
    coordinate,
    st.lists(st.integers(1, 1000), min_size=2, max_size=2),
    st.integers(0, 179),
)
latents = st.builds(
    Latents,
    text=cleaned(clean_text),
    bbox=st.lists(boxes, max_size=3).map(tuple),
    blob=st.lists(blobs, max_size=3).map(tuple),
    voken=st.lists(st.integers(0, 63), min_size=1, max_size=9).map(tuple),
)


@QUICK
@given(latents, CHOICES)
def test_string_round_trip_is_exact(z, segments):
    wanted = select(z, segments)
    assert grammar.parse(grammar.serialise(z, segments), segments) == wanted
    assert Latents.from_json(wanted.to_json()) == wanted


@QUICK
@given(latents, CHOICES, st.sampled_from(sorted(TOKENIZERS)))
def test_token_round_trip_is_exact(z, segments, name):
    tokenizer = TOKENIZERS[name]
    try:
        z = grammar.fit(z, tokenizer)
    except LatentsError:
        assume(False)
    ids = grammar.to_tokens(z, segments, tokenizer)
    assert ids[-1] == tokenizer.eos_id and all(i in range(tokenizer.rows) for i in ids)
    assert grammar.from_tokens(ids + [0, 0, 5], segments, tokenizer) == select(z, segments)


@QUICK
@given(latents, st.sampled_from(sorted(TOKENIZERS)))
def test_joined_segment_tokens_equal_tokens_of_the_joined_string(z, name):
    tokenizer, segments = TOKENIZERS[name], ("text", "bbox", "blob")
    try:
        z = grammar.fit(z, tokenizer)
    except LatentsError:
        assume(False)
    assert grammar.to_tokens(z, segments, tokenizer)[:-1] == tokenizer.encode(grammar.serialise(z, segments))


@QUICK
@given(latents, CHOICES, st.data())
def test_mutated_strings_are_refused_or_valid(z, segments, data):
    string = grammar.serialise(z, segments)
    start = data.draw(st.integers(0, len(string)))
    stop = data.draw(st.integers(start, min(len(string), start + 4)))
    mutated = string[:start] + data.draw(anything) + string[stop:]
    try:
        found = grammar.parse(mutated, segments)
    except LatentsError as error:
        assert "\n" not in str(error)
        return
    assert validate(found) is found
    assert grammar.parse(grammar.serialise(found, segments), segments) == found


@QUICK
@given(latents, CHOICES, st.sampled_from(sorted(TOKENIZERS)), st.data())
def test_mutated_tokens_are_refused_or_valid(z, segments, name, data):
    tokenizer = TOKENIZERS[name]
    try:
        ids = grammar.to_tokens(grammar.fit(z, tokenizer), segments, tokenizer)
    except LatentsError:
        assume(False)
    for _ in range(data.draw(st.integers(1, 3))):
        ids[data.draw(st.integers(0, len(ids) - 1))] = data.draw(st.integers(0, tokenizer.rows - 1))
    try:
        found = grammar.from_tokens(ids, segments, tokenizer)
    except LatentsError:
        return
    assert validate(found) is found


def test_serialised_form_is_the_papers():
    z = Latents(
        text="a small black boot",
        bbox=(Box(phrase="boot", box=(1, 33, 995, 995)), Box(phrase="lap", box=(1, 630, 785, 998))),
        blob=(Blob(phrase="boot", blob=(500, 514, 410, 90, 12)),),
        voken=(17, 403),
    )
    assert grammar.serialise(z, SEGMENTS) == (
        "a small black boot | boot (1, 33, 995, 995) lap (1, 630, 785, 998) | boot (500, 514, 410, 90, 12) | I17#I403"
    )
    ids = grammar.segment_tokens(z, "voken", TOKENIZERS["t5"])
    assert ids == [32128 + 17, 4663, 32128 + 403]


def test_text_that_looks_like_vokens_stays_text():
    tokenizer = TOKENIZERS["t5"]
    z = Latents(text="I17#I403", voken=(17,))
    ids = grammar.segment_tokens(z, "text", tokenizer)
    assert max(ids) < tokenizer.num_pieces
    assert grammar.from_tokens(grammar.to_tokens(z, ("text", "voken"), tokenizer), ("text", "voken"), tokenizer) == z


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text": "a | b"}, "text with '|'"),
        ({"text": "two  spaces"}, "single spaces"),
        ({"text": ""}, "empty text"),
        ({"bbox": (Box(phrase="boot (left)", box=(1, 2, 3, 4)),)}, "phrase of bbox"),
        ({"bbox": (Box(phrase="boot", box=(3, 2, 1, 4)),)}, "x1 < x2"),
        ({"blob": (Blob(phrase="boot", blob=(1, 2, 3, 4, 5)),)}, "r_minor <= r_major"),
        ({"blob": (Blob(phrase="boot", blob=(1, 2, 4, 3, 180)),)}, "theta < 180"),
        ({"voken": ()}, "at least one"),
        ({"voken": None}, "latents without voken"),
    ],
)
def test_latents_that_cannot_round_trip_are_refused(change, told):
    good = Latents(text="a", bbox=(), blob=(), voken=(1,))
    with pytest.raises(LatentsError, match=told.replace("|", r"\|")):
        grammar.serialise(dataclasses.replace(good, **change), SEGMENTS)


def test_wrong_number_of_vokens_and_unknown_voken_are_refused():
    tokenizer = TOKENIZERS["fashion"]
    ids = grammar.to_tokens(Latents(voken=(1, 2, 3)), ("voken",), tokenizer)
    assert grammar.from_tokens(ids, ("voken",), tokenizer, num_vokens=3).voken == (1, 2, 3)
    with pytest.raises(LatentsError, match="3 vokens; expected 4"):
        grammar.from_tokens(ids, ("voken",), tokenizer, num_vokens=4)
    with pytest.raises(LatentsError, match="voken 64"):
        grammar.to_tokens(Latents(voken=(64,)), ("voken",), tokenizer)


def test_characters_outside_the_vocabulary_are_told_and_fit_drops_them():
    z = Latents(text="a {boot} ~")
    with pytest.raises(LatentsError, match="vocabulary knows"):
        grammar.to_tokens(z, ("text",), TOKENIZERS["t5"])
    assert grammar.fit(z, TOKENIZERS["t5"]).text == "a boot"


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
