"""Packing: sources are listed and planned, units run in parallel, the manifest comes last."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.data.decode import PIXEL_LIMIT
from pipeline.data.manifest import POINTER
from pipeline.errors import DatasetError, ObjectNotFoundError
from pipeline.packing.annotations import Annotation, annotation_of, check_matching, read_annotations
from pipeline.packing.archives import forget_unpacked
from pipeline.packing.commit import (
    PackResult,
    commit_generation,
    present_result,
    publish_newest,
)
from pipeline.packing.inspect_image import ImagePolicy
from pipeline.packing.ledger import LedgerRow, PackState, read_ledger, read_state
from pipeline.packing.leftovers import find_leftovers, remove_leftovers
from pipeline.packing.plan import Plan, check_request, claim, find_plan, remove_plan
from pipeline.packing.sources import Listing, SourceFile, is_matching, list_sources
from pipeline.packing.unit import UnitJob, UnitReceipt, pack_unit, receipt_url
from pipeline.progress import Progress

# Measured on 2 cores: threads of one process check photographs at 0.92 of bare decoding, processes
# at 0.77, with half a second to start. Above some 4 cores Python's lock would bind the threads.
_THREADS_SUFFICE = 4
_WORTH_PROCESSES = 128 * 2**20


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
    output = storage.absolute(config.output)
    leftovers = find_leftovers(output)
    # Asked for in this order: whoever packs creates the state first.
    is_dataset = any(
        storage.exists(storage.join(output, path)) for path in (POINTER, f"train/{POINTER}")
    )
    state = read_state(output)
    _check_output(config, output, state, is_dataset)
    ledger = read_ledger(output, state)
    generation = (state.generation if state else 0) + 1
    plan = find_plan(output, generation)
    if plan is not None:
        check_request(plan, request_of(config), output)
    else:
        plan = make_plan(config, output, state, ledger, generation)
        if not plan.files and not plan.removals:
            assert state is not None, "a first pack without files has raised already"
            return present_result(output, *publish_newest(output, state, ledger), plan)
        plan = claim(output, plan)
        if read_state(output) != state:
            # Another pack committed the generation, and removed its plan, while this one listed.
            remove_plan(output, generation)
            return _pack(config, executor)
        check_request(plan, request_of(config), output)
    jobs = _jobs(config, output, plan, executor)
    receipts = _run_units(jobs, config, executor, len(plan.files))
    result = commit_generation(output, plan, receipts, state, ledger)
    remove_leftovers(leftovers)
    return result


def policy_of(config: PackConfig) -> ImagePolicy:
    """The part of the config that decides on one image."""
    return ImagePolicy(
        config.verify, config.encoding, config.quality, config.short_side, config.min_side,
        PIXEL_LIMIT,
    )  # fmt: skip


def options_of(config: PackConfig) -> dict[str, Any]:
    """What must not change while a dataset grows."""
    return {"holdout": config.holdout, **vars(policy_of(config))}


def request_of(config: PackConfig) -> dict[str, Any]:
    """What makes two commands the same one, so that the second goes on with the first's plan."""
    return {
        "sources": [storage.absolute(url) for url in config.source],
        "remove": list(config.remove),
        "repack": list(config.repack),
        "annotations": config.annotations,
        "limit": config.limit,
        "shard_bytes": config.shard_bytes,
        "options": options_of(config),
    }


def _check_output(
    config: PackConfig, output: str, state: PackState | None, is_dataset: bool
) -> None:
    for source in config.source:
        root = storage.absolute(source).rstrip("/")
        # Its own shards would come back as images the next time.
        if f"{output}/".startswith(f"{root}/") or is_matching(root, f"{output}/shards/0.tar"):
            raise DatasetError(f"{output}: lies inside the source {source}. Give another --output.")
    if state is None:
        if is_dataset:
            raise DatasetError(
                f"{output}: holds a dataset that jobs.pack did not make (jobs.index did, or "
                f"its {output}/pack.json is lost). Give another --output."
            )
        if config.remove:
            raise DatasetError(f"{output}: there is no dataset here to --remove anything from.")
        return
    now = options_of(config)
    differing = [name for name in now if now[name] != state.options.get(name)]
    if differing:
        lines = "; ".join(
            f"{name}: {state.options.get(name)!r} there, {now[name]!r} now" for name in differing
        )
        raise DatasetError(
            f"{output}: holds a dataset packed with other options ({lines}). Give the same ones, "
            "or another --output."
        )


def make_plan(
    config: PackConfig,
    output: str,
    state: PackState | None,
    ledger: Mapping[str, LedgerRow],
    generation: int,
) -> Plan:
    """Lists the sources and plans what the dataset has not seen; nothing is written yet."""
    listing = list_sources(config.source) if config.source else Listing()
    files = listing.files
    _check_same_origin(files, ledger)
    anew = {key for key, row in ledger.items() if row.shard and row.shard in config.repack}
    fresh = [
        file for file in files if config.checksum or file.key in anew or not _is_known(file, ledger)
    ]
    if state is not None and not (config.append or config.remove):
        _check_unchanged(files, fresh, ledger, output)
        fresh = []
    unknown = [key for key in config.remove if key not in ledger or not ledger[key].shard]
    if unknown and not _all_removed(config.remove, ledger):
        raise DatasetError(
            f"{output}: has no sample with the key {unknown[0]!r} ({len(unknown)} such keys in "
            "--remove). Keys are paths below the source, without suffix, dots written as %2E."
        )
    if config.limit is not None:
        fresh = fresh[: config.limit]
    rows: Mapping[str, Annotation] = {}
    if config.annotations:
        rows = read_annotations(config.annotations)
        check_matching(rows, (file.path for file in fresh), config.annotations)
    unit_bytes = int(config.shard_bytes / (1 - config.holdout))
    known = tuple("" if f.key in anew else _known_content(f, ledger) for f in fresh)
    removals = tuple(key for key in config.remove if key not in unknown)
    classes = _classes(state, files, rows)
    return Plan(
        generation, request_of(config), classes, removals, unit_bytes, tuple(fresh), known,
        listing.ignored,
    )  # fmt: skip


def _all_removed(keys: Sequence[str], ledger: Mapping[str, LedgerRow]) -> bool:
    return all(key in ledger and (ledger[key].shard or ledger[key].reason) for key in keys)


def _is_known(file: SourceFile, ledger: Mapping[str, LedgerRow]) -> bool:
    row = ledger.get(file.key)
    return row is not None and bool(file.etag) and (row.size, row.etag) == (file.size, file.etag)


def _known_content(file: SourceFile, ledger: Mapping[str, LedgerRow]) -> str:
    """The content as seen before; "" for a key that was removed: a file written since is new."""
    row = ledger.get(file.key)
    return row.sha256 if row is not None and row.reason != "removed" else ""


def _check_same_origin(files: Sequence[SourceFile], ledger: Mapping[str, LedgerRow]) -> None:
    for file in files:
        row = ledger.get(file.key)
        if row is not None and (row.path != file.path):
            raise DatasetError(
                f"{file.place}: would get the key {file.key!r}, which {row.path} has already. "
                "Rename it, or pack it into another dataset."
            )


def _check_unchanged(
    files: Sequence[SourceFile],
    fresh: Sequence[SourceFile],
    ledger: Mapping[str, LedgerRow],
    output: str,
) -> None:
    """Without --append a dataset is only compared: the same inputs again are no error."""
    changed = [
        file
        for file in fresh
        if file.key not in ledger
        or hashlib.sha256(file.read()).hexdigest() != ledger[file.key].sha256
    ]
    gone = {row.key for row in ledger.values() if row.reason != "removed"}
    gone -= {file.key for file in files}
    if changed or gone:
        example = changed[0].path if changed else next(iter(sorted(gone)))
        raise DatasetError(
            f"{output}: holds another dataset than these sources ({len(changed)} files are new or "
            f"changed, {len(gone)} of its keys are not among them; e.g. {example}). Add --append "
            "to let it grow, or give another --output."
        )


def _classes(
    state: PackState | None, files: Sequence[SourceFile], annotations: Mapping[str, Annotation]
) -> dict[str, int]:
    """Class numbers: labels that are numbers stand for themselves, others count up as sorted.

    A number once given stays; labels that come later get the next ones.
    """
    classes = dict(state.classes) if state else {}
    labels = {file.label for file in files if file.label is not None}
    labels |= {row.label for row in annotations.values() if row.label}
    new = sorted(labels - classes.keys())
    if all(label.isdecimal() and str(int(label)) == label for label in [*new, *classes]):
        return {**classes, **{label: int(label) for label in new}}
    following = max(classes.values(), default=-1) + 1
    return {**classes, **{label: following + n for n, label in enumerate(new)}}


def _jobs(config: PackConfig, output: str, plan: Plan, executor: Executor | None) -> list[UnitJob]:
    rows: Mapping[str, Annotation] = {}
    if config.annotations:
        rows = read_annotations(config.annotations)
    units = list(plan.units())
    cores = config.workers or len(os.sched_getaffinity(0))
    # Two threads per core: units differ in length, and the last ones must not leave cores idle.
    threads = min(cores, -(-2 * cores // _processes(config, len(units), plan.files)))
    if executor is not None:
        threads = 2  # its cores are others', one for each unit
    return [
        UnitJob(
            output, plan.generation, plan.digest, number, plan.files[unit], plan.known[unit],
            tuple(annotation_of(rows, file.path) for file in plan.files[unit]),
            plan.classes, policy_of(config), config.holdout, threads,
        )
        for number, unit in enumerate(units)
    ]  # fmt: skip


def _processes(config: PackConfig, units: int, files: Sequence[SourceFile]) -> int:
    """How many processes to run units in; 1: in this one, one after the other, by threads."""
    cores = config.workers or len(os.sched_getaffinity(0))
    small = sum(file.size for file in files) < _WORTH_PROCESSES
    return 1 if small or cores <= _THREADS_SUFFICE else max(1, min(cores, units))


def _run_units(
    jobs: Sequence[UnitJob], config: PackConfig, executor: Executor | None, files: int
) -> list[UnitReceipt]:
    """All receipts in order; units that have one are not run again."""
    receipts: dict[int, UnitReceipt] = {}
    for job in jobs:
        try:
            url = receipt_url(job)
            receipts[job.number] = UnitReceipt.from_json(storage.read_json(url), url)
        except ObjectNotFoundError:
            continue
    left = [job for job in jobs if job.number not in receipts]
    processes = _processes(config, len(left), [file for job in left for file in job.files])
    done = sum(len(receipt.rows) for receipt in receipts.values())
    with Progress("packing", files, "images", done) as progress:
        if executor is not None:
            receipts |= _run_on(executor, left, progress)
        elif processes == 1:
            receipts |= {job.number: pack_unit(job, progress) for job in left}
        else:
            # spawn: forking a process that has threads (s3fs, torch) can hang the child.
            context = get_context("spawn")
            with ProcessPoolExecutor(processes, mp_context=context) as pool:
                receipts |= _run_on(pool, left, progress)
    return [receipts[job.number] for job in jobs]


def _run_on(
    executor: Executor, jobs: Sequence[UnitJob], progress: Progress
) -> dict[int, UnitReceipt]:
    running = {executor.submit(pack_unit, job): job for job in jobs}
    receipts: dict[int, UnitReceipt] = {}
    try:
        for future in as_completed(running):
            receipts[running[future].number] = future.result()
            progress.advance(len(running[future].files))
    except BrokenProcessPool:
        raise DatasetError(
            "a packing process died (killed, or out of memory: fewer --workers need less). Run "
            "the same command again: finished shards are kept."
        ) from None
    finally:
        for future in running:
            future.cancel()
    return receipts
