"""Drives an encoding: plan, workers, retries, snapshot. It knows neither Ray nor a command line."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

from pipeline import storage
from pipeline.data.dataset import Dataset
from pipeline.encoding.schedule import ShardSchedule
from pipeline.encoding.under_way import UnderWay
from pipeline.errors import (
    AccessDeniedError,
    ObjectNotFoundError,
    PipelineError,
    StoreError,
    is_shortage,
)
from pipeline.latents.identity import Identity
from pipeline.latents.part_rows import stored_shard
from pipeline.latents.receipt import (
    LATENTS,
    Receipt,
    read_receipt,
    receipt_path,
    receipts_present,
)
from pipeline.latents.snapshot import (
    LostShard,
    Pointer,
    Snapshot,
    point_to,
    publish_snapshot,
    read_pointer,
    read_snapshot,
)
from pipeline.latents.stored_shard import StoredShard
from pipeline.places import refuse_another_kind

_LOG = logging.getLogger(__name__)
_READ_THREADS = 16
"""Receipts are small: the time of one is a request's wait, which threads share."""


_WAIT_SECONDS = 1.0
_OF_OTHERS = "See to it, and run the same command again."
_OF_MEMORY = (
    "With more memory free, run the same command again; a smaller `--batch-size N`, or `--tile N` "
    "for large images, needs less: each makes another identity, by which all is encoded anew."
)


@dataclass(frozen=True)
class ShardDone:
    """A worker finished a shard."""

    worker: str
    shard: int
    receipt: Receipt
    seconds: float


@dataclass(frozen=True)
class ShardFailed:
    """A worker lives, its shard failed; `fatal` ends the whole run.

    shortage: of memory, disk or a connection, which says nothing of the shard. memory: of that.
    """

    worker: str
    shard: int
    reason: str
    fatal: bool = False
    shortage: bool = False
    memory: bool = False


@dataclass(frozen=True)
class WorkerLost:
    """A worker died with all it held; `blameless` when its machine went away."""

    worker: str
    reason: str
    blameless: bool = False


Event = ShardDone | ShardFailed | WorkerLost


class Crew(Protocol):
    """Workers that encode shards. A lost worker's place is filled by the crew itself."""

    def workers(self) -> Sequence[str]:
        """The names of the workers that can take shards now."""

    def start(self, worker: str, shard: int) -> None:
        """Begins a shard; returns at once."""

    def wait(self) -> Sequence[Event]:
        """Blocks until something happened (or a second went by) and says what."""

    def under_way(self) -> float:
        """Images that are encoded, of shards that are not done."""


@dataclass
class DriveReport:
    """What the workers did in this run."""

    done: list[ShardDone] = field(default_factory=list)
    quarantined: dict[int, list[str]] = field(default_factory=dict)
    retries: int = 0
    seconds: float = 0.0

    @property
    def images(self) -> int:
        """Source samples that were encoded in this run."""
        return sum(event.receipt.samples for event in self.done)


def drive(
    schedule: ShardSchedule,
    crew: Crew,
    on_done: Callable[[ShardDone], None],
    on_look: Callable[[float], None] = lambda under_way: None,
) -> DriveReport:
    """Runs the schedule to its end; raises `StoreError` on a fatal failure.

    `on_look` hears about once a second how many images of unfinished shards are encoded.
    """
    report, start = DriveReport(), time.monotonic()
    while not schedule.finished:
        for worker in crew.workers():
            while (shard := schedule.take(worker)) is not None:
                crew.start(worker, shard)
        for event in crew.wait():
            match event:
                case ShardDone():
                    schedule.succeeded(event.worker, event.shard)
                    report.done.append(event)
                    on_done(event)
                case ShardFailed():
                    if event.fatal:
                        raise StoreError(event.reason)
                    schedule.failed(event.worker, event.shard, event.reason)
                    if event.shortage and event.shard in schedule.quarantined:
                        raise StoreError(
                            f"no shard is to blame: {event.reason} Finished shards are kept. "
                            + (_OF_MEMORY if event.memory else _OF_OTHERS)
                        )
                case WorkerLost():
                    schedule.lost_worker(event.worker, event.reason, blameless=event.blameless)
        on_look(crew.under_way())
    report.quarantined = dict(schedule.quarantined)
    report.retries = schedule.retries
    report.seconds = time.monotonic() - start
    return report


class ThreadCrew:
    """One worker in this process that encodes several shards at a time in threads."""

    _NAME = "process"

    def __init__(
        self, encode: Callable[[int], Receipt], threads: int, under_way: UnderWay | None = None
    ) -> None:
        """`under_way` is what `encode` tells its batches to."""
        self._encode, self._under_way = encode, under_way or UnderWay()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._running: dict[Future[Event], int] = {}

    def workers(self) -> Sequence[str]:
        """See `Crew`."""
        return (self._NAME,)

    def start(self, worker: str, shard: int) -> None:
        """See `Crew`."""
        future = self._pool.submit(attempt, self._encode, worker, shard)
        self._running[future] = shard

    def wait(self) -> Sequence[Event]:
        """See `Crew`."""
        finished, _ = wait(self._running, timeout=_WAIT_SECONDS, return_when=FIRST_COMPLETED)
        for future in finished:
            self._under_way.forget(self._running.pop(future))
        return [future.result() for future in finished]

    def under_way(self) -> float:
        """See `Crew`."""
        return sum(self._under_way.images().values())

    def close(self) -> None:
        """Ends the threads; shards in flight are dropped at their next batch."""
        self._under_way.end()
        if any(future.running() for future in self._running):
            _LOG.warning("the batches in work are waited for, and their shards are dropped")
        self._pool.shutdown(cancel_futures=True)


def attempt(encode: Callable[[int], Receipt], worker: str, shard: int) -> Event:
    """One try at one shard, its expected failures as data. Anything else is raised: a bug."""
    start = time.monotonic()
    try:
        receipt = encode(shard)
    except AccessDeniedError as error:
        return ShardFailed(worker, shard, str(error), fatal=True)
    except (PipelineError, OSError, RuntimeError, MemoryError) as error:
        # RuntimeError is what torch raises for memory that doesn't suffice.
        said = f"{type(error).__name__}: {error}"
        short = is_shortage(error)
        # OSErrors are of a disk or a connection, and so are ours.
        memory = short and not isinstance(error, PipelineError | OSError)
        return ShardFailed(worker, shard, said, shortage=short, memory=memory)
    return ShardDone(worker, shard, receipt, time.monotonic() - start)


@dataclass(frozen=True)
class EncodePlan:
    """What is left to do: `todo` are shard numbers without receipt, `known` receipts at hand.

    `orphans` are sources whose receipt names a latent file that someone deleted.
    """

    todo: tuple[int, ...]
    skipped: tuple[int, ...]
    known: Mapping[str, Receipt]
    orphans: tuple[str, ...] = ()


def is_finished(store: str, pointer: Pointer, dataset: str, identity: str) -> bool:
    """Whether the store's pointer names the whole of this dataset under this identity.

    Not where a file that its snapshot names is not there: then there is something to do.
    """
    if (pointer.identity, pointer.dataset) != (identity, dataset) or not pointer.complete:
        return False
    snapshot = read_snapshot(store, pointer.snapshot, pointer.sha256)
    files = _latent_files(store, identity)
    return all(_is_whole(shard.receipt, files) for shard in snapshot.shards)


def plan_encoding(
    store: str, dataset: Dataset, identity: Identity, limit: int | None = None
) -> EncodePlan:
    """Compares the dataset with the receipts that exist; refuses a store of something else.

    Writes nothing; before `todo` is encoded, `drop_orphans` makes room for new receipts.
    """
    known = _known_receipts(store, dataset, identity)
    present = set(known) | receipts_present(store, identity.digest)
    orphans = _without_file(store, identity.digest, present, known)
    present -= set(orphans)
    known = {source: receipt for source, receipt in known.items() if source in present}
    wanted: list[int] = []
    skipped: list[int] = []
    live = 0
    for number, shard in enumerate(dataset.shards):
        (wanted if limit is None or live < limit else skipped).append(number)
        live += shard.samples - len(shard.removed)
    todo = [n for n in wanted if dataset.shards[n].sha256 not in present]
    skipped = [n for n in skipped if dataset.shards[n].sha256 not in present]
    return EncodePlan(tuple(todo), tuple(skipped), known, tuple(orphans))


def drop_orphans(store: str, identity: str, plan: EncodePlan) -> None:
    """Removes receipts that name no file, so that their shards can be encoded again."""
    for source in plan.orphans:
        storage.delete(storage.join(store, receipt_path(identity, source)))


def _without_file(
    store: str, identity: str, present: set[str], known: Mapping[str, Receipt]
) -> list[str]:
    """Sources whose receipt names a latent file that is gone: someone deleted it."""
    files = _latent_files(store, identity)

    def gone(source: str) -> bool:
        receipt = known.get(source) or read_receipt(store, identity, source)
        return receipt is not None and not _is_whole(receipt, files)

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        ordered = sorted(present)
        return [
            source
            for source, is_gone in zip(ordered, pool.map(gone, ordered), strict=True)
            if is_gone
        ]


def _is_whole(receipt: Receipt, files: set[str]) -> bool:
    """Whether every file that a receipt names is there."""
    return all(part.path.rsplit("/", 1)[-1] in files for part in receipt.parts)


def _latent_files(store: str, identity: str) -> set[str]:
    """The names of an identity's latent files, by one listing."""
    try:
        folder = storage.join(store, LATENTS, identity)
        return {info.url.rsplit("/", 1)[-1] for info in storage.list_objects(folder)}
    except ObjectNotFoundError:
        return set()


def current_of(store: str, pointer: Pointer | None, dataset: Dataset) -> Snapshot | None:
    """The store's current snapshot; None where there is none yet.

    Raises `StoreError` for the latents of a dataset that shares no shard with this one, and
    `ConfigError` for a place that holds no latents at all.
    """
    if pointer is None:
        refuse_another_kind(store, "a latent store", "--output URL")
        return None
    snapshot = read_snapshot(store, pointer.snapshot, pointer.sha256)
    theirs = {s.receipt.source_sha256 for s in snapshot.shards}
    theirs |= {s.source_sha256 for s in snapshot.lost}
    ours = {shard.sha256 for shard in dataset.shards}
    if theirs and ours and not theirs & ours:
        raise StoreError(
            f"{store}: holds latents of another dataset ({pointer.data}, digest "
            f"{pointer.dataset[:16]}), which shares no shard with {dataset.url} (digest "
            f"{dataset.digest[:16]}). Give another `--output URL`."
        )
    return snapshot


def _known_receipts(store: str, dataset: Dataset, identity: Identity) -> dict[str, Receipt]:
    """The receipts that the current snapshot already tells, so that they needn't be read again."""
    pointer = read_pointer(store)
    snapshot = current_of(store, pointer, dataset)
    if snapshot is None or snapshot.identity.digest != identity.digest:
        return {}
    return {s.receipt.source_sha256: s.receipt for s in snapshot.shards}


def finish(
    store: str,
    dataset: Dataset,
    identity: Identity,
    known: Mapping[str, Receipt],
    lost: Mapping[int, str],
) -> Snapshot:
    """The snapshot of this dataset from its receipts; `lost` says why a shard has none.

    Receipts and files are looked up again: somebody may have removed some since they were `known`.
    """
    present, files = receipts_present(store, identity.digest), _latent_files(store, identity.digest)

    def stored(number: int) -> StoredShard | LostShard:
        record = dataset.shards[number]
        receipt = None
        if record.sha256 in present:
            receipt = known.get(record.sha256)
            receipt = receipt or read_receipt(store, identity.digest, record.sha256)
        if receipt is not None and _is_whole(receipt, files):
            return stored_shard(store, receipt, identity, record.removed)
        what = "receipt" if receipt is None else "latent file"
        reason = lost.get(number, f"its {what} is missing: somebody removed it meanwhile")
        live = record.samples - len(record.removed)
        return LostShard(record.path, record.sha256, live, reason)

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        shards = list(pool.map(stored, range(len(dataset.shards))))
    return Snapshot(
        identity=identity,
        dataset=dataset.digest,
        shards=tuple(s for s in shards if isinstance(s, StoredShard)),
        lost=tuple(s for s in shards if isinstance(s, LostShard)),
    )


def publish(
    store: str, snapshot: Snapshot, *, data: str, model: str, since: int | None = None
) -> Pointer:
    """Makes the snapshot visible: the file first, the pointer last; `since`: as of `point_to`."""
    sha256 = publish_snapshot(store, snapshot)
    return point_to(store, snapshot, sha256, data=data, model=model, since=since)
