"""Edits of z by addresses, as the verb `edit` takes them."""

import pytest

from kaleido_jax.latents.address import assign
from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.segments.blob import Blob
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.validity import LatentsError

Z = Latents(
    text="a fruit",
    bbox=(Box("apple", (1, 2, 3, 4)), Box("pear", (5, 6, 7, 8))),
    blob=(Blob("apple", (1, 2, 4, 3, 5)),),
    voken=(1, 2, 3),
)
APPLE, PEAR = Z.bbox


@pytest.mark.parametrize(
    ("address", "text", "segment"),
    [
        ("text", "17 red (apples), so", {"text": "17 red (apples), so"}),
        ("bbox", "plum (1, 2, 30, 40)", {"bbox": (Box("plum", (1, 2, 30, 40)),)}),
        ("bbox", "plum (1, 2, 3, 4), pear (5, 6, 7, 8)", {"bbox": (Box("plum", APPLE.box), PEAR)}),
        ("bbox", "plum(1,2,3,4);pear(5,6,7,8);", {"bbox": (Box("plum", APPLE.box), PEAR)}),
        ("bbox", "plum (1, 2, 3, 4) and pear (5, 6, 7, 8).", {"bbox": (Box("plum", APPLE.box), PEAR)}),
        (
            "bbox",
            "salt and plum (1, 2, 3, 4), and pear (5, 6, 7, 8)",
            {"bbox": (Box("salt and plum", APPLE.box), PEAR)},
        ),
        (
            "bbox",
            "plum (1, 2, 3, 4) android (5, 6, 7, 8)",
            {"bbox": (Box("plum", APPLE.box), Box("android", PEAR.box))},
        ),
        (
            "blob",
            "plum (1, 2, 4, 3, 5), fig (1, 2, 4, 3, 5)",
            {"blob": tuple(Blob(p, (1, 2, 4, 3, 5)) for p in ("plum", "fig"))},
        ),
        ("bbox.1", "plum (1, 2, 3, 5),", {"bbox": (APPLE, Box("plum", (1, 2, 3, 5)))}),
        ("bbox.1.phrase", " green\u00a0 pear\n", {"bbox": (APPLE, Box("green pear", PEAR.box))}),
        ("bbox.1", " green\u200b pe\u00adar (5, 6, 7, 8) ", {"bbox": (APPLE, Box("green pear", PEAR.box))}),
        ("text", " a  green\u200b pear, (ripe), so;", {"text": "a green pear, (ripe), so;"}),
        ("bbox.0", "(100,420,480,900)", {"bbox": (Box("apple", (100, 420, 480, 900)), PEAR)}),
        ("bbox.0", "[1, 2, 9, 9]", {"bbox": (Box("apple", (1, 2, 9, 9)), PEAR)}),
        ("bbox.1", "plum (1, 2, 3, 5)", {"bbox": (APPLE, Box("plum", (1, 2, 3, 5)))}),
        ("bbox.2", "plum (1, 2, 3, 5)", {"bbox": (APPLE, PEAR, Box("plum", (1, 2, 3, 5)))}),
        ("bbox.0", "", {"bbox": (PEAR,)}),
        ("bbox.1.phrase", "green pear", {"bbox": (APPLE, Box("green pear", PEAR.box))}),
        ("bbox.1.box", "1, 2, 3, 5", {"bbox": (APPLE, Box("pear", (1, 2, 3, 5)))}),
        ("bbox.0.box.2", "900", {"bbox": (Box("apple", (1, 2, 900, 4)), PEAR)}),
        ("blob.0.blob.4", "90", {"blob": (Blob("apple", (1, 2, 4, 3, 90)),)}),
        ("voken", "4,5", {"voken": (4, 5)}),
        ("voken", "I4#I5", {"voken": (4, 5)}),
        ("voken.1", "9", {"voken": (1, 9, 3)}),
    ],
)
def test_a_value_is_set_and_all_else_stays(address, text, segment):
    assert assign(Z, address, text) == Z.replace(**segment)


def test_objects_may_be_added_where_there_are_none():
    assert assign(Z.replace(bbox=()), "bbox.0", "apple (1, 2, 3, 4)").bbox == (APPLE,)


@pytest.mark.parametrize(
    ("address", "text", "message"),
    [
        ("txt", "a", "did you mean 'text'"),
        ("text", "", "text without a value"),
        ("text", "a | b", "text with"),
        ("text.0", "a", "no text.0 in z"),
        ("bbox.3", "(1, 2, 3, 4)", "no '3' at bbox.3; expected 0..1, or 2 to add"),
        ("bbox.-1", "(1, 2, 3, 4)", "no '-1'"),
        ("bbox.x", "(1, 2, 3, 4)", "no 'x'"),
        ("bbox.2", "(1, 2, 3, 4)", "empty phrase"),
        ("bbox.2", "", "no '2'"),
        ("bbox.0", "(4, 3, 2, 1)", "x1 < x2"),
        ("bbox.0", "(1, 2, 3)", "4 whole numbers"),
        ("bbox.0", "(1, 2, 3, 4.5)", "4 whole numbers"),
        ("bbox.0", "a (1, 2, 3, 4) b (1, 2, 3, 4)", "one entry"),
        ("bbox.0.phrse", "a", "did you mean 'phrase'"),
        ("bbox.0.phrase", "a (b)", "phrase of bbox with '\\(', '\\)'; expected none of these; remove them$"),
        ("bbox.0.phrase", " ", "empty phrase"),
        ("bbox", "apple (1, 2, 3, 4), (1, 2, 3, 4)", "empty phrase"),
        ("bbox", "apple (1, 2, 3, 4), pear", "list ends in 'pear'"),
        ("bbox.0.phrase.1", "a", "nothing below a value"),
        ("bbox.0.box", "apple", "whole numbers"),
        ("bbox.0.box.2", "", "4 whole numbers"),
        ("bbox.0.box.2", "1, 2", "one whole number"),
        ("voken.0", "-1", "none negative"),
        ("voken", "a b", "form I17#I403"),
        ("", "a", "segment ''"),
    ],
)
def test_what_cannot_stand_there_is_refused_in_one_line(address, text, message):
    with pytest.raises(LatentsError, match=message) as error:
        assign(Z, address, text)
    assert "\n" not in str(error.value)
