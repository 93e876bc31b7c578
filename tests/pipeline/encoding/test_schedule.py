import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.encoding.schedule import ShardSchedule


def simulate(
    schedule: ShardSchedule, dice: random.Random, workers: int, poison: set[int], kills: int
) -> dict[int, int]:
    """Runs to the end with events in random order; returns how often each shard succeeded.

    A shard in `poison` raises; `kills` times something outside kills a worker with all it holds.
    """
    done: dict[int, int] = {}
    held: dict[str, list[int]] = {f"w{n}": [] for n in range(workers)}
    while not schedule.finished:
        for worker, shards in held.items():
            while (shard := schedule.take(worker)) is not None:
                shards.append(shard)
        busy = [worker for worker, shards in held.items() if shards]
        assert busy, "the schedule is not finished, and nobody may work"
        worker = dice.choice(busy)
        if kills and dice.random() < 0.3:
            kills -= 1
            held.pop(worker)
            schedule.lost_worker(worker, "killed")
            held[f"{worker}'"] = []
            continue
        shard = held[worker].pop(dice.randrange(len(held[worker])))
        if shard in poison:
            schedule.failed(worker, shard, "raised")
        else:
            schedule.succeeded(worker, shard)
            done[shard] = done.get(shard, 0) + 1
    return done


@given(
    st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 5), st.integers(1, 4),
    st.sets(st.integers(0, 39), max_size=3), st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_whatever_dies_each_shard_is_done_once_and_only_those_that_raise_are_quarantined(
    seed: Any, shards: Any, workers: Any, window: Any, poison: Any, kills: Any
) -> None:
    schedule = ShardSchedule(range(shards), window=window, failures_in_a_row=1000)
    done = simulate(schedule, random.Random(seed), workers, poison, kills)
    bad = poison & set(range(shards))
    assert done == dict.fromkeys(set(range(shards)) - bad, 1)
    assert schedule.quarantined == {shard: ["raised"] * 3 for shard in bad}


def test_three_deaths_from_outside_on_a_shard_that_is_alone_do_not_condemn_it() -> None:
    schedule = ShardSchedule([7], attempts=3, window=1)
    for number in range(3):
        assert schedule.take(f"w{number}") == 7
        schedule.lost_worker(f"w{number}", "SIGKILL")
    assert schedule.take("last") == 7
    schedule.succeeded("last", 7)
    assert schedule.finished
    assert schedule.quarantined == {}


def test_a_shard_that_kills_every_worker_that_takes_it_is_quarantined_and_the_others_are_done() -> (
    None
):
    schedule, done = ShardSchedule(range(5), deaths=4, window=2), set()
    for number in range(100):
        if schedule.finished:
            break
        worker, held = f"w{number}", []
        while (shard := schedule.take(worker)) is not None:
            held.append(shard)
        if 3 in held:
            schedule.lost_worker(worker, "segmentation fault")
            continue
        for shard in held:
            schedule.succeeded(worker, shard)
            done.add(shard)
    assert done == {0, 1, 2, 4}
    assert schedule.quarantined == {3: ["segmentation fault"] * 4}


def test_a_suspect_is_tried_alone() -> None:
    schedule = ShardSchedule(range(4), window=2)
    assert [schedule.take("a"), schedule.take("a"), schedule.take("a")] == [0, 1, None]
    schedule.lost_worker("a", "died")
    assert schedule.take("b") == 0
    assert schedule.take("b") is None, "0 is suspect: nothing may run beside it"
    schedule.succeeded("b", 0)
    assert schedule.take("b") == 1


def test_deaths_with_the_machine_are_never_charged() -> None:
    schedule = ShardSchedule([0], deaths=1, window=1)
    for number in range(20):
        schedule.take(f"w{number}")
        schedule.lost_worker(f"w{number}", "node gone", blameless=True)
    assert schedule.take("w") == 0


def test_when_nothing_succeeds_the_rest_is_given_up_with_the_reason() -> None:
    schedule = ShardSchedule(range(100), attempts=3, window=1, failures_in_a_row=20)
    failures = 0
    while not schedule.finished:
        shard = schedule.take("w")
        assert shard is not None
        schedule.failed("w", shard, "disk full")
        failures += 1
    assert failures == 20
    assert set(schedule.quarantined) == set(range(100))
    assert "20 failures in a row, the last: disk full" in schedule.quarantined[99][-1]


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_worker_never_holds_more_than_its_window(window: int) -> None:
    schedule = ShardSchedule(range(10), window=window)
    taken = [schedule.take("w") for _ in range(10)]
    assert [shard is not None for shard in taken] == [True] * window + [False] * (10 - window)
