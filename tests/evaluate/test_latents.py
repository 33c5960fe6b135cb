import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaleido_jax.evaluate import latents
from kaleido_jax.latents.types import Latents
from kaleido_jax.sampling.tokens import SampledLatents


def rows_of(*tokens, parsed=True):
    return [SampledLatents(tokens=tuple(t), latents=Latents() if parsed else None) for t in tokens]


def test_numbers_of_a_case_counted_by_hand():
    rows = rows_of([5, 6, 5, 6, 1]) + rows_of([5, 1], parsed=False)
    report = latents.latents_report(rows)
    assert report["latents_parsed"] == 0.5 and report["latents_tokens"] == 3.5
    assert report["latents_distinct_1"] == 3 / 7  # 5 6 1
    assert report["latents_distinct_2"] == 4 / 5  # 56 65 61 51, of which 56 twice
    assert report["latents_distinct_3"] == 1.0 and report["latents_repetition"] == 0.0
    assert latents.repetition(rows, 2) == pytest.approx((1 - 3 / 4 + 0) / 2)


def test_one_token_for_ever_is_all_repetition_and_short_samples_have_none():
    assert latents.repetition(rows_of([7] * 23)) == pytest.approx(1 - 1 / 20)
    assert latents.repetition(rows_of([7, 1])) is None and latents.distinct(rows_of([1], []), 2) is None


@given(st.lists(st.lists(st.integers(1, 5), max_size=12), min_size=1, max_size=5), st.integers(1, 4))
def test_both_agree_with_counting_in_python(samples, n):
    every = [[tuple(s[i : i + n]) for i in range(len(s) - n + 1)] for s in samples]
    joined = sum(every, [])
    assert latents.distinct(rows_of(*samples), n) == (len(set(joined)) / len(joined) if joined else None)
    shares = [1 - len(set(found)) / len(found) for found in every if found]
    assert latents.repetition(rows_of(*samples), n) == (pytest.approx(np.mean(shares)) if shares else None)
