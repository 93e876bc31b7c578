"""Packing: sources are listed and planned, units run in parallel, the manifest comes last."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from itertools import islice

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.counted import counted
from pipeline.data.decode import PIXEL_LIMIT
from pipeline.data.manifest import POINTER
from pipeline.errors import DatasetError, SampleError
from pipeline.masking import shell_word
from pipeline.packing.commit import (
    PackResult,
    commit_generation,
    present_result,
    publish_newest,
)
from pipeline.packing.counts import TableCounts
from pipeline.packing.inspect_image import PackOptions
from pipeline.packing.inventory import Choice, Inventory, open_inventory
from pipeline.packing.ledger import GONE, PackState, ledger_rows, read_state
from pipeline.packing.leftovers import (
    find_leftovers,
    refuse_beside_removal,
    refuse_inside,
    remove_leftovers,
)
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
from pipeline.packing.workers import Jobs, run_units
from pipeline.places import refuse_another_kind
from pipeline.progress import Progress
from pipeline.sources.annotations import counting_columns, digest_of_text, read_annotations
from pipeline.sources.archives import forget_unpacked
from pipeline.sources.listing import Listing, list_sources
from pipeline.sources.source_file import SourceFile
from pipeline.sources.tables import read_table_row
from pipeline.storage.documents import MOST_DIGITS

logger = logging.getLogger(__name__)


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
    refuse_another_kind(output, "an image dataset", "--output URL")
    refuse_beside_removal(output)
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
        logger.warning(
            "%s: goes on with what an earlier start of this command listed, %s inputs and what was "
            "said of them then. What is new, gone, changed or labelled otherwise since comes by "
            "`--append`, once this has ended.",
            storage.shown(output),
            f"{plan.files:,}",
        )
    else:
        plan = make_plan(config, state, inventory, generation)
        if not (plan.files or plan.removals or plan.vanished):
            if state is None:
                raise DatasetError(f"{output}: there is nothing to pack: {plan.seen} inputs seen.")
            remove_plans(output, state.generation)
            return present_result(output, publish_newest(output, state, inventory), inventory, plan)
        plan = claim(output, plan)
        refuse_beside_removal(output)  # one that began meanwhile has seen no plan
        if read_state(output) != state:
            # Another pack committed the generation, and removed its plan, while this one listed.
            remove_plans(output, generation)
            return _pack(config, executor)
        check_request(plan, request_of(config), output)
    receipts = run_units(Jobs(config, output, plan, executor), inventory.folder)
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
    refuse_inside(output, config.source)
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
            f"`{' '.join(map(shell_word, state.flags(differing)))}`, or another `--output URL`."
        )


def make_plan(
    config: PackConfig, state: PackState | None, inventory: Inventory, generation: int
) -> Plan:
    """Lists the sources and plans what the dataset has not seen; nothing is stored yet."""
    listing = Listing(config.image_column, config.below, alone=len(config.source) == 1)
    with Progress("listing", None, "inputs") as progress:
        for source in config.source:
            inventory.list_inputs(source, _shown(list_sources((source,), listing), progress))
    known = Counter({("ignored", "replaced"): inventory.settle()})
    told = _tell(config, inventory, listing)
    choice = Choice(config.checksum, config.retry_rejected, config.repack, config.image_column,
                    config.below, told=bool(told.rows))  # fmt: skip
    removals = _removals(config, inventory)
    inventory.compare(config.source, state.sources if state else (), removals)
    vanished = tuple(inventory.vanished())
    if state is not None and not (config.append or config.remove):
        _check_unchanged(inventory, choice, storage.absolute(config.output))
        inputs = PlannedInputs(0, 0, 0, "")
        known += inventory.unread()
    else:
        known += inventory.known(choice, removals)
        fresh = islice(inventory.fresh(choice), config.limit)
        unit_bytes = int(config.shard_bytes / (1 - config.holdout))
        inputs = write_inputs(inventory.folder / "planned.arrow", fresh, unit_bytes)
    known["ignored", "limit"] += listing.seen - known.total() - inputs.files
    return Plan(
        generation, request_of(config), _classes(state, inventory), removals, vanished,
        **vars(inputs), seen=listing.seen,
        known={f"{status}:{reason}": n for (status, reason), n in sorted(known.items()) if n},
        others=dict(sorted(listing.others.items())),
        table=told, path=inventory.folder / "planned.arrow",
    )  # fmt: skip


def _shown(files: Iterable[SourceFile], progress: Progress) -> Iterator[SourceFile]:
    for file in files:
        progress.advance()
        yield file


_KEPT = (
    "status='packed' AND annotation<>'' AND key IN "
    "(SELECT key FROM listed WHERE annotation='' AND row_group='')"
)
"""The condition on the ledger for samples of which a table said something, and none does now."""


def _tell(config: PackConfig, inventory: Inventory, listing: Listing) -> TableCounts:
    """What the table of annotations says, told to the inputs, and how much of it met."""
    if not config.annotations:
        labelled, folders = inventory.labelled()
        kept = inventory.ledger.number("COUNT(*)", _KEPT)
        return TableCounts(labelled=labelled, folders=folders, kept=kept)
    rows = counting_columns(read_annotations(config.annotations), listing.others)
    told = inventory.tell(rows, config.annotations)
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
    found = []
    for asked in config.remove:
        key = inventory.ledger.find(asked, storage.absolute(config.output), "--remove")
        row = inventory.ledger.row(key)
        # Asked for once more after it was done, it is done.
        if row is not None and row.status != "removed" and key not in found:
            found.append(key)
    return tuple(found)


def _check_unchanged(inventory: Inventory, choice: Choice, output: str) -> None:
    """Without --append a dataset is only compared: the same inputs again are no error."""
    changed, example = 0, ""
    for file, _ in inventory.fresh(choice):
        row = inventory.ledger.row(file.key)
        # What a table's own row says lies within it, and its content is compared.
        told = "" if file.row_group else digest_of_text(file.annotation)
        is_hushed = (
            row is not None
            and not told
            and not file.row_group
            and (bool(row.annotation) and (choice.told or bool(file.annotation)))
        )
        is_told = row is not None and told in ("", row.annotation) and not is_hushed
        if (
            row is None
            or row.reason == GONE
            or not is_told
            or _content_of(file, choice) != row.sha256
        ):
            changed, example = changed + 1, example or file.path
    gone = inventory.gone()
    if changed or gone:
        raise DatasetError(
            f"{output}: holds another dataset than these sources (new or changed: "
            f"{counted(changed, 'file')}; of its own not among them: {counted(len(gone), 'key')}; "
            f"e.g. {example or gone[0]}). Add "
            "`--append` to let it grow, or give another `--output URL`."
        )


def _content_of(file: SourceFile, choice: Choice) -> str:
    try:
        if file.status:
            return ""
        if file.row_group:
            data = read_table_row(file, choice.image_column, choice.below).data
        else:
            data = file.read()
    except SampleError:  # as a reject that could not be read
        return ""
    return hashlib.sha256(data).hexdigest()


def _is_number(label: str) -> bool:
    """Whether it stands for itself: a longer one fits no document, and none is a class's number."""
    return len(label) < MOST_DIGITS and label.isdecimal() and str(int(label)) == label


def _classes(state: PackState | None, inventory: Inventory) -> dict[str, int]:
    """Class numbers: labels that are numbers stand for themselves, others count up as sorted.

    A number once given stays; labels that come later get the next ones.
    """
    classes = dict(state.classes) if state else {}
    new = sorted(inventory.labels() - classes.keys())
    if all(map(_is_number, [*new, *classes])):
        return {**classes, **{label: int(label) for label in new}}
    following = max(classes.values(), default=-1) + 1
    return {**classes, **{label: following + n for n, label in enumerate(new)}}
