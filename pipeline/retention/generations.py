"""The generations of a dataset: which there are, and what goes with older ones.

What no manifest names is removed only while no pack is under way: a pack stores its plan and then
looks for removals, a removal makes its mark and then looks for plans.
"""

from dataclasses import dataclass

from pipeline import storage
from pipeline.data.manifest import (
    POINTER,
    Manifest,
    keep_from,
    oldest_kept,
    read_current,
    read_generation,
)
from pipeline.errors import DatasetError, ObjectNotFoundError
from pipeline.packing.leftovers import root_of
from pipeline.storage.marks import removing


def splits_at(url: str) -> dict[str, str]:
    """The datasets at a place by their split: the one there, or those that packing split it in."""
    url = storage.absolute(url)
    if storage.exists(storage.join(url, POINTER)):
        return {root_of(url)[1]: url}
    both = {split: storage.join(url, split) for split in ("train", "holdout")}
    found = {s: place for s, place in both.items() if storage.exists(storage.join(place, POINTER))}
    if not found:
        raise DatasetError(f"{url}: there is no dataset here (no {POINTER}). Give `--dataset URL`.")
    return found


@dataclass(frozen=True)
class Generation:
    """One generation of a dataset; `bytes` of its shards, which it may share with others."""

    dataset: str
    generation: int
    digest: str
    current: bool
    samples: int
    shards: int
    bytes: int


def generations(url: str) -> list[Manifest]:
    """The manifests of a dataset that are there, the current one first."""
    manifest = read_current(url)
    found = []
    while manifest is not None:
        found.append(manifest)
        parent, oldest = manifest.parent, oldest_kept(url)
        gone = parent is None or manifest.generation <= oldest
        manifest = None if gone or parent is None else read_generation(url, parent)
    return found


def describe(url: str) -> list[Generation]:
    """Every generation of the dataset at `url`, the current one first."""
    return [
        Generation(
            url, manifest.generation, manifest.digest, number == 0, manifest.samples,
            shards=len(manifest.shards), bytes=sum(shard.bytes for shard in manifest.shards),
        )
        for number, manifest in enumerate(generations(url))
    ]  # fmt: skip


_FOLDERS = ("manifests", "shards", "index")
"""Manifests first: what names a shard goes before it."""


def refuse_links(url: str) -> None:
    """Raises `StorageError` where the dataset at `url` leads out of its folder by a link."""
    root, split = root_of(url)
    storage.refuse_links(root, *(f"{split}/{name}".lstrip("/") for name in _FOLDERS), "plans")


def find_unnamed(url: str, keep_last: int) -> dict[str, int]:
    """Paths and bytes of what the newest generations don't name; `keep_last` 0: none of them.

    Raises `StorageError` for links to folders: what lies there is nobody's garbage.
    """
    refuse_links(url)
    every = generations(url)
    kept = every[:keep_last] if keep_last else every
    named = {f"manifests/{manifest.digest}.json" for manifest in kept}
    for shard in {shard for manifest in kept for shard in manifest.shards}:
        named |= {shard.path, shard.index_path}
    found = {path: size for folder in _FOLDERS for path, size in _paths(url, folder).items()}
    return {path: size for path, size in found.items() if path not in named}


def remove_unnamed(url: str, keep_last: int) -> dict[str, int]:
    """Removes it, and returns what went; `DatasetError` while a pack is under way.

    Whoever began with an older generation can't read it any more; that is said in `oldest.json`.
    """
    refuse_links(url)
    with removing(root_of(url)[0]):
        refuse_beside_pack(root_of(url)[0])
        if keep_last:
            keep_from(url, generations(url)[:keep_last][-1].generation)
        found = find_unnamed(url, keep_last)
        for path in found:
            storage.delete(storage.join(url, path))
    return found


def refuse_beside_pack(root: str) -> None:
    """Raises `DatasetError` where a pack is under way, or was killed: its shards count soon."""
    plans = _paths(root, "plans")
    if plans:
        raise DatasetError(
            f"{root}: a pack has begun and not ended ({next(iter(plans))}), and what it made no "
            "manifest names yet. Let it end, run the same jobs.pack again if it was killed, or "
            f"give it up: delete {storage.join(root, 'plans')}."
        )


def _paths(url: str, folder: str) -> dict[str, int]:
    root = storage.join(url, folder)
    try:
        found = list(storage.list_objects(root))
    except ObjectNotFoundError:
        return {}
    return {f"{folder}/{info.url.removeprefix(root).lstrip('/')}": info.size for info in found}
