import numpy as np
import pytest

from kaleido_jax.data.order import Order, buckets_of

BUCKETS = np.random.default_rng(0).integers(0, 3, 101)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64, 150])
def test_every_bucket_shows_each_of_its_records_once_an_epoch_whatever_the_batch(batch_size):
    order = Order(BUCKETS, batch_size, seed=3)
    batches = [order[n] for n in range(300)]
    assert all(len(set(BUCKETS[batch])) == 1 and len(batch) == batch_size for batch in batches)
    for bucket in range(3):
        shown = np.concatenate([batch for batch in batches if BUCKETS[batch[0]] == bucket] or [np.zeros(0, int)])
        members = np.flatnonzero(bucket == BUCKETS)
        for epoch in range(len(shown) // len(members)):
            assert sorted(shown[epoch * len(members) :][: len(members)]) == list(members)


def test_any_batch_can_be_asked_for_alone():
    straight = [Order(BUCKETS, 8, seed=3)[n] for n in range(60)]
    for number in (59, 0, 31):
        np.testing.assert_array_equal(Order(BUCKETS, 8, seed=3)[number], straight[number])


def test_a_batch_comes_when_its_bucket_is_full():
    order = Order(np.asarray([0, 1, 0, 1, 1, 0, 0]), 2, seed=0, shuffle=False, num_epochs=2)
    # Bucket 1 is left with record 4, which the first of the next epoch joins.
    batches = [order[n].tolist() for n in range(len(order))]
    assert batches == [[0, 2], [1, 3], [5, 6], [4, 1], [0, 2], [3, 4], [5, 6]]


def test_orders_differ_by_seed_and_epoch_and_never_by_version():
    first = [Order(np.zeros(50, int), 50, seed=seed)[epoch] for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in first}) == 4
    # Fixed for good: a checkpoint stores the number of the batch alone.
    assert list(first[0][:8]) == [45, 29, 48, 40, 25, 19, 10, 16]


def test_a_length_goes_into_the_shortest_bucket_that_holds_it():
    assert list(buckets_of(np.asarray([1, 56, 57, 96]), (56, 96))) == [0, 0, 1, 1]
