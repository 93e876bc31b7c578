"""The end of a pack: receipts become manifests, then the ledger, then the pointer to it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from pipeline import storage
from pipeline.data.manifest import (
    POINTER,
    Manifest,
    pointer_to,
    read_current,
    read_generation,
    write_manifest,
)
from pipeline.errors import DatasetError, ObjectNotFoundError
from pipeline.json_value import Json
from pipeline.masking import printable
from pipeline.packing.counts import Counts, TableCounts, counted, with_cures
from pipeline.packing.inventory import Inventory
from pipeline.packing.ledger import (
    GONE,
    STATE,
    LedgerRow,
    PackState,
    Split,
    create_state,
    ledger_rows,
    read_state,
    rejects_of,
    state_to_bytes,
    without,
    write_ledger,
)
from pipeline.packing.ledger_table import BATCH_ROWS, Found, found_in
from pipeline.packing.plan import Plan, remove_plans
from pipeline.packing.unit import UnitReceipt, UnitRow
from pipeline.packing.workers import Receipts
from pipeline.sources.source_file import SourceFile

REJECTS = "rejects.jsonl"
LEFT_BEHIND = "left-behind.txt"
"""Keys of samples that the sources of the last pack hold no more, one a line, for `--remove`."""


@dataclass(frozen=True)
class PackResult:
    """What a pack ended with.

    `samples`, `shards`, `bytes`, `copies` and the last ones are of the whole dataset, the law's
    numbers of what the sources hold now, `added` and `removed` of this call.
    """

    dataset: str
    digest: str
    generation: int
    samples: int
    shards: int
    bytes: int
    counts: Counts
    added: int = 0
    removed: int = 0
    replaced: tuple[int, str] = (0, "")
    """Samples of this call whose path had other bytes before; how many, one's path."""
    rejects_url: str | None = None
    holdout: str | None = None
    holdout_samples: int = 0
    copies: int = 0
    """Samples of which another one has exactly the same bytes as they were before packing."""
    found: Found | None = None
    """What the samples are; None where nobody looked (`jobs.index`)."""
    left_behind: tuple[int, str] = (0, "")
    """Samples whose inputs the same sources hold no more, which stay; how many, one's path."""
    left_behind_url: str | None = None
    """Where the keys of all of them are, one a line."""
    table: TableCounts = TableCounts()  # noqa: RUF009  # frozen
    """Of the annotations."""

    def __repr__(self) -> str:
        held = f", and {self.holdout_samples:,} in {self.holdout}" if self.holdout else ""
        first = f"Dataset {self.dataset}: {self.samples:,} samples in {self.shards:,} shards{held}"
        return printable("\n".join([storage.shown(first), *self.counts.summary()]))

    def as_place(self) -> str:
        """Where the dataset is (of a split one the part to train on)."""
        return self.dataset

    @property
    def seen(self) -> int:
        """Inputs that the sources hold."""
        return self.counts.seen

    @property
    def rejected(self) -> int:
        """Inputs that are not good."""
        return self.counts.rejected

    @property
    def reasons(self) -> Mapping[str, int]:
        """Of the rejected ones."""
        return self.counts.reasons

    @property
    def ignored(self) -> Mapping[str, int]:
        """Inputs that were not opened, by kind."""
        return self.counts.ignored

    def to_json(self) -> Json:
        """The result of the job: the law's numbers stand beside the rest."""
        values = asdict(self)
        law, told = values.pop("counts"), {n: values[n][0] for n in ("left_behind", "replaced")}
        return {**values, **law, "rejected": self.rejected, **told}


def commit_generation(
    output: str,
    plan: Plan,
    receipts: Receipts,
    state: PackState | None,
    inventory: Inventory,
) -> PackResult:
    """Writes manifests and ledger, then creates the state that names them: from then on all counts.

    Raises `DatasetError` if another pack has committed this generation with other content.
    """
    merger = _Merger(plan, receipts, inventory, first=state is None)
    with inventory.ledger.at_once():
        path = write_ledger(output, plan.generation, merger.rows(), inventory.folder)
    if not inventory.ledger.number("COUNT(*)") and state is None:
        write_rejects(output, inventory)
        remove_plans(output, plan.generation)
        reasons = Counter(name.partition(":")[2] for name in merger.statuses.elements())
        raise DatasetError(
            f"{output}: none of the {plan.files} inputs can be used ({with_cures(reasons)}); "
            f"{storage.join(output, REJECTS)} lists each with its reason."
        )
    is_split = bool(plan.request.options.holdout)
    splits: tuple[Split, ...] = ("train", "holdout") if is_split else ("",)
    manifests = {
        split: _write_split(output, split, receipts, merger.dead[split], state) for split in splits
    }
    sources = sorted({*(state.sources if state else ()), *plan.request.sources})
    state = PackState(
        generation=plan.generation,
        options=plan.request.options,
        sources=tuple(sources),
        classes=dict(plan.classes),
        ledgers=(*(state.ledgers if state else ()), path),
        manifests=manifests,
    )
    committed = create_state(output, state)
    newest = publish_newest(output, state if committed else None, inventory)
    remove_plans(output, plan.generation)
    if not committed:
        raise DatasetError(
            f"{output}: another pack finished generation {plan.generation} first, with sources "
            "that changed in between; nothing of it was touched. Run the same command again: it "
            "packs what is missing."
        )
    return present_result(output, newest, inventory, plan, merger)


class _Merger:
    """Makes the ledger's rows of a generation, and finds the samples that no longer count."""

    def __init__(
        self, plan: Plan, receipts: Receipts, inventory: Inventory, *, first: bool
    ) -> None:
        """`first`: no key is known yet, and none is looked for."""
        self._plan, self._receipts, self._inventory = plan, receipts, inventory
        self._first = first
        self._removals = frozenset(plan.removals)
        self._untold: list[LedgerRow] = []
        """Rows that the inventory will hold: a statement for each would cost a tenth of a pack."""
        self.dead: defaultdict[str, defaultdict[str, set[int]]] = defaultdict(
            lambda: defaultdict(set)
        )
        """Positions that no longer count, by split and shard."""
        self.statuses: Counter[str] = Counter()
        """What became of the inputs that were read, by "STATUS:REASON"."""
        self.added = self.removed = self.replaced = 0
        self.example = ""

    def rows(self) -> Iterator[LedgerRow]:
        """In the plan's order, then what is removed; all are in the inventory when they end."""
        self._inventory.ledger.set_aside(self._leaving())
        for number, receipt in enumerate(self._receipts):
            unit = self._plan.unit(number)
            for file, found in zip(unit.files, receipt.rows, strict=True):
                before = None if self._first else self._inventory.ledger.row(file.key)
                row = _ledger_row(file, found, receipt, before)
                same = self._copy_of(row, before) if row.status == "packed" else None
                if same is not None:
                    self.dead[row.split][row.shard].add(row.position)
                    row = replace(row, status="duplicate", message=f"had the same bytes as {same}",
                                  split="", shard="", position=-1)  # fmt: skip
                self._take(row, before)
                leaves = file.key in self._removals
                was = before.sha256 if before is not None and before.shard else row.sha256
                if row.shard and was != row.sha256 and not leaves:
                    self.replaced, self.example = self.replaced + 1, self.example or row.path
                self.statuses["removed:" if leaves else f"{row.status}:{row.reason}"] += 1
                self.added += found.status == "packed" and row.status == "packed"
                yield row
        self._tell_inventory()
        self.removed = len(self._plan.removals)
        gone = dict.fromkeys(self._plan.vanished, GONE)
        for key, reason in {**gone, **dict.fromkeys(self._plan.removals, "")}.items():
            old = self._inventory.ledger.row(key)
            assert old is not None, "only what is there is removed"
            row = replace(
                old, split="", shard="", position=-1, status="removed", reason=reason, message=""
            )
            self._take(row, old)
            yield row
        self._tell_inventory()

    def _leaving(self) -> list[str]:
        """Keys of samples whose bytes they will not have when this ends: nothing is their copy."""
        ledger = self._inventory.ledger
        asked = self._plan.request.deduplicate or ledger.number("COUNT(*)", "status='duplicate'")
        if self._first or not asked:
            return []
        leaving = list(self._plan.removals)
        for number, receipt in enumerate(self._receipts):
            for file, found in zip(self._plan.unit(number).files, receipt.rows, strict=True):
                before = None if found.status == "same" else ledger.row(file.key)
                if before is not None and (found.status, found.sha256) != ("packed", before.sha256):
                    leaving.append(file.key)
        return leaving

    def _copy_of(self, row: LedgerRow, before: LedgerRow | None) -> str | None:
        was = before is not None and (before.status, before.sha256) == ("duplicate", row.sha256)
        asked = self._plan.request.deduplicate or was
        if not asked or (before and before.shard == row.shard):
            return None
        self._tell_inventory()
        return self._inventory.ledger.copy_of(row.sha256, row.key)

    def _take(self, row: LedgerRow, before: LedgerRow | None) -> None:
        if before is not None and before.shard and before.shard != row.shard:
            self.dead[before.split][before.shard].add(before.position)
        self._untold.append(row)
        if len(self._untold) == BATCH_ROWS:
            self._tell_inventory()

    def _tell_inventory(self) -> None:
        self._inventory.ledger.put(self._untold)
        self._untold.clear()


def publish_newest(output: str, state: PackState | None, inventory: Inventory) -> PackState:
    """Makes all that is read first name the newest state; that state, of which the inventory is.

    The inventory is that of `state`. A pack that slept may replace what a later one wrote; but
    whoever writes looks for a newer state afterwards: who writes last writes the newest.
    """
    written = None
    while (newest := read_state(output)) != written:
        assert newest is not None, "whoever publishes has seen a state"
        if newest != state:
            state = newest
            inventory.ledger.clear()
            inventory.ledger.put(ledger_rows(output, newest))
        write_rejects(output, inventory)
        for split, digest in newest.manifests.items():
            url = split_url(output, split)
            pointer = pointer_to(read_generation(url, digest), newest.generation, split)
            _replace(storage.join(url, POINTER), pointer.to_bytes())
        _replace(storage.join(output, STATE), state_to_bytes(newest))
        written = newest
    assert written is not None, "the loop wrote once at least"
    return written


def _replace(url: str, data: bytes) -> None:
    """Writes what is not there already: a call with nothing to do changes no byte."""
    try:
        if storage.read(url) == data:
            return
    except ObjectNotFoundError:
        pass
    storage.publish(url, data)


def split_url(output: str, split: str) -> str:
    """Where a split of the dataset in `output` lies."""
    return storage.join(output, split) if split else output


def present_result(
    output: str, state: PackState, inventory: Inventory, plan: Plan, merger: _Merger | None = None
) -> PackResult:
    """The result from what is committed; without `merger`, of a call that changed nothing.

    Writes the list of what was left behind.
    """
    split = bool(state.options.holdout)
    url = storage.join(output, "train") if split else output
    manifest = read_current(url)
    held = read_current(storage.join(output, "holdout")) if split else None
    assert manifest is not None, "a state is written after the manifests"
    # The first pack leaves nothing behind.
    behind = inventory.left_behind() if plan.generation > 1 else (0, "")
    left_behind_url = storage.join(output, LEFT_BEHIND) if behind[0] else None
    _write_list(output, LEFT_BEHIND, inventory.keys_left_behind() if behind[0] else b"")
    statuses = merger.statuses if merger is not None else Counter[str]()
    return PackResult(
        dataset=url,
        digest=manifest.digest,
        generation=manifest.generation,
        samples=manifest.samples,
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        counts=counted(statuses + Counter(plan.known), plan.seen, plan.others),
        added=merger.added if merger is not None else 0,
        removed=merger.removed if merger is not None else 0,
        replaced=(merger.replaced, merger.example) if merger is not None else (0, ""),
        rejects_url=storage.join(output, REJECTS)
        if inventory.ledger.number("COUNT(*)", _LOST)
        else None,
        holdout=storage.join(output, "holdout") if split else None,
        holdout_samples=held.samples if held else 0,
        copies=inventory.ledger.number("COUNT(*) - COUNT(DISTINCT sha256)"),
        found=found_in(inventory.ledger),
        left_behind=behind,
        left_behind_url=left_behind_url,
        table=plan.table,
    )


_LOST = "status IN ('rejected', 'ignored', 'duplicate')"


def _ledger_row(
    file: SourceFile, row: UnitRow, receipt: UnitReceipt, before: LedgerRow | None
) -> LedgerRow:
    if row.status == "same":
        assert before is not None, "only content that is known can be the same"
        return replace(before, url=file.url, size=file.size, etag=file.etag)
    shard = receipt.shards[row.split].path if row.status == "packed" else ""
    return LedgerRow(
        key=file.key,
        url=file.url,
        path=file.path,
        size=file.size,
        etag=file.etag,
        sha256=row.sha256,
        split=row.split,
        shard=shard,
        position=row.position,
        status=row.status,
        reason=row.reason,
        message=row.message,
        label=row.label,
        width=row.width,
        height=row.height,
        mode=row.mode,
        annotation=row.annotation,
    )


def write_rejects(output: str, inventory: Inventory) -> None:
    """Lists what was rejected, ignored or a duplicate, and why; no file where there is nothing."""
    _write_list(output, REJECTS, rejects_of(inventory.ledger.rows(_LOST)))


def _write_list(output: str, name: str, data: bytes) -> None:
    url = storage.join(output, name)
    if data:
        _replace(url, data)
    else:
        storage.delete(url)


def _write_split(
    output: str, split: Split, receipts: Receipts,
    dead: Mapping[str, Iterable[int]], state: PackState | None,
) -> str:  # fmt: skip
    """The manifest that follows on the one of `state`; its digest. Nothing names it yet."""
    url = split_url(output, split)
    before = read_generation(url, state.manifests[split]) if state else None
    old = before.shards if before else ()
    present = {shard.path for shard in old}
    new = receipts.shards(split)
    shards = without((*old, *(shard for shard in new if shard.path not in present)), dead)
    if before is not None and shards == before.shards:
        return before.digest
    generation, parent = (before.generation + 1, before.digest) if before else (1, None)
    manifest = Manifest(generation, parent, shards)
    write_manifest(url, manifest)
    return manifest.digest
