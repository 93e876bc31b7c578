from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import PADDED, Order, permute, slots_of

counts = st.integers(1, 700)
batches = st.integers(1, 200)
seeds = st.integers(0, 2**31)


def orders(tail: str = "pad") -> Any:
    return st.builds(
        Order, counts, batches, seeds, st.integers(1, 40), st.integers(1, 8), st.booleans(),
        st.just(tail),
    )  # fmt: skip


def epoch_of(order: Order, epoch: int, world: int) -> list[list[int]]:
    """All batches of an epoch, each put together from what the ranks own."""
    return [
        [
            int(i)
            for slots in (slots_of(rank, world, order.batch_size) for rank in range(world))
            if slots  # of more ranks than slots, some own none
            for i in order.batch(epoch, b, slots)
        ]
        for b in range(order.steps)
    ]


@given(orders(), st.integers(0, 5), st.integers(1, 16))
@settings(max_examples=150, deadline=None)
def test_every_sample_is_read_exactly_once_per_epoch_at_any_world(
    order: Any, epoch: Any, world: Any
) -> None:
    read = [i for batch in epoch_of(order, epoch, world) for i in batch if i != PADDED]
    assert sorted(read) == list(range(order.samples))


@given(orders(), st.integers(1, 16), st.integers(1, 16))
@settings(max_examples=100, deadline=None)
def test_the_global_batches_do_not_depend_on_the_world(order: Any, one: Any, other: Any) -> None:
    assert epoch_of(order, 1, one) == epoch_of(order, 1, other)


@given(orders("drop"), st.integers(1, 16))
@settings(max_examples=100, deadline=None)
def test_drop_reads_only_full_batches_and_no_sample_twice(order: Any, world: Any) -> None:
    batches = epoch_of(order, 0, world)
    read = [i for batch in batches for i in batch]
    assert len(batches) == order.samples // order.batch_size
    if order.samples >= order.batch_size:
        assert PADDED not in read
    assert len(set(read)) == len(read)


@given(orders("wrap"), st.integers(1, 16))
@settings(max_examples=100, deadline=None)
def test_wrap_reads_every_sample_and_pads_only_what_no_lane_can_fill(
    order: Any, world: Any
) -> None:
    read = [i for batch in epoch_of(order, 0, world) for i in batch]
    assert set(read) - {PADDED} == set(range(order.samples))
    if order.samples >= order.batch_size:
        assert PADDED not in read


@given(st.integers(1, 5000), seeds)
@settings(max_examples=60, deadline=None)
def test_the_permutation_is_one_and_its_inverse_undoes_it(count: Any, key: Any) -> None:
    keys = np.array([key, key * 3 + 1, 77, 5], dtype=np.uint64) | np.uint64(1)
    values = np.arange(count, dtype=np.int64)
    limits, tags = np.full(count, count), np.zeros(count, np.int64)
    mapped = permute(values, limits, keys, tags)
    assert sorted(mapped) == list(range(count))
    assert np.array_equal(permute(mapped, limits, keys, tags, inverse=True), values)


def test_without_shuffling_the_samples_come_in_their_own_order() -> None:
    order = Order(10, 4, 0, 16, 4, shuffle=False)
    assert [i for batch in epoch_of(order, 3, 3) for i in batch] == [*range(10), PADDED, PADDED]


def test_epochs_and_seeds_differ_and_the_same_ones_do_not() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        return Order(1000, 64, seed, 16, 4).batch(epoch, 0, range(64)).tolist()

    assert first(0, 0) == first(0, 0)
    assert len({tuple(first(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


def test_a_batch_of_a_billion_samples_is_known_at_once_anywhere_in_the_epoch() -> None:
    order = Order(10**9, 4096, 1, 64, 8)
    ids = order.batch(7, order.steps // 2, range(4096))
    assert len(set(ids.tolist())) == 4096
    assert ids.min() >= 0
    assert ids.max() < 10**9


def test_a_batch_of_class_sorted_samples_holds_nearly_as_many_classes_as_a_uniform_draw() -> None:
    # 100 classes of 500: a uniform batch of 256 holds 92.4 of them (100 (1 - 0.99^256)). Our chunks
    # of 16 come from one class each; 64 lanes of 4 samples mix them.
    order = Order(50_000, 256, 3, 16, 8)
    classes = [len(set((order.batch(0, b, range(256)) // 500).tolist())) for b in range(50)]
    assert np.mean(classes) > 0.7 * 92.4


def test_the_order_is_the_same_in_every_release() -> None:
    """A run that was begun by one release goes on with the next: these ids never change."""
    ids = Order(1000, 8, 3, 16, 4).batch(2, 5, range(8))
    assert ids.tolist() == [204, 641, 517, 80, 368, 465, 461, 822]
