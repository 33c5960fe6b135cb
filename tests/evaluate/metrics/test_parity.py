"""Metrics beside other programs': stored numbers of theirs, and they themselves where they are installed."""

import json
from pathlib import Path

import numpy as np
import pytest

from kaleido_jax.evaluate.metrics.diversity import mean_similarity, vendi_score
from kaleido_jax.evaluate.metrics.frechet import frechet_distance, moments
from kaleido_jax.evaluate.metrics.kernel import kernel_distance
from kaleido_jax.evaluate.metrics.manifold import manifold
from tests.evaluate.golden_inputs import NEAREST, SETS, features

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/evaluate/metrics.json").read_text())
MISSING = "{} is not a dependency of the tests; stored numbers stand for it"


def brute_force(real, samples, k):
    """Precision, recall, density and coverage in float64, from the definitions."""
    real, samples = real.astype(np.float64), samples.astype(np.float64)

    def squared(a, b):
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    radii, own = (np.sort(squared(x, x), axis=1)[:, k] for x in (real, samples))
    across = squared(real, samples)
    return {
        "precision": (across <= radii[:, None]).any(0).mean(),
        "recall": (across <= own[None]).any(1).mean(),
        "density": (across < radii[:, None]).sum() / (k * len(samples)),
        "coverage": (across <= radii[:, None]).any(1).mean(),
    }


@pytest.mark.parametrize("name", SETS)
def test_precision_and_the_others_are_those_of_the_definition_and_of_prdc(name):
    real, samples = features(name)
    found, exact = manifold(real, samples, NEAREST), brute_force(real, samples, NEAREST)
    for key, theirs in GOLDEN[name]["prdc"].items():
        assert getattr(found, key) == pytest.approx(exact[key], abs=1e-12)
        assert getattr(found, key) == pytest.approx(theirs, abs=1e-9)
    for key in ("precision", "recall"):
        # torch.cdist takes float32 products, which do not tell neighbors apart that are far from zero.
        tolerance = 1e-6 if name != "shifted" else 0.01
        assert getattr(found, key) == pytest.approx(GOLDEN[name]["torch-fidelity"][key], abs=tolerance)


@pytest.mark.parametrize("name", SETS)
def test_frechet_distance_is_that_of_torch_fidelity_and_pytorch_fid(name):
    real, samples = (moments(x) for x in features(name))
    found = frechet_distance(real, samples)
    # They take means in float32: with a mean of 300 that is 2e-5 in each of 24 features.
    tolerance = 1e-6 if name != "shifted" else 1e-4
    for program in ("torch-fidelity", "pytorch-fid"):
        assert found == pytest.approx(GOLDEN[name][program]["frechet"], rel=tolerance)


@pytest.mark.parametrize("name", SETS)
def test_kernel_distance_is_that_of_torch_fidelity(name):
    number = min(map(len, features(name)))
    real, samples = (x[:number] for x in features(name))
    found = kernel_distance(real, samples, subsets=2, subset_size=number)
    assert found.mean == pytest.approx(GOLDEN[name]["torch-fidelity"]["kid_of_equal_sets"], rel=1e-6)
    assert found.std == pytest.approx(0, abs=1e-9 * abs(found.mean))  # there is one subset of all


@pytest.mark.parametrize("name", SETS)
def test_vendi_score_is_that_of_vendi_score(name):
    _, samples = features(name)
    for key in ("vendi", "vendi_dual"):
        assert vendi_score(samples) == pytest.approx(GOLDEN[name]["vendi-score"][key], rel=1e-9)
    few = samples[:10].astype(np.float64)
    norms = np.linalg.norm(few, axis=1)
    cosines = few @ few.T / np.outer(norms, norms)
    assert mean_similarity(samples[:10]) == pytest.approx((cosines.sum() - 10) / 90, abs=1e-12)


def test_other_inputs_beside_the_programs_themselves():
    prdc = pytest.importorskip("prdc", reason=MISSING.format("prdc"))
    prc = pytest.importorskip("torch_fidelity.metric_prc", reason=MISSING.format("torch-fidelity"))
    fid = pytest.importorskip("torch_fidelity.metric_fid", reason=MISSING.format("torch-fidelity"))
    vendi = pytest.importorskip("vendi_score.vendi", reason=MISSING.format("vendi-score"))
    import torch

    for seed, k in ((11, 3), (12, 5)):
        real, samples = features("clusters", seed)
        found = manifold(real, samples, k)
        theirs = prdc.compute_prdc(real, samples, k)
        assert {key: getattr(found, key) for key in theirs} == pytest.approx(theirs, abs=1e-9)
        pair = [torch.from_numpy(x) for x in (samples, real)]
        shares = prc.prc_features_to_metric(*pair, prc_neighborhood=k, verbose=False)
        assert found.precision == pytest.approx(shares["precision"], abs=1e-6)
        assert found.recall == pytest.approx(shares["recall"], abs=1e-6)
        statistics = [fid.fid_features_to_statistics(x) for x in pair]
        distance = fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
        assert frechet_distance(moments(real), moments(samples)) == pytest.approx(distance, rel=1e-6)
        assert vendi_score(samples) == pytest.approx(vendi.score_X(samples.astype(np.float64)), rel=1e-9)
