import copy
import json
import pickle

import numpy as np
import pytest

from kaleido_jax.latents.segments.bbox import Box
from kaleido_jax.latents.segments.blob import Blob
from kaleido_jax.latents.types import Latents, segments_of, validate
from kaleido_jax.latents.validity import LatentsError

Z = Latents(voken=[1, 2], text="a boot", bbox=[Box("boot", [1, 33, 995, 995])])


def test_lists_are_taken_for_tuples_and_segments_stand_in_order():
    assert Latents(text="a boot", bbox=(Box(phrase="boot", box=(1, 33, 995, 995)),), voken=(1, 2)) == Z
    assert segments_of(Z) == ("text", "bbox", "voken") and list(Z.to_json()) == ["text", "bbox", "voken"]
    assert repr(Z) == "Latents(text='a boot', bbox=(Box(phrase='boot', box=(1, 33, 995, 995)),), voken=(1, 2))"
    assert Z.blob is None and Blob("a", [1, 2, 4, 3, 0]).blob == (1, 2, 4, 3, 0)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("of", [np.array, lambda numbers: tuple(np.array(numbers, np.int32)), lambda n: [*np.array(n)]])
def test_arrays_and_integers_of_numpy_are_the_same_values(of):
    z = Latents(voken=of([1, 2]), text="a boot", bbox=[Box("boot", of([1, 33, 995, 995]))])
    assert validate(z) == Z and json.dumps(z.to_json()) == json.dumps(Z.to_json())
    assert json.dumps(Blob("a", of([1, 2, 4, 3, 0])).blob) == "[1, 2, 4, 3, 0]"
    for wrong in (Latents(bbox=[Box("boot", np.array([1.0, 2, 3, 4]))]), Latents(voken=np.array([True, False]))):
        with pytest.raises(LatentsError, match="whole number"):
            validate(wrong)


def test_latents_are_values():
    assert {Z: 1}[Z.replace()] == 1 and Z.replace(voken=(1,)) != Z and Z != "a boot"
    assert pickle.loads(pickle.dumps(Z)) == copy.copy(Z) == copy.deepcopy(Z) == Z
    for change in (lambda: setattr(Z, "text", "b"), lambda: delattr(Z, "text"), lambda: setattr(Z, "new", 1)):
        with pytest.raises(AttributeError, match="immutable"):
            change()
    assert Z.text == "a boot"


def test_replace_changes_adds_and_takes_out():
    assert Z.replace(text="b", blob=[]) == Latents(text="b", bbox=Z.bbox, blob=(), voken=(1, 2))
    assert segments_of(Z.replace(text=None)) == ("bbox", "voken") and Z.replace() == Z


def test_unknown_segments_are_named_with_the_nearest():
    with pytest.raises(LatentsError, match="did you mean 'bbox'"):
        Latents(bboxs=[])
    with pytest.raises(AttributeError, match="no segment 'txt'"):
        Z.txt  # noqa: B018


def test_nothing_is_checked_before_validate():
    wrong = Latents(bbox=[Box("boot", (9, 9, 1, 1))])
    with pytest.raises(LatentsError, match="x1 < x2"):
        validate(wrong)
    with pytest.raises(LatentsError, match="objects of type Box"):
        validate(Latents(bbox=[Blob("boot", (1, 2, 4, 3, 0))]))
