"""Two packs of one dataset at once: a slow twin sleeps before a write, and wakes up too late."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.data.dataset import Dataset
from pipeline.errors import DatasetError
from pipeline.packing.ledger import read_state
from pipeline.packing.pack import pack
from pipeline.packing.verify_dataset import verify_dataset
from tests.pipeline.packing.test_pack import png
from tests.servers import rgw
from tests.support.killing import tree

WRITES = ("publish", "create_if_absent", "delete")
GROWN = {"0%2Epng": png(50), "2%2Epng": png(2), "3%2Epng": png(3), "bad%2Epng": png(51)}


def sources_at(root: str) -> PackConfig:
    """Three images and a broken one, for two shards."""
    for name, data in {"0": png(0), "1": png(1), "2": png(2), "bad": b"no image"}.items():
        storage.publish(f"{root}/in/{name}.png", data)
    return PackConfig(
        source=(f"{root}/in",), output=f"{root}/out", shard_bytes=8000, workers=1, append=True
    )


def grow(packing: PackConfig) -> None:
    """The next generation: one sample removed with its whole shard, one changed, one mended."""
    for name in ("0", "3", "bad"):
        storage.publish(f"{packing.source[0]}/{name}.png", GROWN[f"{name}%2Epng"])
    storage.delete(f"{packing.source[0]}/1.png")
    assert pack(packing.model_copy(update={"remove": ("1",)})).removed == 1


class AtOnce(ThreadPoolExecutor):
    """Each unit goes to storage before the next one is read: the writes have one order."""

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(work(*args, **kwargs))
        return done


class Sleeper:
    """Before its write number `sleeps_at`, or one to that URL, `meanwhile` runs to its end."""

    def __init__(self, patch: pytest.MonkeyPatch, sleeps_at: int | str, meanwhile: Any) -> None:
        self.slept, writes, owner = False, count(1), threading.get_ident()
        patch.setattr("pipeline.packing.workers.ThreadPoolExecutor", AtOnce)
        for name in WRITES:
            real = getattr(storage, name)

            def write(url: Any, *data: Any, real: Any = real) -> Any:
                if not self.slept and threading.get_ident() == owner:
                    self.slept = sleeps_at in (next(writes), url)
                    if self.slept:
                        meanwhile()
                return real(url, *data)

            patch.setattr(storage, name, write)


def overtaken(
    packing: PackConfig, sleeps_at: int | str, then: Callable[[PackConfig], object] = grow
) -> tuple[bool, str]:
    """A pack that sleeps before that write, while a twin runs to its end, and `then` something.

    Whether it has such a write, and how it ended.
    """

    def meanwhile() -> None:
        pack(packing)
        then(packing)

    with pytest.MonkeyPatch.context() as patch:
        sleeper, ended = Sleeper(patch, sleeps_at, meanwhile), "done"
        try:
            pack(packing)
        except DatasetError as error:
            ended = str(error)
    return sleeper.slept, ended


def images(url: str) -> dict[str, bytes]:
    """The image of every sample that counts, by key."""
    dataset, found = Dataset.open(url), {}
    for number, record in enumerate(dataset.shards):
        index = dataset.read_index(number)
        for position, key in enumerate(index.keys):
            if position not in record.removed:
                start = int(index.offsets[position])
                end = start + int(index.sizes[position])
                found[key] = storage.read(dataset.shard_url(record), start, end)
    return found


def lasting(packing: PackConfig) -> dict[str, str]:
    """Every file's checksum, but for plans, which the last of both packs clears."""
    files = tree(Path(packing.output))
    return {name: sha256 for name, sha256 in files.items() if not name.startswith("plans/")}


def check_grown(packing: PackConfig) -> None:
    output = packing.output
    assert images(output) == GROWN
    assert verify_dataset(output) == []
    state = read_state(output)
    assert state is not None
    assert (state.generation, len(state.ledgers)) == (2, 2)
    assert not storage.exists(f"{output}/rejects.jsonl")
    assert storage.read_json(f"{output}/pack.json")["generation"] == 2
    assert not storage.exists(f"{output}/plans/000001.json")


def test_a_twin_that_sleeps_before_any_of_its_writes_undoes_nothing_of_the_next_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.local._sync", lambda path: None)  # no power cut here
    endings = []
    for sleeps_at in count(1):
        packing = sources_at(str(tmp_path / str(sleeps_at)))
        slept, ended = overtaken(packing, sleeps_at)
        if not slept:
            break
        check_grown(packing)
        endings.append(ended)
    assert len(endings) > 10
    assert endings[0] == "done", "it had nothing but a listing, which it makes anew"
    told = {ending for ending in endings if ending != "done"}
    assert told, "a source that changed in its sleep makes other shards"
    assert all("another pack finished" in ending for ending in told)


def test_what_a_twin_committed_stays_when_the_other_saw_a_source_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.local._sync", lambda path: None)

    def change(packing: PackConfig) -> None:
        committed.append(lasting(packing))
        for n in range(3):
            storage.publish(f"{packing.source[0]}/{n}.png", png(50 + n))

    told = 0
    for sleeps_at in count(3):  # before its second write it has no plan, and packs the change
        packing, committed = sources_at(str(tmp_path / str(sleeps_at))), list[dict[str, str]]()
        slept, ended = overtaken(packing, sleeps_at, change)
        if not slept:
            break
        told += "another pack finished generation 1 first" in ended
        after = lasting(packing)
        assert {name: after.get(name) for name in committed[0]} == committed[0]
        assert images(packing.output) == {f"{n}%2Epng": png(n) for n in range(3)}
        assert pack(packing).added == 3
        assert images(packing.output) == {f"{n}%2Epng": png(50 + n) for n in range(3)}
    assert told


@pytest.mark.parametrize("before", ["ledger/000001.json", "pack.json"])
def test_a_twin_that_sleeps_undoes_nothing_on_s3_either(
    s3_server: rgw.S3Server, before: str
) -> None:
    packing = sources_at(s3_server.bucket())
    slept, _ = overtaken(packing, f"{packing.output}/{before}")
    assert slept
    check_grown(packing)


@pytest.mark.parametrize("before", ["manifest.json", "pack.json"])
def test_what_a_twin_left_behind_that_died_after_a_late_write_is_mended_by_the_next_pack(
    tmp_path: Path, before: str
) -> None:
    packing = sources_at(str(tmp_path))
    slow = pack(packing)
    old = storage.read(f"{slow.dataset}/{before}")
    grow(packing)
    storage.publish(f"{slow.dataset}/{before}", old)
    again = pack(packing)
    assert (again.samples, again.seen, again.added) == (4, 4, 0)
    check_grown(packing)


def test_a_first_pack_that_dies_before_any_of_its_writes_is_finished_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.storage.local._sync", lambda path: None)
    for dies_at in count(1):
        packing = sources_at(str(tmp_path / str(dies_at)))
        with pytest.MonkeyPatch.context() as patch:
            sleeper = Sleeper(patch, dies_at, die)
            with suppress(KeyboardInterrupt):
                pack(packing)
        result = pack(packing.model_copy(update={"append": False}))
        assert (result.samples, result.rejected, result.generation) == (3, 1, 1)
        assert verify_dataset(packing.output) == []
        if not sleeper.slept:
            break
    assert dies_at > 10


def test_a_plan_that_was_given_up_by_deleting_it_leaves_nothing_to_the_next_one(
    tmp_path: Path,
) -> None:
    packing = sources_at(str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        Sleeper(patch, f"{packing.output}/ledger/000001.json", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack(packing)
    storage.delete(f"{packing.output}/plans/000001.json")
    for n in range(4):
        storage.publish(f"{packing.source[0]}/{n}.png", png(60 + n))
    result = pack(packing)
    assert images(result.dataset) == {f"{n}%2Epng": png(60 + n) for n in range(4)}
