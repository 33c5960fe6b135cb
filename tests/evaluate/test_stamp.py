"""Numbers go together only if they are of one kind."""

import dataclasses

import numpy as np
import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.evaluate import sets
from kaleido_jax.evaluate.features.inception import FID_NAME
from kaleido_jax.evaluate.metrics.manifold import manifold
from kaleido_jax.evaluate.sets import SetProtocol, measure_set, reference_of
from kaleido_jax.evaluate.stamp import COMPARED, Stamp, check_alike, read_result, table

IDENTITY = {"extractor": "efficientnet-lite0", "weights": "0123456789abcdef", "resize": "clean-fid 128"}
SAMPLED = {
    "checkpoint": "aa",
    "prior": "",
    "sampler": "ddim",
    "num_steps": 50,
    "guidance": "cfg",
    "gamma": 2.0,
    "seeds": (0, 1),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    protocol = SetProtocol(
        extractors=("efficientnet",), resize="clean-fid", num_samples=60, num_reference=80, num_neighbors=50
    )
    monkeypatch.setitem(sets.SET_PROTOCOLS, "small", protocol)


def rows(number, seed=0):
    return np.random.default_rng(seed).normal(size=(number, 8)).astype(np.float32)


def reference(number=80, identity=IDENTITY):
    return reference_of(rows(number), name="scenes 12ab", split="train", identity=identity)


def result(**changed):
    stamp_fields = {key: value for key, value in changed.items() if key in SAMPLED}
    found = measure_set("small", reference(), rows(70, 1), identity=IDENTITY, sampled_with=SAMPLED | stamp_fields)
    others = {key: value for key, value in changed.items() if key not in SAMPLED}
    return dataclasses.replace(found, stamp=dataclasses.replace(found.stamp, **others))


def test_a_result_carries_everything_and_survives_json():
    found = result()
    assert (found.stamp.num_samples, found.stamp.num_reference, found.stamp.k) == (60, 80, 3)
    assert found.stamp.extractor == "efficientnet-lite0" and found.stamp.protocol == "small"
    metrics = {"frechet", "precision", "recall", "density", "coverage", "kernel_distance", "kernel_distance_std"}
    assert found.values.keys() == metrics
    assert read_result(found.to_json(), "a file") == found
    with pytest.raises(UserError, match="a file holds no result.*measure again"):
        read_result(found.to_json().replace('"split"', '"part"'), "a file")
    with pytest.raises(UserError, match="a file holds no result"):
        read_result("[]", "a file")


def test_unlike_numbers_are_refused():
    one = result()
    check_alike({"a": one, "b": result(gamma=4.0, guidance="cads", checkpoint="bb", seeds=(3,))})
    for field in dataclasses.fields(Stamp):
        if field.name in COMPARED:
            continue
        value = getattr(one.stamp, field.name)
        other = result(**{field.name: value + "x" if isinstance(value, str) else value + 1})
        with pytest.raises(UserError, match=f"'a' has {field.name} = .* and 'b' has .*compare by {field.name} alone"):
            table({"a": one, "b": other})
        check_alike({"a": one, "b": other}, (*COMPARED, field.name))
    with pytest.raises(UserError, match="did you mean 'gamma'"):
        check_alike({"a": one}, ("gama",))


def test_a_table_says_what_differs_and_what_does_not():
    lines = table({"baseline": result(gamma=1.0), "Kaleido": result(gamma=2.5, checkpoint="bb")}).splitlines()
    assert lines[0].startswith("|  | checkpoint | gamma | Frechet distance on efficientnet-lite0 | precision |")
    assert lines[3].startswith("| Kaleido | bb | 2.5 | ")
    assert "num_samples 60" in lines[-1] and "gamma" not in lines[-1]


def test_only_the_network_of_fid_is_printed_as_fid():
    assert "FID" not in table({"a": result()})
    assert "FID" not in table({"a": result(extractor="inception-v3")})
    assert "| FID |" in table({"a": result(extractor=FID_NAME)})


@pytest.mark.parametrize(("samples", "taken"), [(None, 50), (60, 60)])
def test_neighbors_may_be_of_fewer_real_images_than_samples(samples, taken, monkeypatch):
    protocol = dataclasses.replace(sets.SET_PROTOCOLS["small"], num_neighbor_samples=samples)
    monkeypatch.setitem(sets.SET_PROTOCOLS, "small", protocol)
    expected = manifold(rows(80)[np.arange(50) * 80 // 50], rows(70, 1)[:taken])  # spread over all
    found = result().values
    assert {name: found[name] for name in dataclasses.asdict(expected)} == dataclasses.asdict(expected)


def test_adm_compares_all_samples_with_the_real_images_of_its_reference_batch():
    """openai/guided-diffusion's evaluator: `compute_prec_recall` of 10,000 real images and every sample."""
    adm = sets.SET_PROTOCOLS["adm"]
    assert (adm.num_neighbors, adm.num_neighbor_samples, adm.num_samples) == (10_000, 50_000, 50_000)
    for name, protocol in sets.SET_PROTOCOLS.items():
        assert name == "adm" or protocol.num_neighbor_samples is None


def test_too_few_images_and_two_extractors_are_refused():
    def measure(real, number, identity=IDENTITY, protocol="small"):
        return measure_set(protocol, real, rows(number, 1), identity=identity, sampled_with=SAMPLED)

    with pytest.raises(UserError, match="59 samples for protocol small; expected at least 60"):
        measure(reference(), 59)
    with pytest.raises(UserError, match="79 real images for protocol small; expected at least 80"):
        measure(reference(79), 60)
    with pytest.raises(UserError, match="real images on .*clean-fid 224; expected one extractor"):
        measure(reference(identity=IDENTITY | {"resize": "clean-fid 224"}), 60)
    other = IDENTITY | {"extractor": "inception-v3"}
    with pytest.raises(
        UserError, match="inception-v3, clean-fid 128 for protocol small; expected efficientnet, clean-fid"
    ):
        measure(reference(identity=other), 60, other)
    with pytest.raises(UserError, match="one of kaleido, adm, guidance-interval, classes, classes-1500, emoji"):
        measure(reference(), 60, protocol="fid")
