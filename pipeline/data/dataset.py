"""A dataset: a manifest and what it names."""

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from PIL import Image

from pipeline import storage
from pipeline.data.decode import decode_image
from pipeline.data.keys import Numbered
from pipeline.data.manifest import (
    POINTER,
    Manifest,
    Places,
    ShardRecord,
    oldest_kept,
    read_current,
    read_generation,
)
from pipeline.data.memory import IndexMemory
from pipeline.data.shard_index import ShardIndex, cut_sample
from pipeline.errors import DatasetError, ObjectNotFoundError
from pipeline.json_value import Json
from pipeline.masking import printable, shell_word
from pipeline.storage import Place

_INDEX_THREADS = 16
"""Indexes are small: the time of one is a request's wait, which threads share."""
_LOOKED_AT = 64
"""Shards, spread evenly: an answer in a moment, also of a dataset of 10^5."""
_PARTS = ("/train", "/holdout")
_SHOWN = 8
"""Images that a notebook shows of a dataset."""


class Sample(NamedTuple):
    """One image to look at: RGB, upright, in its full size; what stands beside it; its key.

    `label` is None where there is none; `columns` hold all that lies beside the image, `file` the
    bytes that were packed. A model takes the sample itself, `vae.pixels(dataset[7])`: of those
    bytes it makes the very pixels of training, where a large JPEG's `image` would give others.
    """

    image: Image.Image
    label: Any
    key: str
    columns: Json
    file: bytes

    def __repr__(self) -> str:
        beside = "".join(f", {name}" for name in self.columns)
        return printable(
            f"Sample {self.key}: image {self.image.width} x {self.image.height}{beside}, "
            f"file of {len(self.file):,} bytes"
        )


@dataclass(frozen=True)
class Dataset(Numbered[Sample]):
    """A pinned generation of the dataset at `url`: later appends don't disturb it.

    Numbers are those of the manifest's order. By them one looks at images one by one; training
    reads by `Loader`, for torch's `DataLoader` makes no batch of images of several sizes.
    """

    url: str
    manifest: Manifest
    shards_below: tuple[str, ...] = ()
    """Where the user said that adopted shards may lie."""

    @staticmethod
    def open(
        url: Place,
        digest: str | None = None,
        shards_below: Sequence[str] = (),
        *,
        flag: str = "--data",
    ) -> "Dataset":
        """Opens the generation called `digest`, or the current one; errors name `flag` for it.

        Adopted shards are read only below the dataset and `shards_below`: a manifest may come from
        a stranger, and must not choose which addresses are asked. Raises `DatasetError` if there is
        no dataset, or none of that digest, `StorageError` for a shard that lies elsewhere, and
        `ConfigError` for what is no path or URL.
        """
        url, places = storage.absolute(storage.named(url, "Dataset.open")), tuple(shards_below)
        if digest is not None:
            return Dataset(url, _checked(url, _read_pinned(url, digest), places), places)
        manifest = read_current(url)
        if manifest is None:
            said = f"{url}: there is no dataset here (no {POINTER}). {_instead(url, flag)}"
            raise DatasetError(said)
        return Dataset(url, _checked(url, manifest, places), places)

    def __len__(self) -> int:
        return self.manifest.samples

    def _one(self, number: int) -> Sample:
        place = self._places.find(number)
        index = self._indexes.get(place.shard)
        start, end = index.span(place.position, whole=True)
        data = storage.read(self.shard_url(self.shards[place.shard]), start, end)
        columns = tuple(index.columns or ("caption", "label"))
        raw = cut_sample(index, place.position, data, start, columns)
        file = raw.checked_image()
        image = Image.fromarray(decode_image(file))
        return Sample(image, raw.columns.get("label"), raw.key, raw.columns, file)

    def __repr__(self) -> str:
        size = sum(shard.bytes for shard in self.shards) / 2**20
        return (
            f"Dataset {printable(storage.shown(self.url))}\n"
            f"{len(self):,} samples in {len(self.shards):,} shards, {size:,.1f} MiB\n"
            f"digest {self.digest}"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the same lines, and the first images with their labels."""
        cells = []
        for number in range(min(_SHOWN, len(self))):
            sample = self[number]
            sample.image.thumbnail((96, 96))
            png = io.BytesIO()
            sample.image.save(png, "PNG")
            said = html.escape(str(sample.label if sample.label is not None else sample.key)[:40])
            source = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
            cells.append(f'<td><img alt="{said}" src="{source}"><br>{said}</td>')
        return f"<pre>{html.escape(repr(self))}</pre><table><tr>{''.join(cells)}</tr></table>"

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

    def as_place(self) -> str:
        """Its URL, for what takes one.

        Raises `DatasetError` where another generation is current: that one would be read.
        """
        current = read_current(self.url)
        if current is not None and current.digest != self.digest:
            raise DatasetError(
                f"{self.url}: generation {current.digest} is current, and this Dataset was opened "
                f"at {self.digest}. Open it again: `Dataset.open({self.url!r})`."
            )
        return self.url

    def column_kinds(
        self, names: Sequence[str], asked_by: str = "--columns NAME"
    ) -> dict[str, str]:
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
            f"{', '.join(sorted(there)) or 'none'}. Name some of these: `{asked_by}`."
        )

    def has_column(self, name: str) -> bool:
        """Whether some samples have it, by a look at shards here and there."""
        looked = range(0, len(self.shards), max(1, len(self.shards) // _LOOKED_AT))
        indexes = (self.read_index(number).columns for number in looked)
        return any(columns is None or name in columns for columns in indexes)

    def keys(self) -> Iterator[str]:
        """The keys of all samples that count, in order; reads every index."""
        for number, shard in enumerate(self.shards):
            removed = set(shard.removed)
            for position, key in enumerate(self.read_index(number).keys):
                if position not in removed:
                    yield key

    @cached_property
    def _places(self) -> Places:
        return Places(self.shards)

    @cached_property
    def _indexes(self) -> IndexMemory:
        return IndexMemory(self.shards, self.read_index)

    def read_index(self, number: int, read: Callable[[str], bytes] = storage.read) -> ShardIndex:
        """The index of shard `number`, whose bytes `read` gives, checked against the manifest."""
        shard = self.shards[number]
        url = storage.join(self.url, shard.index_path)
        index = ShardIndex.from_bytes(read(url), shard.index_sha256, url)
        if len(index) != shard.samples:
            raise DatasetError(
                f"{url}: is the index of {len(index)} samples, its shard has {shard.samples}. "
                "Restore the dataset from a copy, or pack the images again."
            )
        return index


def _instead(url: str, flag: str) -> str:
    """What somebody may have meant by a place that is no dataset."""
    if storage.exists(storage.join(url, "train", POINTER)):
        return f"It is split: give `{flag} {shell_word(storage.join(url, 'train'))}`."
    if storage.exists(storage.join(url, "store.json")):
        proof = f"python -m jobs.verify --store {shell_word(url)}"
        return f"It is a store of latents: `{proof}` proves it."
    near = storage.near(url)
    if near is not None and storage.exists(storage.join(near, POINTER)):
        return f"Did you mean `{flag} {shell_word(near)}`?"
    if "manifests" in storage.names_beside(storage.join(url, POINTER)):
        return (
            "One was: the same jobs.pack (`python -m jobs.pack --source IMAGES --output URL`) "
            "writes that file anew."
        )
    for place in (url, url.rpartition("/")[0]) if url.endswith(_PARTS) else (url,):
        rejects = storage.join(place, "rejects.jsonl")
        if storage.exists(rejects):
            return f"A pack into it found nothing that can be used: {rejects} says why of each."
    path = storage.local_path(url)
    images = shell_word(url) if path is not None and path.is_dir() else "IMAGES"
    return (
        f"Pack images first, `python -m jobs.pack --source {images} --output URL`, and give "
        f"`{flag} URL`."
    )


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
        if (oldest := oldest_kept(url)) > 1:
            there += f"; those before number {oldest} were removed on purpose (jobs.stores)"
        raise DatasetError(
            f"{url}: has no generation {digest} ({there}). Give the dataset that has it, or start "
            "anew with what is there now."
        ) from None
