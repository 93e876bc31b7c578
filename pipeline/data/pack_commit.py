"""The end of a pack: receipts become manifests, then the ledger, then the pointer to it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline import storage
from pipeline.data.ledger import (
    LedgerRow,
    PackState,
    without,
    write_ledger,
    write_state,
)
from pipeline.data.manifest import Manifest, commit, read_current
from pipeline.data.pack_unit import UnitReceipt, UnitRow
from pipeline.data.plan import Plan, remove_plan
from pipeline.data.sources import SourceFile
from pipeline.errors import DatasetError

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
    """Writes manifests, rejects, ledger and state, each idempotent; then clears the plan."""
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
    rejects_url = _write_rejects(output, merged.values())
    if not any(row.shard for row in merged.values()) and state is None:
        remove_plan(output, plan.generation, len(units))
        raise DatasetError(
            f"{output}: none of the {len(plan.files)} inputs can be used; {rejects_url} lists each "
            "with its reason."
        )
    for split in ("train", "holdout") if plan.request["options"]["holdout"] else ("",):
        _commit_split(output, split, receipts, dead[split])
    path = write_ledger(output, plan.generation, rows.values())
    sources = sorted({*(state.sources if state else ()), *plan.request["sources"]})
    state = PackState(
        plan.generation, plan.request["options"], tuple(sources), plan.classes,
        (*(state.ledgers if state else ()), path),
    )  # fmt: skip
    write_state(output, state)
    remove_plan(output, plan.generation, len(units))
    statuses = Counter[str](row.status for receipt in receipts for row in receipt.rows)
    return present_result(output, state, merged, plan, statuses, rows.values())


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
    from dataclasses import replace

    return replace(row, **changes)  # type: ignore[arg-type]


def _write_rejects(output: str, rows: Iterable[LedgerRow]) -> str | None:
    lines = [
        storage.canonical_json(
            {"path": row.path, "url": row.url, "reason": row.reason, "message": row.message}
        )
        for row in sorted(rows, key=lambda row: row.key)
        if _is_rejected(row)
    ]
    url = storage.join(output, REJECTS)
    if lines:
        storage.publish(url, b"".join(lines))
        return url
    storage.delete(url)
    return None


def _commit_split(
    output: str, split: str, receipts: Sequence[UnitReceipt], dead: Mapping[str, Iterable[int]]
) -> None:
    """Adds the new shards; a call that was killed after this step finds them there already."""
    url = storage.join(output, split) if split else output
    current = read_current(url)
    old = current.shards if current else ()
    present = {shard.path for shard in old}
    new = [r.shards[split] for r in receipts if split in r.shards]
    shards = (*without(old, dead), *(shard for shard in new if shard.path not in present))
    if current is not None and shards == current.shards:
        return
    generation, parent = (current.generation + 1, current.digest) if current else (1, None)
    commit(url, Manifest(generation, parent, shards))
