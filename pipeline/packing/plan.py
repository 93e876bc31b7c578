"""The plan of one generation: which files, in which units; kept in storage until it is done.

A killed pack goes on with the plan as it stands, whatever the sources have got since: that is for
the next append.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.errors import DatasetError, ObjectNotFoundError
from pipeline.packing.sources import SourceFile

# A tar's own share of a sample: headers of image, json and cls, their padding, and the json.
_SAMPLE_OVERHEAD = 3584


@dataclass(frozen=True)
class Plan:
    """What one generation adds: files with what is known of their content, and keys to remove."""

    generation: int
    request: Mapping[str, Any]
    """Sources and options as given: another request may not go on with this plan."""
    classes: Mapping[str, int]
    removals: tuple[str, ...]
    unit_bytes: int
    files: tuple[SourceFile, ...]
    known: tuple[str, ...]
    ignored: Mapping[str, int]
    """Files that can't be images, by suffix: counted, never opened."""

    @cached_property
    def digest(self) -> str:
        """In the receipts' names: a plan that was given up leaves none to the one in its place."""
        return hashlib.sha256(_to_bytes(self)).hexdigest()[:12]

    def units(self) -> Iterator[slice]:
        """Slices of `files` of about `unit_bytes` each, from the listing alone."""
        start, size = 0, 0
        for number, file in enumerate(self.files):
            needed = file.size + _SAMPLE_OVERHEAD
            if number > start and size + needed > self.unit_bytes:
                yield slice(start, number)
                start, size = number, 0
            size += needed
        if start < len(self.files):
            yield slice(start, len(self.files))


def plan_url(output: str, generation: int) -> str:
    """Where a generation's plan lies until it is committed."""
    return storage.join(output, "plans", f"{generation:06d}.arrow")


def claim(output: str, plan: Plan) -> Plan:
    """Stores the plan, or finds the unfinished one of the same request that is there already."""
    url = plan_url(output, plan.generation)
    if storage.create_if_absent(url, _to_bytes(plan)):
        return plan
    found = find_plan(output, plan.generation)
    if found is None:
        return claim(output, plan)
    return found


def find_plan(output: str, generation: int) -> Plan | None:
    """The unfinished plan of a generation, if there is one."""
    url = plan_url(output, generation)
    try:
        return _from_bytes(storage.read(url), generation)
    except ObjectNotFoundError:
        return None
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{url}: is no whole plan of a pack ({error}). Delete it, and run the same command "
            "again."
        ) from None


def check_request(plan: Plan, request: Mapping[str, Any], output: str) -> None:
    """Raises `DatasetError` unless `request` is what the unfinished plan was made for."""
    differing = [name for name in request if request[name] != plan.request.get(name)]
    if differing:
        lines = "; ".join(
            f"{name}: {plan.request.get(name)!r} then, {request[name]!r} now" for name in differing
        )
        raise DatasetError(
            f"{output}: holds an unfinished pack of another request ({lines}). Run that one again "
            f"to finish it, or delete {plan_url(output, plan.generation)} to give it up."
        )


def remove_plan(output: str, generation: int) -> None:
    """Clears a committed generation's plan and receipts; what a crash leaves is harmless."""
    with suppress(ObjectNotFoundError):  # there are none
        for info in list(storage.list_objects(storage.join(output, "plans", f"{generation:06d}"))):
            storage.delete(info.url)
    storage.delete(plan_url(output, generation))


def _to_bytes(plan: Plan) -> bytes:
    names = [field.name for field in fields(SourceFile)]
    columns = [[getattr(file, name) for file in plan.files] for name in names]
    whole = {"size", "offset"}
    schema = pa.schema(
        [(name, pa.int64() if name in whole else pa.string()) for name in [*names, "known"]]
    )
    beside = [field.name for field in fields(Plan) if field.name not in ("files", "known")]
    header = {name: getattr(plan, name) for name in beside}
    schema = schema.with_metadata({"plan": json.dumps(header, sort_keys=True)})
    arrays = [pa.array(c, t) for c, t in zip([*columns, plan.known], schema.types, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _from_bytes(data: bytes, generation: int) -> Plan:
    with pa.ipc.open_file(pa.BufferReader(data)) as reader:
        table = reader.read_all()
    header = json.loads(table.schema.metadata[b"plan"])
    columns = table.to_pydict()
    known = columns.pop("known")
    return Plan(
        generation, header["request"], header["classes"], tuple(header["removals"]),
        header["unit_bytes"],
        tuple(SourceFile(*values) for values in zip(*columns.values(), strict=True)), tuple(known),
        header["ignored"],
    )  # fmt: skip
