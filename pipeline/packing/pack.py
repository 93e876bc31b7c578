"""Packing: sources are listed and planned, units run in parallel, the manifest comes last."""

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.data.decode import PIXEL_LIMIT
from pipeline.data.keys import find_key
from pipeline.data.manifest import POINTER
from pipeline.errors import DatasetError, ObjectNotFoundError
from pipeline.packing.commit import (
    PackResult,
    commit_generation,
    present_result,
    publish_newest,
)
from pipeline.packing.counts import TableCounts
from pipeline.packing.inspect_image import PackOptions
from pipeline.packing.inventory import Choice, Inventory, open_inventory
from pipeline.packing.ledger import PackState, ledger_rows, read_state
from pipeline.packing.leftovers import find_leftovers, remove_leftovers
from pipeline.packing.plan import (
    Plan,
    PlannedInputs,
    Request,
    check_request,
    claim,
    find_plan,
    remove_plans,
    write_inputs,
)
from pipeline.packing.unit import (
    RECEIPT,
    UnitJob,
    UnitReceipt,
    pack_unit,
    read_receipt,
    receipt_url,
)
from pipeline.progress import Progress
from pipeline.sources.annotations import read_annotations
from pipeline.sources.archives import forget_unpacked
from pipeline.sources.listing import Listing, is_matching, list_sources
from pipeline.sources.source_file import SourceFile
from pipeline.sources.tables import read_table_row

# Measured on 2 cores: threads of one process check photographs at 0.92 of bare decoding, processes
# at 0.77, with half a second to start. Above some 4 cores Python's lock would bind the threads.
_THREADS_SUFFICE = 4
_WORTH_PROCESSES = 128 * 2**20
"""Of images to check: below, starting processes takes longer than they save."""
_MOST_SUBMITTED = 2048
"""Units handed to an executor at once: their inputs are in memory until they are done."""


def pack(config: PackConfig, executor: Executor | None = None) -> PackResult:
    """Packs, or goes on packing, `config.source` into `config.output`.

    Units run on `executor` where one is given, else in processes of this machine. Raises
    `DatasetError` for sources without images and for an output that holds another dataset.
    """
    try:
        return _pack(config, executor)
    finally:
        forget_unpacked()


def _pack(config: PackConfig, executor: Executor | None) -> PackResult:
    with open_inventory() as inventory:
        return _pack_with(config, executor, inventory)


def _pack_with(config: PackConfig, executor: Executor | None, inventory: Inventory) -> PackResult:
    output = storage.absolute(config.output)
    storage.refuse_file_above(output, "--output")
    leftovers = find_leftovers(output)
    # Asked for in this order: whoever packs creates the state first.
    is_dataset = any(
        storage.exists(storage.join(output, path)) for path in (POINTER, f"train/{POINTER}")
    )
    state = read_state(output)
    _check_output(config, output, state, is_dataset)
    inventory.ledger.put(ledger_rows(output, state))
    generation = (state.generation if state else 0) + 1
    plan = find_plan(output, generation, inventory.folder)
    if plan is not None:
        check_request(plan, request_of(config), output)
    else:
        plan = make_plan(config, state, inventory, generation)
        if not plan.files and not plan.removals:
            if state is None:
                raise DatasetError(f"{output}: there is nothing to pack: {plan.seen} inputs seen.")
            remove_plans(output, state.generation)
            return present_result(output, publish_newest(output, state, inventory), inventory, plan)
        plan = claim(output, plan)
        if read_state(output) != state:
            # Another pack committed the generation, and removed its plan, while this one listed.
            remove_plans(output, generation)
            return _pack(config, executor)
        check_request(plan, request_of(config), output)
    receipts = _run_units(_Jobs(config, output, plan, executor), config, executor)
    result = commit_generation(output, plan, receipts, state, inventory)
    remove_leftovers(leftovers)
    return result


def options_of(config: PackConfig) -> PackOptions:
    """The part of the config that decides on each image."""
    encoding, quality = config.new_encoding
    return PackOptions(
        verify=config.verify,
        encoding=encoding,
        quality=quality,
        short_side=config.short_side,
        min_side=config.min_side,
        pixel_limit=PIXEL_LIMIT,
        holdout=config.holdout,
    )


def request_of(config: PackConfig) -> Request:
    """What is asked for."""
    return Request(
        sources=tuple(storage.absolute(url) for url in config.source),
        remove=config.remove,
        repack=config.repack,
        annotations=config.annotations,
        limit=config.limit,
        deduplicate=config.deduplicate,
        retry_rejected=config.retry_rejected,
        image_column=config.image_column,
        below=config.below,
        shard_bytes=config.shard_bytes,
        options=options_of(config),
    )


def _check_output(
    config: PackConfig, output: str, state: PackState | None, is_dataset: bool
) -> None:
    for source in config.source:
        root = storage.absolute(source).rstrip("/")
        # Its own shards would come back as images the next time.
        if f"{output}/".startswith(f"{root}/") or is_matching(root, f"{output}/shards/0.tar"):
            raise DatasetError(
                f"{output}: lies inside the source {source}. Give another `--output URL`."
            )
    if state is None:
        if is_dataset:
            raise DatasetError(
                f"{output}: holds a dataset that jobs.pack did not make (jobs.index did, or "
                f"its {output}/pack.json is lost). Give another `--output URL`."
            )
        if config.remove:
            raise DatasetError(f"{output}: there is no dataset here to `--remove` anything from.")
        return
    there, now = vars(state.options), vars(options_of(config))
    differing = [name for name in now if now[name] != there[name]]
    if differing:
        lines = "; ".join(f"{name}: {there[name]!r} there, {now[name]!r} now" for name in differing)
        raise DatasetError(
            f"{output}: holds a dataset packed with other options ({lines}). Give the same ones, "
            f"`{shlex.join(state.flags(differing))}`, or another `--output URL`."
        )


def make_plan(
    config: PackConfig, state: PackState | None, inventory: Inventory, generation: int
) -> Plan:
    """Lists the sources and plans what the dataset has not seen; nothing is stored yet."""
    listing = Listing(image_column=config.image_column, below=config.below)
    with Progress("listing", None, "inputs") as progress:
        for source in config.source:
            inventory.list_inputs(source, _shown(list_sources((source,), listing), progress))
    known = Counter({("ignored", "replaced"): inventory.settle()})
    told = _tell(config, inventory)
    choice = Choice(config.checksum, config.retry_rejected, config.repack, config.image_column)
    if state is not None and not (config.append or config.remove):
        _check_unchanged(inventory, choice, storage.absolute(config.output))
        inputs = PlannedInputs(0, 0, 0, "")
        known += inventory.unread()
    else:
        known += inventory.known(choice)
        fresh = islice(inventory.fresh(choice), config.limit)
        unit_bytes = int(config.shard_bytes / (1 - config.holdout))
        inputs = write_inputs(inventory.folder / "planned.arrow", fresh, unit_bytes)
    known["ignored", "limit"] += listing.seen - known.total() - inputs.files
    return Plan(
        generation, request_of(config), _classes(state, inventory), _removals(config, inventory),
        **vars(inputs), seen=listing.seen,
        known={f"{status}:{reason}": n for (status, reason), n in sorted(known.items()) if n},
        others=dict(sorted(listing.others.items())),
        table=told, path=inventory.folder / "planned.arrow",
    )  # fmt: skip


def _shown(files: Iterable[SourceFile], progress: Progress) -> Iterator[SourceFile]:
    for file in files:
        progress.advance()
        yield file


def _tell(config: PackConfig, inventory: Inventory) -> TableCounts:
    """What the table of annotations says, told to the inputs, and how much of it met."""
    if not config.annotations:
        return TableCounts()
    told = inventory.tell(read_annotations(config.annotations), config.annotations)
    images = inventory.inputs()
    url = storage.shown(config.annotations)
    if not told.rows:
        raise DatasetError(f"{url}: holds no rows.")
    if images and not told.met:
        raise DatasetError(
            f"{url}: none of its {told.rows} rows names an image of the sources. It names "
            f"{told.example!r}, the first image is {inventory.first_path()!r}: paths "
            "are relative to the source."
        )
    rows_over = told.unmatched > config.unmatched * told.rows
    if rows_over or images - told.images > config.unmatched * images:
        example = f" (e.g. {told.example!r})" if told.example else ""
        raise DatasetError(
            f"{url}: {told.images:,} of {images:,} images have a row; {told.unmatched:,} of its "
            f"{told.rows:,} rows name no image{example}. Mend it, or allow a larger share by "
            "`--unmatched SHARE`."
        )
    return told


def _removals(config: PackConfig, inventory: Inventory) -> tuple[str, ...]:
    """The keys to remove, from keys or paths as people write them."""
    keys = _Keys(inventory)
    found = []
    for asked in config.remove:
        try:
            key = find_key(asked, keys)
        except KeyError as error:
            raise DatasetError(
                f"{storage.absolute(config.output)}: `--remove`: {error.args[0]}"
            ) from None
        row = inventory.ledger.row(key)
        # Asked for once more after it was done, it is done.
        if row is not None and row.status != "removed" and key not in found:
            found.append(key)
    return tuple(found)


class _Keys:
    """The ledger's keys, as a collection that is not in memory."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    def __contains__(self, key: object) -> bool:
        return self._inventory.ledger.row(str(key)) is not None

    def __iter__(self) -> Iterator[str]:
        return self._inventory.ledger.keys()

    def __len__(self) -> int:
        return self._inventory.ledger.number("COUNT(*)")


def _check_unchanged(inventory: Inventory, choice: Choice, output: str) -> None:
    """Without --append a dataset is only compared: the same inputs again are no error."""
    changed, example = 0, ""
    for file, _ in inventory.fresh(choice):
        row = inventory.ledger.row(file.key)
        if row is None or _content_of(file, choice) != row.sha256:
            changed, example = changed + 1, example or file.path
    gone = inventory.gone()
    if changed or gone:
        raise DatasetError(
            f"{output}: holds another dataset than these sources ({changed} files are new or "
            f"changed, {len(gone)} of its keys are not among them; e.g. {example or gone[0]}). Add "
            "`--append` to let it grow, or give another `--output URL`."
        )


def _content_of(file: SourceFile, choice: Choice) -> str:
    if file.status:
        return ""
    data = read_table_row(file, choice.image_column).data if file.row_group else file.read()
    return hashlib.sha256(data).hexdigest()


def _classes(state: PackState | None, inventory: Inventory) -> dict[str, int]:
    """Class numbers: labels that are numbers stand for themselves, others count up as sorted.

    A number once given stays; labels that come later get the next ones.
    """
    classes = dict(state.classes) if state else {}
    new = sorted(inventory.labels() - classes.keys())
    if all(label.isdecimal() and str(int(label)) == label for label in [*new, *classes]):
        return {**classes, **{label: int(label) for label in new}}
    following = max(classes.values(), default=-1) + 1
    return {**classes, **{label: following + n for n, label in enumerate(new)}}


class _Jobs:
    """The units of a plan as jobs, each made when it is asked for."""

    def __init__(
        self, config: PackConfig, output: str, plan: Plan, executor: Executor | None
    ) -> None:
        self.plan = plan
        self._config, self._output = config, output
        cores = config.workers or len(os.sched_getaffinity(0))
        # Two threads per core: units differ in length, and the last must not leave cores idle.
        self._threads = min(cores, -(-2 * cores // _processes(config, plan.units, plan.size)))
        if executor is not None:
            self._threads = 2  # its cores are others', one for each unit

    def __getitem__(self, number: int) -> UnitJob:
        unit, config, plan = self.plan.unit(number), self._config, self.plan
        return UnitJob(
            output=self._output,
            generation=plan.generation,
            plan=plan.digest,
            number=number,
            files=unit.files,
            known=unit.known,
            classes=plan.classes,
            options=options_of(config),
            threads=self._threads,
            image_column=config.image_column,
        )


def _processes(config: PackConfig, units: int, size: int) -> int:
    """How many processes to run units in; 1: in this one, one after the other, by threads."""
    cores = config.workers or len(os.sched_getaffinity(0))
    return 1 if size < _WORTH_PROCESSES or cores <= _THREADS_SUFFICE else max(1, min(cores, units))


def _run_units(jobs: _Jobs, config: PackConfig, executor: Executor | None) -> list[UnitReceipt]:
    """All receipts in order; units that have one are not run again."""
    plan, output = jobs.plan, storage.absolute(config.output)
    receipts: dict[int, UnitReceipt] = {}
    for number in range(plan.units):
        url = receipt_url(output, plan.generation, plan.digest, number)
        try:
            receipts[number] = read_receipt(url)
            if len(receipts[number].rows) != len(plan.unit(number).files):
                raise RECEIPT.damaged(url, "it is the receipt of other files")
        except ObjectNotFoundError:
            continue
    left = [number for number in range(plan.units) if number not in receipts]
    size = plan.size * len(left) // max(plan.units, 1)
    processes = _processes(config, len(left), size)
    done = sum(len(receipt.rows) for receipt in receipts.values())
    with Progress("packing", plan.files, "images", done) as progress:
        if executor is not None:
            receipts |= _run_on(executor, jobs, left, progress)
        elif processes == 1:
            receipts |= {number: pack_unit(jobs[number], progress) for number in left}
        else:
            # spawn: forking a process that has threads (s3fs, torch) can hang the child.
            context = get_context("spawn")
            with ProcessPoolExecutor(processes, mp_context=context) as pool:
                receipts |= _run_on(pool, jobs, left, progress)
    return [receipts[number] for number in range(plan.units)]


def _run_on(
    executor: Executor, jobs: _Jobs, numbers: Sequence[int], progress: Progress
) -> dict[int, UnitReceipt]:
    running: dict[Future[UnitReceipt], int] = {}
    receipts: dict[int, UnitReceipt] = {}
    waiting = iter(numbers)
    try:
        while True:
            for number in islice(waiting, _MOST_SUBMITTED - len(running)):
                running[executor.submit(pack_unit, jobs[number])] = number
            if not running:
                return receipts
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                receipts[number] = future.result()
                progress.advance(len(receipts[number].rows))
    except BrokenProcessPool:
        raise DatasetError(
            "a packing process died (killed, or out of memory: fewer `--workers N` need less). Run "
            "the same command again: finished shards are kept."
        ) from None
    finally:
        for future in running:
            future.cancel()
