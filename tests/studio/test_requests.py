"""Bodies of requests: what is refused, in one line."""

import copy
import json

import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.latents.types import Latents
from kaleido_jax.latents.types import Latents as L
from kaleido_jax.sampling.recipe import load_recipe
from kaleido_jax.studio.requests import Generate, parse

RECIPE = {
    "format": 1,
    "model": {"name": "m", "step": 1, "config": "c", "weights": "w", "worse": None, "precision": "float32"},
    "seed": 0,
    "sample": {},
    "rows": [{"caption": "a", "noise_indices": [0]}],
    "history": [],
}


def with_box(*numbers):
    return {"bbox": [{"phrase": "a", "box": list(numbers)}]}


def test_a_request_keeps_what_it_says():
    body = {"caption": "bird", "variations": 3, "seed": 7, "settings": {"gamma": 2.0}, "keep": {"text": "a bird"}}
    expected = Generate(caption="bird", indices=(0, 1, 2), seed=7, settings={"gamma": 2.0}, keep=Latents(text="a bird"))
    assert parse("generate", json.dumps(body).encode()) == expected
    edit = parse("edit", json.dumps({"recipe": RECIPE, "latents": with_box(1, 2, 3, 4), "follow": True}).encode())
    assert edit.arguments["bbox"] == L.from_json(with_box(1, 2, 3, 4)).bbox and edit.arguments["follow"] is True
    assert edit.recipe == load_recipe(RECIPE)


def test_vokens_are_not_limited_as_objects_are():
    vokens = list(range(5_000, 9_096))  # 64 x 64 of a large codebook
    body = {"recipe": RECIPE, "latents": {"voken": vokens}}
    assert parse("edit", json.dumps(body).encode()).arguments["voken"] == tuple(vokens)


@pytest.mark.parametrize("name", ["generate", "edit", "draw", "modes"])
@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"[]", b"null", b'{"caption": NaN}', b"[" * 100_000, b'{"a": 1e999}']
)
def test_a_body_that_is_no_object_is_refused(name, body):
    refused(name, body)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"caption": 3},
        {"caption": ["fruit"]},
        {"caption": "x" * 1_000_000},
        {"caption": "a", "variations": 0},
        {"caption": "a", "variations": 9},
        {"caption": "a", "variations": True},
        {"caption": "a", "variations": "2"},
        {"caption": "a", "indices": []},
        {"caption": "a", "indices": [-1]},
        {"caption": "a", "indices": [0] * 9},
        {"caption": "a", "seed": -1},
        {"caption": "a", "seed": 2**32},
        {"caption": "a", "seed": 1.5},
        {"caption": "a", "settings": {"autoguidance_workdir": "/etc"}},
        {"caption": "a", "settings": {"micro": [["scale", 1]]}},
        {"caption": "a", "settings": {"num_steps": 10**9}},
        {"caption": "a", "settings": []},
        {"caption": "a", "settings": {"gamma": float("inf")}},
        {"caption": "a", "path": "../../etc/passwd"},
        {"caption": "a", "keep": {"text": "a\u0000b"}},
        {"caption": "a", "keep": {"text": "x" * 100_000}},
        {"caption": "a", "keep": {"nothing": 1}},
        {"caption": "a", "keep": with_box(999, 1, 0, 1001)},
        {"caption": "a", "keep": with_box(0, 0, 1e3, 1)},
        {"caption": "a", "keep": {"bbox": with_box(0, 0, 1, 1)["bbox"] * 100}},
        {"caption": "a", "keep": {"blob": [{"phrase": "a", "blob": [500, 500, 0, 0, 90]}]}},
        {"caption": "a", "keep": {"voken": ["1"]}},
    ],
)
def test_a_field_that_is_wrong_is_refused(fields):
    refused("generate", json.dumps(fields).encode())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda recipe: recipe.pop("rows"),
        lambda recipe: recipe.update(rows=[]),
        lambda recipe: recipe.update(rows=[RECIPE["rows"][0] | {"noise_indices": list(range(9))}]),
        lambda recipe: recipe.update(rows=RECIPE["rows"] * 9),
        lambda recipe: recipe.update(path="../../x"),
        lambda recipe: recipe.update(sample={"sampler": "../x"}),
        lambda recipe: recipe.update(seed=-1),
        lambda recipe: recipe.update(format=99),
    ],
)
def test_a_recipe_that_is_wrong_is_refused(spoil):
    recipe = copy.deepcopy(RECIPE)
    spoil(recipe)
    refused("draw", json.dumps({"recipe": recipe}).encode())


def refused(name, body):
    with pytest.raises(UserError) as caught:
        parse(name, body)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
