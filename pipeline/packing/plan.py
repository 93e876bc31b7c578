"""The plan of one generation: which files, in which units; kept in storage until it is done.

A killed pack goes on with the plan as it stands, whatever the sources have got since: that is for
the next append.
"""

import hashlib
import io
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from operator import attrgetter
from pathlib import Path

import pyarrow as pa

from pipeline import storage
from pipeline.data.manifest import Count, Digest
from pipeline.errors import (
    DatasetError,
    ObjectNotFoundError,
    ShortageError,
    StorageError,
    is_shortage,
)
from pipeline.packing.counts import TableCounts
from pipeline.packing.inspect_image import PackOptions
from pipeline.sources.source_file import SourceFile
from pipeline.storage.tables import FAULTS

# A tar's own share of a sample: headers of image, json and cls, their padding, and the json.
_SAMPLE_OVERHEAD = 3584


@dataclass(frozen=True)
class Request:
    """Sources and options as given: what makes two commands the same one.

    The second goes on with the first's plan.
    """

    sources: tuple[str, ...]
    remove: tuple[str, ...]
    repack: tuple[str, ...]
    annotations: str | None
    limit: int | None
    deduplicate: bool
    retry_rejected: bool
    image_column: str | None
    below: tuple[str, ...]
    shard_bytes: int
    options: PackOptions

    def differences(self, other: "Request") -> str:
        """Each setting that differs, as it was here and is in `other`; "" for none."""
        mine, theirs = (
            {**{k: v for k, v in vars(each).items() if k != "options"}, **vars(each.options)}
            for each in (self, other)
        )
        return "; ".join(
            f"{name}: {mine[name]!r} then, {theirs[name]!r} now"
            for name in mine
            if mine[name] != theirs[name]
        )


@dataclass(frozen=True)
class Plan:
    """What one generation adds: inputs with what is known of their content, and keys to remove.

    The inputs are a table of their own, a record batch for each unit, of which a copy lies at
    `path` on this machine: however many there are, few are in memory.
    """

    generation: int
    request: Request
    """Another one may not go on with this plan."""
    classes: Mapping[str, int]
    removals: tuple[str, ...]
    vanished: tuple[str, ...]
    """Keys of rejects that the sources hold no more."""
    files: int
    units: int
    size: int
    """Bytes of the inputs, as listed."""
    sha256: str
    """Of the table."""
    seen: int
    """Inputs that the sources listed, also those that are not in the table."""
    known: Mapping[str, int]
    """Listed inputs that are not read, by "STATUS:REASON" as the ledger has it."""
    others: Mapping[str, int]
    """Files that are no images by name or first bytes, by suffix; folders, links."""
    table: TableCounts
    """Of the annotations."""
    path: Path

    @cached_property
    def digest(self) -> str:
        """In the receipts' names: a plan that was given up leaves none to the one in its place."""
        return hashlib.sha256(self.header()).hexdigest()[:12]

    def header(self) -> bytes:
        """What is stored beside the table."""
        values = {name: value for name, value in vars(self).items() if name not in _NOT_STORED}
        return PLAN.encode({**values, "request": asdict(self.request), "table": asdict(self.table)})

    def unit(self, number: int) -> "PlannedUnit":
        """The inputs of one unit."""
        # Its hash was compared when it was copied here; whoever made the hash may have meant harm.
        with pa.memory_map(str(self.path)) as file:
            batch = pa.ipc.open_file(file).get_batch(number)
            batch.validate(full=True)
            columns = batch.to_pydict()
        known = columns.pop("known")
        files = tuple(SourceFile(*values) for values in zip(*columns.values(), strict=True))
        return PlannedUnit(number, files, tuple(known))

    def inputs(self) -> Iterator[SourceFile]:
        """All inputs in packing order."""
        for number in range(self.units):
            yield from self.unit(number).files


_NOT_STORED = ("path", "digest")


@dataclass(frozen=True)
class PlannedUnit:
    """The inputs of a unit, and of each its content as packed before (SHA-256), or ""."""

    number: int
    files: tuple[SourceFile, ...]
    known: tuple[str, ...]


@dataclass(frozen=True)
class PlannedInputs:
    """What `write_inputs` wrote."""

    files: int
    units: int
    size: int
    sha256: str


def write_inputs(
    path: Path, inputs: Iterable[tuple[SourceFile, str]], unit_bytes: int
) -> PlannedInputs:
    """Writes the table: units of about `unit_bytes` each, from the listing alone."""
    files = units = total = size = 0
    batch: list[tuple[SourceFile, str]] = []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        for file, known in inputs:
            needed = file.size + _SAMPLE_OVERHEAD
            if batch and size + needed > unit_bytes:
                writer.write_batch(_record(batch))
                batch, size, units = [], 0, units + 1
            batch.append((file, known))
            size, files, total = size + needed, files + 1, total + file.size
        if batch:
            writer.write_batch(_record(batch))
            units += 1
    with path.open("rb") as written:
        sha256 = hashlib.file_digest(written, "sha256").hexdigest()
    return PlannedInputs(files, units, total, sha256)


_NAMES = [field.name for field in fields(SourceFile)]
_values_of = attrgetter(*_NAMES)
_SCHEMA = pa.schema(
    [
        (name, pa.int64() if name in ("size", "offset") else pa.string())
        for name in [*_NAMES, "known"]
    ]
)


def _record(batch: list[tuple[SourceFile, str]]) -> pa.RecordBatch:
    columns = zip(*(_values_of(file) for file, _ in batch), strict=True)
    return pa.record_batch([*columns, [known for _, known in batch]], schema=_SCHEMA)


def plan_url(output: str, generation: int) -> str:
    """Where a generation's plan lies until it is committed."""
    return storage.join(output, "plans", f"{generation:06d}.json")


def _table_url(output: str, plan: Plan) -> str:
    return storage.join(output, "plans", f"{plan.generation:06d}", f"{plan.sha256[:12]}.arrow")


def claim(output: str, plan: Plan) -> Plan:
    """Stores the plan, or finds the unfinished one of the same request that is there already."""
    # The table first: a plan whose header is there is whole.
    storage.publish(_table_url(output, plan), plan.path)
    if storage.create_if_absent(plan_url(output, plan.generation), plan.header()):
        return plan
    found = find_plan(output, plan.generation, plan.path.parent)
    if found is None:
        return claim(output, plan)
    return found


def find_plan(output: str, generation: int, folder: Path) -> Plan | None:
    """The unfinished plan of a generation, if there is one; its table is copied into `folder`."""
    url = plan_url(output, generation)
    try:
        header = PLAN.typed(_Header, storage.read_document(PLAN, url), url)
        if header.generation != generation:
            raise PLAN.damaged(url, f"it is the plan of generation {header.generation}")
        plan = Plan(**vars(header), path=folder / "found.arrow")
        url = _table_url(output, plan)
        with plan.path.open("wb") as file:
            shutil.copyfileobj(io.BufferedReader(storage.StorageFile(url), 2**23), file, 2**23)
        with plan.path.open("rb") as copied:
            found = hashlib.file_digest(copied, "sha256").hexdigest()
        if found != plan.sha256:
            raise ValueError(f"sha256 {found[:12]}")  # told below with the rest
        _check_table(plan)
    except ObjectNotFoundError:
        return None
    except ShortageError:
        raise
    except (StorageError, *FAULTS) as error:
        if is_shortage(error):
            raise
        raise DatasetError(
            f"{url}: is no whole plan of a pack ({error}). Delete "
            f"{plan_url(output, generation)}, and run the same command again."
        ) from None
    return plan


PLAN = storage.DocumentKind(
    "vae-pipeline/plan", 3, DatasetError, "Delete it, and run the same command again."
)


@dataclass(frozen=True)
class _Header:
    """A plan as it lies in its file."""

    generation: Count
    request: Request
    classes: dict[str, int]
    removals: tuple[str, ...]
    vanished: tuple[str, ...]
    files: Count
    units: Count
    size: Count
    sha256: Digest
    seen: Count
    known: dict[str, int]
    others: dict[str, int]
    table: TableCounts


def _check_table(plan: Plan) -> None:
    with pa.memory_map(str(plan.path)) as file:
        table = pa.ipc.open_file(file)
        if table.schema != _SCHEMA or table.num_record_batches != plan.units:
            raise ValueError(f"its table holds {table.num_record_batches} units of {plan.units}")


def check_request(plan: Plan, request: Request, output: str) -> None:
    """Raises `DatasetError` unless `request` is what the unfinished plan was made for."""
    differing = plan.request.differences(request)
    if differing:
        raise DatasetError(
            f"{output}: holds an unfinished pack of another request ({differing}). Run that again "
            f"to finish it, or delete {plan_url(output, plan.generation)} to give it up."
        )


def remove_plans(output: str, generation: int) -> None:
    """Clears the plans and receipts of this committed generation, and of those before it.

    Before it there are some where a pack was killed between its commit and this.
    """
    folder = storage.join(output, "plans")
    committed = {generation}
    with suppress(ObjectNotFoundError):  # there are none
        for info in list(storage.list_objects(folder)):
            number = _generation_of(info.url.removeprefix(f"{folder}/"))
            if number is not None and number <= generation:
                committed.add(number)
                # The header last: a plan whose header is there is whole.
                if info.url != plan_url(output, number):
                    storage.delete(info.url)
    for number in committed:
        storage.delete(plan_url(output, number))
        storage.delete_empty_folder(storage.join(folder, f"{number:06d}"))


def _generation_of(name: str) -> int | None:
    """Of `000003.json` and of `000003/TABLE.arrow`."""
    found = re.match(r"(\d{6,})(\.json$|/)", name)
    return int(found.group(1)) if found else None
