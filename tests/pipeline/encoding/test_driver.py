import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.encoding.driver import (
    ThreadCrew,
    WorkerLost,
    drive,
    finish,
    is_finished,
    plan_encoding,
    publish,
)
from pipeline.encoding.schedule import ShardSchedule
from pipeline.encoding.shard import encode_shard
from pipeline.encoding.under_way import UnderWay
from pipeline.errors import AccessDeniedError, DatasetError, ShortageError, StoreError
from pipeline.latents.receipt import receipts_present
from pipeline.latents.snapshot import read_pointer
from pipeline.latents.store import LatentStore
from tests.support.small_store import encode, identity_of, small_dataset, small_vae


@pytest.fixture
def world(tmp_path: Path) -> Any:
    return small_vae(), small_dataset(tmp_path, range(60)), str(tmp_path / "s")


def run(world: Any, spoil: Any = lambda number: None, **schedule: Any) -> Any:
    """Drives a whole encoding with threads; `spoil` may raise for a shard."""
    vae, dataset, store = world
    identity = identity_of(vae)

    def one(number: int) -> Any:
        spoil(number)
        return encode_shard(vae, dataset, dataset.shards[number], identity, store)

    plan = plan_encoding(store, dataset, identity)
    seen: list[Any] = []
    with closing(ThreadCrew(one, 2)) as crew:
        report = drive(ShardSchedule(plan.todo, **schedule), crew, seen.append)
    assert seen == report.done
    lost = {number: reasons[-1] for number, reasons in report.quarantined.items()}
    snapshot = finish(store, dataset, identity, plan.known, lost)
    return report, publish(store, snapshot, data=dataset.url, model="m")


def test_every_shard_is_encoded_once_and_the_store_is_whole(world: Any) -> None:
    report, pointer = run(world)
    assert sorted(event.shard for event in report.done) == list(range(len(world[1].shards)))
    assert report.images == 60
    assert pointer.complete
    assert len(LatentStore.open(world[2])) == 60


def test_a_poison_shard_is_tried_three_times_listed_and_the_rest_is_encoded(world: Any) -> None:
    tries = []

    def spoil(number: int) -> None:
        if number == 1:
            tries.append(number)
            raise DatasetError("poison")

    report, pointer = run(world, spoil)
    assert len(tries) == 3
    assert report.retries == 2
    assert not pointer.complete
    (lost,) = LatentStore.open(world[2]).snapshot.lost
    assert (lost.samples, lost.reason) == (world[1].shards[1].live, "DatasetError: poison")
    assert pointer.samples + pointer.failed == 60


def test_a_failure_that_passes_costs_a_retry_and_no_image(world: Any) -> None:
    left = [1, 2]

    def spoil(number: int) -> None:
        if number in left:
            left.remove(number)
            raise OSError(28, "No space left on device")

    report, pointer = run(world, spoil)
    assert (report.retries, pointer.complete) == (2, True)


def test_refused_credentials_end_the_run_at_once(world: Any) -> None:
    def spoil(number: int) -> None:
        raise AccessDeniedError("s3://b: 403")

    with pytest.raises(StoreError, match="403"):
        run(world, spoil)


def test_a_bug_is_raised_and_not_counted_as_a_bad_shard(world: Any) -> None:
    def spoil(number: int) -> None:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        run(world, spoil)


def test_only_what_has_no_receipt_is_planned(world: Any) -> None:
    vae, dataset, store = world
    identity = identity_of(vae)
    encode_shard(vae, dataset, dataset.shards[2], identity, store)
    plan = plan_encoding(store, dataset, identity)
    assert plan.todo == tuple(n for n in range(len(dataset.shards)) if n != 2)
    run(world)
    assert plan_encoding(store, dataset, identity).todo == ()


def test_a_limit_takes_whole_shards_until_it_is_reached(world: Any) -> None:
    vae, dataset, store = world
    limit = dataset.shards[0].samples + 1
    plan = plan_encoding(store, dataset, identity_of(vae), limit)
    assert plan.todo == (0, 1)
    assert plan.skipped == tuple(range(2, len(dataset.shards)))


def test_a_store_is_finished_for_this_dataset_and_these_options_alone(world: Any) -> None:
    vae, dataset, store = world
    run(world)
    identity, pointer = identity_of(vae).digest, read_pointer(store)
    assert pointer is not None
    assert is_finished(store, pointer, dataset.digest, identity)
    assert not is_finished(store, pointer, "another dataset", identity)
    assert not is_finished(store, pointer, dataset.digest, identity_of(vae, flip=True).digest)


def test_a_store_of_another_dataset_is_refused(world: Any, tmp_path: Path) -> None:
    vae, _, store = world
    run(world)
    other = small_dataset(tmp_path / "other", range(100, 120))
    with pytest.raises(StoreError, match="holds latents of another dataset"):
        encode(vae, other, store)


class Deadly:
    """A crew of threads whose first worker dies with the first shard that it is given."""

    def __init__(self, encode: Any) -> None:
        self._below, self._lost = ThreadCrew(encode, 1), False

    def workers(self) -> Any:
        return self._below.workers() if self._lost else ("mortal",)

    def start(self, worker: str, shard: int) -> None:
        if worker != "mortal":
            self._below.start(worker, shard)

    def wait(self) -> Any:
        if self._lost:
            return self._below.wait()
        self._lost = True
        return (WorkerLost("mortal", "killed", blameless=True),)

    def under_way(self) -> float:
        return 0


def test_what_a_lost_worker_held_is_encoded_by_another_one(world: Any) -> None:
    vae, dataset, store = world
    identity = identity_of(vae)
    plan = plan_encoding(store, dataset, identity)

    def one(number: int) -> Any:
        return encode_shard(vae, dataset, dataset.shards[number], identity, store)

    report = drive(ShardSchedule(plan.todo), Deadly(one), lambda done: None)
    assert sorted(event.shard for event in report.done) == list(range(len(dataset.shards)))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(28, "No space left on device"), ShortageError("memory ran out")],
)
def test_a_shortage_quarantines_no_shard_and_ends_the_run_instead(
    world: Any, error: Exception
) -> None:
    def spoil(number: int) -> None:
        if number == 1:
            raise error

    with pytest.raises(StoreError, match=r"no shard is to blame: .* run the same command again"):
        run(world, spoil)
    report, pointer = run(world)
    assert pointer.complete
    assert 1 in {event.shard for event in report.done}


def test_beside_the_store_of_one_identity_another_one_goes_on_where_it_was(world: Any) -> None:
    vae, dataset, store = world
    run(world)
    other = identity_of(vae, flip=True)
    every = list(range(len(dataset.shards)))
    assert list(plan_encoding(store, dataset, other).todo) == every
    encode_shard(vae, dataset, dataset.shards[1], other, store, threads=1)
    plan = plan_encoding(store, dataset, other)
    assert (list(plan.todo), list(plan.orphans)) == ([n for n in every if n != 1], [])


def test_how_far_a_shard_is_is_told_batch_by_batch_and_an_end_drops_it_at_once(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    vae, dataset, store = world
    identity, under_way, looks = identity_of(vae, batch_size=4), UnderWay(), list[float]()
    reached, go_on = threading.Event(), threading.Event()

    def one(number: int) -> Any:
        def count(rows: int) -> None:
            under_way.count(number, rows)
            reached.set()
            assert go_on.wait(60)

        shard = dataset.shards[number]
        return encode_shard(vae, dataset, shard, identity, store, threads=1, count=count)

    def look(images: float) -> None:
        looks.append(images)
        if images:
            raise KeyboardInterrupt

    plan = plan_encoding(store, dataset, identity)
    crew = ThreadCrew(one, 1, under_way)
    with pytest.raises(KeyboardInterrupt):
        drive(ShardSchedule(plan.todo), crew, lambda done: None, look)
    assert reached.is_set()
    assert looks[-1] == 4  # of a first shard of more than two batches
    threading.Timer(0.2, go_on.set).start()
    crew.close()
    assert caplog.messages == ["the batches in work are waited for, and their shards are dropped"]
    assert dataset.shards[0].samples > 8
    # What it had of the shard is dropped: nothing was claimed.
    assert receipts_present(store, identity.digest) == set()


def test_a_shortage_of_memory_is_told_with_what_needs_less(world: Any) -> None:
    def spoil(number: int) -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
        )

    with pytest.raises(StoreError, match=r"Finished shards are kept.*smaller `--batch-size N`"):
        run(world, spoil)
