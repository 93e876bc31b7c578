"""A dataset: a manifest and what it names."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline import storage
from pipeline.data.manifest import (
    POINTER,
    Manifest,
    ShardRecord,
    read_current,
    read_generation,
)
from pipeline.data.shard_index import ShardIndex
from pipeline.errors import DatasetError, ObjectNotFoundError

_INDEX_THREADS = 16
_LOOKED_AT = 64


@dataclass(frozen=True)
class Dataset:
    """A pinned generation of the dataset at `url`: later appends don't disturb it."""

    url: str
    manifest: Manifest
    shards_below: tuple[str, ...] = ()
    """Where the user said that adopted shards may lie."""

    @staticmethod
    def open(url: str, digest: str | None = None, shards_below: Sequence[str] = ()) -> "Dataset":
        """Opens the generation called `digest`, or the current one.

        Adopted shards are read only below the dataset and `shards_below`: a manifest may come from
        a stranger, and must not choose which addresses are asked. Raises `DatasetError` if there is
        no dataset, or none of that digest, and `StorageError` for a shard that lies elsewhere.
        """
        url, places = storage.absolute(url), tuple(shards_below)
        if digest is not None:
            return Dataset(url, _checked(url, _read_pinned(url, digest), places), places)
        manifest = read_current(url)
        if manifest is None:
            split = storage.exists(storage.join(url, "train", POINTER))
            hint = (
                f"It is split: give {storage.join(url, 'train')}."
                if split
                else "Make one with `python -m jobs.pack --source IMAGES --output URL`."
            )
            raise DatasetError(f"{url}: there is no dataset here (no {POINTER}). {hint}")
        return Dataset(url, _checked(url, manifest, places), places)

    def __len__(self) -> int:
        return self.manifest.samples

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self.manifest.digest

    @property
    def shards(self) -> tuple[ShardRecord, ...]:
        """The shards, in order."""
        return self.manifest.shards

    def shard_url(self, shard: ShardRecord) -> str:
        """Where a shard lies: inside the dataset, or where it was adopted."""
        return shard.path if "://" in shard.path else storage.join(self.url, shard.path)

    def column_kinds(self, names: Sequence[str]) -> dict[str, str]:
        """The kind of each of these columns (`column_types`), from the first shard that has it.

        Raises `DatasetError` for one that no sample has. "" where an index says nothing of columns.
        """
        found: dict[str, str] = {}
        there: set[str] = set()
        if not names:
            return found
        with ThreadPoolExecutor(_INDEX_THREADS) as pool:
            # The first by itself: mostly it has them all.
            for start in (0, *range(1, len(self.shards), _INDEX_THREADS)):
                stop = start + _INDEX_THREADS if start else 1
                for index in pool.map(self.read_index, range(start, min(stop, len(self.shards)))):
                    if index.columns is None:
                        return {name: found.get(name, "") for name in names}
                    there |= index.columns.keys()
                    for name in set(names) & index.columns.keys() - found.keys():
                        found[name] = index.columns[name]
                if found.keys() >= set(names):
                    return found
        missing = [name for name in names if name not in found]
        raise DatasetError(
            f"{self.url}: no sample has the column {missing[0]!r}. There are: "
            f"{', '.join(sorted(there)) or 'none'}."
        )

    def has_column(self, name: str) -> bool:
        """Whether some samples have it, by a look at shards here and there."""
        looked = range(0, len(self.shards), max(1, len(self.shards) // _LOOKED_AT))
        indexes = (self.read_index(number).columns for number in looked)
        return any(columns is None or name in columns for columns in indexes)

    @property
    def keys(self) -> Iterator[str]:
        """The keys of all samples that count, in order; reads every index."""
        for number, shard in enumerate(self.shards):
            removed = set(shard.removed)
            for position, key in enumerate(self.read_index(number).keys):
                if position not in removed:
                    yield key

    def read_index(self, number: int, read: Callable[[str], bytes] = storage.read) -> ShardIndex:
        """The index of shard `number`, whose bytes `read` gives, checked against the manifest."""
        shard = self.shards[number]
        url = storage.join(self.url, shard.index_path)
        return ShardIndex.from_bytes(read(url), shard.index_sha256, url)


def _checked(url: str, manifest: Manifest, shards_below: tuple[str, ...]) -> Manifest:
    for shard in manifest.shards:
        if "://" in shard.path:
            storage.check_address(shard.path, (url, *shards_below), url, "--shards-below")
    return manifest


def _read_pinned(url: str, digest: str) -> Manifest:
    try:
        return read_generation(url, digest)
    except ObjectNotFoundError:
        current = read_current(url)
        there = f"its current generation is {current.digest}" if current else "no dataset is there"
        raise DatasetError(
            f"{url}: has no generation {digest} ({there}). Give the dataset that has it, or start "
            "anew with what is there now."
        ) from None
