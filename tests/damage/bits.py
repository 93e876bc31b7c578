"""Every single bit of a file flipped once, through the parser that reads it, in a forked process.

A bit that is accepted must not change what is read; a death is seen, and by which bit.
"""

import json
import mmap
import os
import re
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data import Dataset
from pipeline.data.manifest import read_generation, read_pointer
from pipeline.errors import PipelineError
from pipeline.latents.part_rows import PartRows
from pipeline.latents.receipt import read_receipt as read_latent_receipt
from pipeline.latents.snapshot import read_pointer as read_store_pointer
from pipeline.latents.snapshot import read_published, read_snapshot
from pipeline.packing.ledger import ledger_rows, read_generation_state, read_state
from pipeline.packing.plan import find_plan
from pipeline.packing.unit import read_receipt, receipt_url
from pipeline.runs.run import Run
from pipeline.vae.bundle import BUNDLE, verify_bundle
from tests.damage.damaged_world import World

Read = Callable[[], Any]
BAD = ("OTHER", "CRASH", "DEATH")


@dataclass(frozen=True)
class Parsed:
    """A file, its kind for the table, and how all of it is read."""

    kind: str
    path: Path
    read: Read


def parsed_files(world: World) -> Iterator[Parsed]:
    """One of each kind that a reader trusts: the newest, where there are several."""
    dataset, run, store = (world.path(name) for name in ("dataset", "run", "store"))
    train, url = str(dataset / "train"), str(store)
    yield Parsed("pointer", dataset / "train/manifest.json", lambda: read_pointer(train))
    digest = Dataset.open(train).digest
    manifest = dataset / f"train/manifests/{digest}.json"
    yield Parsed("manifest", manifest, lambda: read_generation(train, digest))
    root = str(dataset)
    state = read_state(root)
    assert state is not None
    yield Parsed("pack.json", dataset / "pack.json", lambda: read_state(root))
    number = state.generation
    generation = dataset / f"ledger/{number:06d}.json"
    yield Parsed("ledger, state", generation, lambda: read_generation_state(root, number))
    for path in state.ledgers:
        yield Parsed("ledger, table", dataset / path, lambda: list(ledger_rows(root, state)))
    yield from _plan(dataset, root, number + 1)
    pointer = read_store_pointer(url)
    assert pointer is not None
    yield Parsed("store.json", store / "store.json", lambda: read_store_pointer(url))
    newest, place = pointer.number, pointer.snapshot
    published = store / f"published/{newest:06d}.json"
    yield Parsed("published", published, lambda: read_published(url, newest))
    yield Parsed("snapshot", store / place, lambda: read_snapshot(url, place, pointer.sha256))
    snapshot = read_snapshot(url, place, pointer.sha256)
    receipt = snapshot.shards[0].receipt
    key = receipt.identity, receipt.source_sha256
    latent_receipt = store / f"receipts/{key[0]}/{key[1]}.json"
    yield Parsed("latent receipt", latent_receipt, lambda: read_latent_receipt(url, *key))
    rows = PartRows(url, receipt.parts[0], snapshot.identity)
    yield Parsed("latent file", Path(rows.url), lambda: _latents(rows))
    bundle = run / "bundle"
    stated = bundle / "bundle.json"
    yield Parsed("bundle.json", stated, lambda: BUNDLE.parse(stated.read_bytes(), "bundle.json"))
    for name in ("config.json", "preprocess.json", "model.safetensors"):
        yield Parsed(f"bundle, {name}", bundle / name, lambda: verify_bundle(bundle))
    began = Run(str(run))
    yield Parsed("run.json", run / "run.json", lambda: (began.config(), began.pins()))


def _plan(dataset: Path, root: str, number: int) -> Iterator[Parsed]:
    """Of the pack that was killed after its first unit."""
    scratch = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)

    def read() -> Any:
        plan = find_plan(root, number, Path(scratch.name))
        assert plan is not None
        return {**vars(plan), "path": None}, [plan.unit(n) for n in range(plan.units)]

    plan = find_plan(root, number, Path(scratch.name))
    assert plan is not None
    yield Parsed("plan", dataset / f"plans/{number:06d}.json", read)
    (table,) = (dataset / f"plans/{number:06d}").glob("*.arrow")
    yield Parsed("plan, table", table, read)
    receipt = receipt_url(root, number, plan.digest, 0)
    yield Parsed("plan, receipt", Path(receipt), lambda: read_receipt(receipt))


def _latents(rows: PartRows) -> list[Any]:
    fresh = PartRows(rows.store, rows.part, rows.identity)  # compares its bytes anew
    found = []
    for number in range(len(rows.part.record_batches)):
        batch = fresh.read(number)
        tensors = {name: value.tobytes() for name, value in batch.tensors.items()}
        found.append((list(batch.keys), batch.positions.tolist(), tensors, dict(batch.columns)))
    return found


@dataclass(frozen=True)
class Flipped:
    """What the bits of one file came to: verdicts counted, and what was said of each bad one."""

    kind: str
    bits: int
    verdicts: Counter[str]
    bad: tuple[str, ...]


def flip(parsed: Parsed, stride: int) -> Flipped:
    """Flips every `stride`-th bit once; the file is whole again afterwards."""
    whole = parsed.path.read_bytes()
    bits = range(0, 8 * len(whole), stride)
    at = mmap.mmap(-1, 8)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with os.fdopen(write, "w") as file:
            json.dump(_flip_here(parsed, whole, bits, at), file)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        data = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    parsed.path.write_bytes(whole)
    verdicts, bad = json.loads(data) if data else ({"DEATH": 1}, [f"bit {_bit(at)}: {status}"])
    return Flipped(parsed.kind, len(bits), Counter(verdicts), tuple(bad))


def _bit(at: mmap.mmap) -> int:
    return int(struct.unpack("<q", at[:8])[0])


def _flip_here(
    parsed: Parsed, whole: bytes, bits: range, at: mmap.mmap
) -> tuple[Counter[str], list[str]]:
    expected = repr(parsed.read())
    verdicts: Counter[str] = Counter()
    bad: list[str] = []
    file = os.open(parsed.path, os.O_RDWR)
    for bit in bits:
        at[:8] = struct.pack("<q", bit)
        place, mask = divmod(bit, 8)
        os.pwrite(file, bytes([whole[place] ^ (1 << mask)]), place)
        verdict, said = _read(parsed.read, expected)
        os.pwrite(file, whole[place : place + 1], place)
        verdicts[verdict] += 1
        if verdict in BAD:
            bad.append(f"{parsed.kind}, bit {bit}: {verdict} {said}")
    return verdicts, bad[:20]


def _read(read: Read, expected: str) -> tuple[str, str]:
    try:
        found = repr(read())
    except PipelineError as error:
        line = str(error)
        return ("refused", "") if not re.search(r"[\x00-\x08\x1b]", line) else ("CRASH", line)
    except Exception as error:  # noqa: BLE001 - it is what is looked for
        return "CRASH", f"{type(error).__name__}: {error}"[:300]
    return ("the same", "") if found == expected else ("OTHER", found[:300])


def table(found: list[Flipped]) -> str:
    """Bits by kind of file and verdict, as Markdown."""
    verdicts = ("refused", "the same", *BAD)
    kinds = {one.kind: Counter[str]() for one in found}
    for one in found:
        kinds[one.kind] += one.verdicts
    lines = [f"| file | bits | {' | '.join(verdicts)} |", "|---|" + "---|" * (len(verdicts) + 1)]
    for kind, counts in [*kinds.items(), ("all", sum(kinds.values(), Counter[str]()))]:
        row = [counts[verdict] for verdict in verdicts]
        lines.append(f"| {kind} | {counts.total():,} | {' | '.join(f'{n:,}' for n in row)} |")
    return "\n".join(lines)
