"""A store as WebDataset tars, for trainers that want those: the same snapshot, the same bytes."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save

from pipeline import storage
from pipeline.errors import ObjectNotFoundError, StoreError
from pipeline.json_value import Json, JsonValue
from pipeline.latents.latent_file import Array
from pipeline.latents.store import LatentStore
from pipeline.progress import Progress

ExportFormat = Literal["npy", "safetensors"]

DESCRIPTION = "export.json"


def export_store(store: LatentStore, output: str, form: ExportFormat) -> int:
    """Writes `000000.tar` ... to `output`, one per shard, and returns how many.

    A sample is `KEY.mean.npy`, `KEY.logvar.npy` ... or `KEY.safetensors`, and `KEY.json` with the
    copied columns. `export.json` beside them has model, mean and std. Raises `StoreError` where
    `output` holds something else.
    """
    output = storage.absolute(output)
    description = storage.canonical_json(
        {
            "snapshot": store.snapshot.path,
            "format": form,
            "identity": store.snapshot.identity.to_json(),
            "samples": len(store),
            "shards": len(store.snapshot.shards),
            "size": store.size,
            "mean": list(store.mean),
            "std": list(store.std),
        }
    )
    _claim(output, description)
    with Progress("export", len(store), "latents") as progress:
        for number in range(len(store.snapshot.shards)):
            url = storage.join(output, f"{number:06d}.tar")
            path = storage.scratch(url)
            try:
                progress.advance(_write_tar(store, number, path, form))
                storage.publish(url, path)
            except OSError as error:
                raise StoreError(
                    f"{url}: writing it failed: {error.strerror or error}. See to it, and run the "
                    "same command again."
                ) from None
            finally:
                path.unlink(missing_ok=True)
    return len(store.snapshot.shards)


def _claim(output: str, description: bytes) -> None:
    """An export that was cut short is gone on with; nothing else may be there."""
    url = storage.join(output, DESCRIPTION)
    try:
        found = next(iter(storage.list_objects(output)), None)
    except ObjectNotFoundError:
        found = None
    if found is not None and not (storage.exists(url) and storage.read(url) == description):
        raise StoreError(
            f"{output}: holds {found.url.rsplit('/', 1)[-1]}, which is not of this export. Tars of "
            "two exports would be read as one: give an empty `--output URL`."
        )
    storage.create_if_absent(url, description)


def _write_tar(store: LatentStore, shard: int, path: Path, form: ExportFormat) -> int:
    count = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for rows in store.shard_batches(shard):
            count += len(rows)
            for row, key in enumerate(rows.keys):
                storage.below(store.url, key)
                tensors = {name: values[row] for name, values in rows.tensors.items()}
                columns = {name: _plain(values[row]) for name, values in rows.columns.items()}
                for extension, data in _members(tensors, columns, form):
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size, info.mode = len(data), 0o444
                    tar.addfile(info, io.BytesIO(data))
    return count


def _members(
    tensors: dict[str, Array], columns: Json, form: ExportFormat
) -> list[tuple[str, bytes]]:
    if form == "npy":
        members = [(f"{name}.npy", _npy(value)) for name, value in tensors.items()]
    else:
        plain = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        members = [("safetensors", save(plain))]
    if columns:
        members.append(("json", json.dumps(columns, sort_keys=True).encode()))
    return sorted(members)


def _plain(value: Any) -> JsonValue:
    """A column's value as JSON has it: a vector as a list, null where a number is none."""
    if not isinstance(value, np.ndarray):
        return value  # type: ignore[no-any-return]
    return None if np.isnan(value).all() else [None if n != n else n for n in value.tolist()]


def _npy(value: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()
