"""The manifest: which shards, in which order, make a dataset; immutable and written last.

OUT/manifest.json             a small pointer to the current one
OUT/manifests/DIGEST.json     immutable
OUT/shards/NAME.tar           WebDataset shards
OUT/index/NAME.arrow          one index per shard
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline import storage
from pipeline.errors import DatasetError, ObjectNotFoundError

FORMAT = "vae-pipeline/dataset"
VERSION = 1
POINTER = "manifest.json"


@dataclass(frozen=True)
class ShardRecord:
    """One shard: `path` is relative to the dataset, or an absolute URL of an adopted tar.

    `samples` counts all samples in the tar; `removed` are the positions that no longer count.
    """

    path: str
    bytes: int
    sha256: str
    samples: int
    index_path: str
    index_sha256: str
    removed: tuple[int, ...] = ()

    @property
    def live(self) -> int:
        """Samples that count."""
        return self.samples - len(self.removed)


@dataclass(frozen=True)
class Manifest:
    """An immutable generation of a dataset; `parent` is the digest of the one before."""

    generation: int
    parent: str | None
    shards: tuple[ShardRecord, ...]

    @cached_property
    def digest(self) -> str:
        """A hash over the ordered shard checksums and removals: what is read, in which order."""
        rows = [[shard.sha256, list(shard.removed)] for shard in self.shards]
        return hashlib.sha256(storage.canonical_json(rows)).hexdigest()

    @property
    def samples(self) -> int:
        """Samples that count."""
        return sum(shard.live for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is its inverse."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "digest": self.digest,
            "generation": self.generation,
            "parent": self.parent,
            "samples": self.samples,
            "shards": [{**vars(shard), "removed": list(shard.removed)} for shard in self.shards],
        }

    @staticmethod
    def from_json(data: Any, url: str) -> "Manifest":
        """Checks format, version, paths and digest; raises `DatasetError` naming `url`."""
        check_format(data, url)
        try:
            shards = tuple(
                ShardRecord(
                    shard["path"], shard["bytes"], shard["sha256"], shard["samples"],
                    shard["index_path"], shard["index_sha256"], tuple(shard["removed"]),
                )
                for shard in data["shards"]
            )  # fmt: skip
            manifest = Manifest(int(data["generation"]), data["parent"], shards)
            stated = data["digest"]
            for shard in shards:
                # A manifest may come from elsewhere: it must not name files outside its folder.
                # Only an adopted shard lies elsewhere, and its bytes are checked like any other's.
                paths = [shard.index_path, *([] if "://" in shard.path else [shard.path])]
                for path in paths:
                    above = ".." in path and ".." in path.split("/")
                    if path[:1] == "/" or "://" in path or above:
                        raise DatasetError(f"{url}: the path {path!r} leads out of the dataset.")
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{url}: is no whole manifest ({error}). Restore it.") from None
        if manifest.digest != stated:
            raise DatasetError(
                f"{url}: says digest {stated}, its shards give {manifest.digest}. It was changed "
                "by hand: restore it, or pack anew."
            )
        return manifest


def check_format(data: Any, url: str, name: str = FORMAT, version: int = VERSION) -> None:
    """Raises `DatasetError` unless this is our format in our version."""
    found = (data.get("format"), data.get("version")) if isinstance(data, Mapping) else None
    if found != (name, version):
        text = f"no {name}" if found is None else f"{found[0]} version {found[1]}"
        raise DatasetError(
            f"{url}: is {text}; this program reads {name} version {version}. Use the program "
            "version that wrote it, or pack the images again."
        )


def read_current(url: str) -> Manifest | None:
    """The current manifest of the dataset at `url`; None when there is no dataset."""
    pointer_url = storage.join(url, POINTER)
    try:
        pointer = storage.read_json(pointer_url)
    except ObjectNotFoundError:
        return None
    check_format(pointer, pointer_url)
    digest = pointer.get("digest")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise DatasetError(f"{pointer_url}: names the manifest {digest!r}, no digest. Restore it.")
    return read_generation(url, digest)


def read_generation(url: str, digest: str) -> Manifest:
    """The manifest called `digest` of the dataset at `url`, current or not.

    Raises `ObjectNotFoundError` if the dataset never had it.
    """
    manifest_url = storage.join(url, "manifests", f"{digest}.json")
    return Manifest.from_json(storage.read_json(manifest_url), manifest_url)


def commit(url: str, manifest: Manifest) -> None:
    """Makes `manifest` the dataset's current one; until then nobody sees its shards."""
    write_manifest(url, manifest)
    storage.publish(storage.join(url, POINTER), pointer_to(manifest))


def write_manifest(url: str, manifest: Manifest) -> None:
    """Writes `manifest` under its digest, where nobody looks before a pointer names it."""
    data = storage.canonical_json(manifest.to_json())
    storage.publish(storage.join(url, "manifests", f"{manifest.digest}.json"), data)


def pointer_to(manifest: Manifest) -> bytes:
    """What `POINTER` holds while `manifest` is the current one."""
    pointer = {
        "format": FORMAT,
        "version": VERSION,
        "digest": manifest.digest,
        "generation": manifest.generation,
        "samples": manifest.samples,
    }
    return storage.canonical_json(pointer)
