"""The units of a plan, run by threads, processes or an executor; their receipts, few in memory."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from pipeline.config import PackConfig
from pipeline.data.manifest import ShardRecord
from pipeline.errors import DatasetError, ObjectNotFoundError
from pipeline.packing.plan import Plan
from pipeline.packing.unit import (
    RECEIPT,
    UnitJob,
    UnitReceipt,
    pack_unit,
    read_receipt,
    receipt_url,
    write_unit,
)
from pipeline.progress import Progress

# Measured on 2 cores: threads of one process check photographs at 0.92 of bare decoding, processes
# at 0.77, with half a second to start. Above some 4 cores Python's lock would bind the threads.
_THREADS_SUFFICE = 4
_WORTH_PROCESSES = 128 * 2**20
"""Of images to check: below, starting processes takes longer than they save."""
_MOST_SUBMITTED = 2048
"""Units handed to an executor at once: their inputs are in memory until they are done."""
_MOST_ROWS = 200_000
"""Of receipts in memory, 100 MB; further ones wait on this machine's disk for the commit."""


class Receipts:
    """What came of each unit, by its number."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where receipts wait that are too many for memory."""
        self._folder = folder
        self._held: dict[int, UnitReceipt] = {}
        self._shards: dict[int, Mapping[str, ShardRecord]] = {}
        self._rows_held = self.rows = 0

    def put(self, number: int, receipt: UnitReceipt) -> None:
        """The receipt of a unit that is done."""
        self._shards[number] = receipt.shards
        self.rows += len(receipt.rows)
        if self._rows_held + len(receipt.rows) <= _MOST_ROWS:
            self._held[number] = receipt
            self._rows_held += len(receipt.rows)
        else:
            self._path(number).write_bytes(receipt.to_bytes())

    def __contains__(self, number: int) -> bool:
        return number in self._shards

    def __iter__(self) -> Iterator[UnitReceipt]:
        """In the order of the plan's units."""
        for number in sorted(self._shards):
            yield self._held.get(number) or read_receipt(str(self._path(number)))

    def shards(self, split: str) -> list[ShardRecord]:
        """The shards of one split, in the order of the units."""
        found = (self._shards[number].get(split) for number in sorted(self._shards))
        return [shard for shard in found if shard is not None]

    def _path(self, number: int) -> Path:
        return self._folder / f"receipt-{number:06d}.json"


class Jobs:
    """The units of a plan as jobs, each made when it is asked for."""

    def __init__(
        self, config: PackConfig, output: str, plan: Plan, executor: Executor | None
    ) -> None:
        """Without an `executor`, they run on this machine's cores."""
        self.plan, self.output, self.executor = plan, output, executor
        self.cores = config.workers or len(os.sched_getaffinity(0))
        # Two threads per core: units differ in length, and the last must not leave cores idle.
        processes = self.processes(plan.units, plan.size)
        self._threads = min(self.cores, -(-2 * self.cores // processes))
        if executor is not None:
            self._threads = 2  # its cores are others', one for each unit

    def __getitem__(self, number: int) -> UnitJob:
        unit, plan = self.plan.unit(number), self.plan
        return UnitJob(
            output=self.output,
            generation=plan.generation,
            plan=plan.digest,
            number=number,
            files=unit.files,
            known=unit.known,
            classes=plan.classes,
            options=plan.request.options,
            threads=self._threads,
            image_column=plan.request.image_column,
            below=plan.request.below,
        )

    def processes(self, units: int, size: int) -> int:
        """How many to run units in; 1: in this one, one after the other, by threads."""
        if size < _WORTH_PROCESSES or self.cores <= _THREADS_SUFFICE:
            return 1
        return max(1, min(self.cores, units))


def run_units(jobs: Jobs, folder: Path) -> Receipts:
    """All receipts; units that have one are not run again. `folder` is this machine's."""
    plan, receipts = jobs.plan, Receipts(folder)
    for number in range(plan.units):
        url = receipt_url(jobs.output, plan.generation, plan.digest, number)
        try:
            receipt = read_receipt(url)
        except ObjectNotFoundError:
            continue
        if len(receipt.rows) != len(plan.unit(number).files):
            raise RECEIPT.damaged(url, "it is the receipt of other files")
        receipts.put(number, receipt)
    left = [number for number in range(plan.units) if number not in receipts]
    processes = jobs.processes(len(left), plan.size * len(left) // max(plan.units, 1))
    with Progress("packing", plan.files, "images", receipts.rows) as progress:
        if jobs.executor is not None:
            _run_on(jobs.executor, jobs, left, receipts, progress)
        elif processes == 1:
            _run_here(jobs, left, receipts, progress)
        else:
            # spawn: forking a process that has threads (s3fs, torch) can hang the child.
            context = get_context("spawn")
            with ProcessPoolExecutor(processes, mp_context=context) as pool:
                _run_on(pool, jobs, left, receipts, progress)
    return receipts


def _run_here(jobs: Jobs, numbers: Sequence[int], receipts: Receipts, progress: Progress) -> None:
    """One unit after the other; while one goes to storage, the next is read and checked."""
    before: tuple[int, Future[UnitReceipt]] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="finish") as pool:
        for number in numbers:
            unit = write_unit(jobs[number], progress)
            if before is not None:
                try:
                    receipts.put(before[0], before[1].result())
                except BaseException:  # Ctrl-C too: nobody else knows its scratch files
                    unit.close()
                    raise
            before = number, pool.submit(unit.finish)
        if before is not None:
            receipts.put(before[0], before[1].result())


def _run_on(
    executor: Executor, jobs: Jobs, numbers: Sequence[int], receipts: Receipts, progress: Progress
) -> None:
    running: dict[Future[UnitReceipt], int] = {}
    waiting = iter(numbers)
    try:
        while True:
            for number in islice(waiting, _MOST_SUBMITTED - len(running)):
                running[executor.submit(pack_unit, jobs[number])] = number
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                receipt = future.result()
                receipts.put(running.pop(future), receipt)
                progress.advance(len(receipt.rows))
    except BrokenProcessPool:
        raise DatasetError(
            "a packing process died (killed, or out of memory: fewer `--workers N` need less). Run "
            "the same command again: finished shards are kept."
        ) from None
    finally:
        for future in running:
            future.cancel()
