"""The end of a pack: receipts become manifests, then the ledger, then the pointer to it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

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
from pipeline.packing.ledger import (
    STATE,
    LedgerRow,
    PackState,
    create_state,
    read_ledger,
    read_state,
    state_to_bytes,
    without,
    write_ledger,
)
from pipeline.packing.plan import Plan, remove_plan
from pipeline.packing.sources import SourceFile
from pipeline.packing.unit import UnitReceipt, UnitRow

REJECTS = "rejects.jsonl"


@dataclass(frozen=True)
class PackResult:
    """What a pack ended with; counts of samples are of the whole dataset, `seen` of this call."""

    dataset: str
    digest: str
    generation: int
    samples: int
    shards: int
    bytes: int
    seen: int
    added: int
    removed: int
    rejected: int
    reasons: Mapping[str, int]
    rejects_url: str | None
    ignored: Mapping[str, int]
    """Files below the sources whose suffix is no image's, by suffix; "hidden" for dot files."""
    holdout: str | None = None
    holdout_samples: int = 0


def commit_generation(
    output: str,
    plan: Plan,
    receipts: Sequence[UnitReceipt],
    state: PackState | None,
    ledger: Mapping[str, LedgerRow],
) -> PackResult:
    """Writes manifests and ledger, then creates the state that names them: from then on all counts.

    Raises `DatasetError` if another pack has committed this generation with other content.
    """
    units = list(plan.units())
    rows: dict[str, LedgerRow] = {}
    for unit, receipt in zip(units, receipts, strict=True):
        for file, row in zip(plan.files[unit], receipt.rows, strict=True):
            rows[file.key] = _ledger_row(file, row, receipt, ledger.get(file.key))
    for key in plan.removals:
        old = ledger[key]
        rows[key] = _replaced(old, split="", shard="", position=-1, reason="removed", message="")
    merged = {**ledger, **rows}
    dead: defaultdict[str, defaultdict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for key, now in rows.items():
        before = ledger.get(key)
        if before is not None and before.shard and before.shard != now.shard:
            dead[before.split][before.shard].add(before.position)
    if not any(row.shard for row in merged.values()) and state is None:
        _write_rejects(output, merged.values())
        remove_plan(output, plan.generation)
        raise DatasetError(
            f"{output}: none of the {len(plan.files)} inputs can be used; "
            f"{storage.join(output, REJECTS)} lists each with its reason."
        )
    manifests = {
        split: _write_split(output, split, receipts, dead[split], state)
        for split in (("train", "holdout") if plan.request["options"]["holdout"] else ("",))
    }
    path = write_ledger(output, plan.generation, rows.values())
    sources = sorted({*(state.sources if state else ()), *plan.request["sources"]})
    state = PackState(
        plan.generation, plan.request["options"], tuple(sources), plan.classes,
        (*(state.ledgers if state else ()), path), manifests,
    )  # fmt: skip
    committed = create_state(output, state)
    newest, ledger = publish_newest(output, state if committed else None, merged)
    remove_plan(output, plan.generation)
    if not committed:
        raise DatasetError(
            f"{output}: another pack finished generation {plan.generation} first, with sources "
            "that changed in between; nothing of it was touched. Run the same command again: it "
            "packs what is missing."
        )
    statuses = Counter[str](row.status for receipt in receipts for row in receipt.rows)
    return present_result(output, newest, ledger, plan, statuses, rows.values())


def publish_newest(
    output: str, state: PackState | None, ledger: Mapping[str, LedgerRow]
) -> tuple[PackState, Mapping[str, LedgerRow]]:
    """Makes all that is read first name the newest state; that state, and its ledger.

    `ledger` is that of `state`. A pack that slept may replace what a later one wrote; but whoever
    writes looks for a newer state afterwards, so that whoever writes last writes the newest.
    """
    written = None
    while (newest := read_state(output)) != written:
        assert newest is not None, "whoever publishes has seen a state"
        if newest != state:
            state, ledger = newest, read_ledger(output, newest)
        _write_rejects(output, ledger.values())
        for split, digest in newest.manifests.items():
            url = _split_url(output, split)
            _replace(storage.join(url, POINTER), pointer_to(read_generation(url, digest)))
        _replace(storage.join(output, STATE), state_to_bytes(newest))
        written = newest
    assert written is not None, "the loop wrote once at least"
    return written, ledger


def _replace(url: str, data: bytes) -> None:
    """Writes what is not there already: a call with nothing to do changes no byte."""
    try:
        if storage.read(url) == data:
            return
    except ObjectNotFoundError:
        pass
    storage.publish(url, data)


def _split_url(output: str, split: str) -> str:
    return storage.join(output, split) if split else output


def present_result(
    output: str,
    state: PackState,
    ledger: Mapping[str, LedgerRow],
    plan: Plan,
    statuses: Mapping[str, int] | None = None,
    rows: Iterable[LedgerRow] = (),
) -> PackResult:
    """The result from what is committed; without `statuses`, of a call that changed nothing."""
    split = bool(state.options["holdout"])
    url = storage.join(output, "train") if split else output
    manifest = read_current(url)
    held = read_current(storage.join(output, "holdout")) if split else None
    assert manifest is not None, "a state is written after the manifests"
    rejected = [row for row in ledger.values() if _is_rejected(row)]
    now = statuses or {}
    return PackResult(
        dataset=url,
        digest=manifest.digest,
        generation=manifest.generation,
        samples=manifest.samples,
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        seen=sum(now.values()),
        added=now.get("packed", 0),
        removed=len(plan.removals),
        rejected=now.get("rejected", 0) if statuses is not None else len(rejected),
        reasons=dict(
            Counter(
                row.reason
                for row in (rows if statuses is not None else rejected)
                if _is_rejected(row)
            )
        ),
        rejects_url=storage.join(output, REJECTS) if rejected else None,
        ignored=dict(sorted(plan.ignored.items())),
        holdout=storage.join(output, "holdout") if split else None,
        holdout_samples=held.samples if held else 0,
    )


def _is_rejected(row: LedgerRow) -> bool:
    return row.reason not in ("", "removed")


def _ledger_row(
    file: SourceFile, row: UnitRow, receipt: UnitReceipt, before: LedgerRow | None
) -> LedgerRow:
    if row.status == "same":
        assert before is not None, "only content that is known can be the same"
        return _replaced(before, url=file.url, size=file.size, etag=file.etag)
    shard = receipt.shards[row.split].path if row.status == "packed" else ""
    return LedgerRow(
        file.key, file.url, file.path, file.size, file.etag, row.sha256, row.split, shard,
        row.position, row.reason, row.message,
    )  # fmt: skip


def _replaced(row: LedgerRow, **changes: str | int) -> LedgerRow:
    return replace(row, **changes)  # type: ignore[arg-type]


def _write_rejects(output: str, rows: Iterable[LedgerRow]) -> None:
    lines = [
        storage.canonical_json(
            {"path": row.path, "url": row.url, "reason": row.reason, "message": row.message}
        )
        for row in sorted(rows, key=lambda row: row.key)
        if _is_rejected(row)
    ]
    url = storage.join(output, REJECTS)
    if lines:
        _replace(url, b"".join(lines))
    else:
        storage.delete(url)


def _write_split(
    output: str, split: str, receipts: Sequence[UnitReceipt],
    dead: Mapping[str, Iterable[int]], state: PackState | None,
) -> str:  # fmt: skip
    """The manifest that follows on the one of `state`; its digest. Nothing names it yet."""
    url = _split_url(output, split)
    if state is None:
        before = None
    elif split in state.manifests:
        before = read_generation(url, state.manifests[split])
    else:
        before = read_current(url)  # of a version that kept no digests
    old = before.shards if before else ()
    new = [r.shards[split] for r in receipts if split in r.shards]
    present = {shard.path for shard in old}
    shards = (*without(old, dead), *(shard for shard in new if shard.path not in present))
    if before is not None and shards == before.shards:
        return before.digest
    generation, parent = (before.generation + 1, before.digest) if before else (1, None)
    manifest = Manifest(generation, parent, shards)
    write_manifest(url, manifest)
    return manifest.digest
