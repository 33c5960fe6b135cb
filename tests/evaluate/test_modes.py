import numpy as np
import pytest

from kaleido_jax.data.sources.emoji import SHARES
from kaleido_jax.evaluate import modes


@pytest.mark.parametrize("number", [1, 3, 12])
def test_equal_shares_have_as_many_effective_modes_as_there_are(number):
    shares = np.zeros(12)
    shares[:number] = 1 / number
    assert modes.effective_number(shares) == pytest.approx(number)
    assert modes.modes_found(shares, shares) == number and modes.entropy(shares) == pytest.approx(np.log(number))


def test_total_variation_is_the_share_that_must_move():
    true = SHARES[0]
    one = np.eye(12)[3]
    assert modes.total_variation(true, true) == 0
    assert modes.total_variation(one, true) == pytest.approx(1 - true[3])
    assert modes.total_variation(np.eye(12)[0], np.eye(12)[1]) == 1


def test_shares_are_counted_over_all_modes():
    assert modes.shares_of([1, 1, 3, 1], 5).tolist() == [0, 0.75, 0, 0.25, 0]
    few = modes.shares_of([0] * 199 + [1] * 1, 12)
    assert modes.modes_found(few, SHARES[0]) == 1  # one in 200 may be an error of the reader
    many = np.full(120, 1 / 120)  # none has a share of 1 %
    assert modes.modes_found(many, many) == 120
    assert modes.modes_found(np.repeat([1 / 60, 0], 60), many) == 60


def test_exact_sampling_nears_the_true_values_with_more_samples():
    few, many = (modes.of_exact_sampling(SHARES[2], number) for number in (50, 5000))
    true = modes.effective_number(SHARES[2])
    assert few["effective_number"] < many["effective_number"] < true < many["effective_number"] + 0.05
    # E|p - true| of a binomial share is about sqrt(2 / pi) of its standard deviation.
    for number, found in ((50, few), (5000, many)):
        expected = np.sqrt(2 / np.pi) * np.sqrt(SHARES[2] * (1 - SHARES[2]) / number).sum() / 2
        assert found["total_variation"] == pytest.approx(expected, rel=0.05)
