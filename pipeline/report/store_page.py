"""The page of a latent store: what it holds, of which model, and where its latents lie."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipeline import storage
from pipeline.data.keys import path_of
from pipeline.figures.canvas import label_names, to_png
from pipeline.figures.store import draw_channels
from pipeline.latents import LatentStore
from pipeline.latents.snapshot import Pointer
from pipeline.report.changes import settings_table
from pipeline.report.content import Cell, Page, Picture, Section, Table
from pipeline.report.latent_map import Encoded, draw_map
from pipeline.vae import VAE

_MOST_LATENTS, _MOST_VALUES, _FEWEST = 500, 8 * 2**20, 24
"""On the map, and pixel values that are decoded for it: nobody waits long for a picture."""
_AT_ONCE = 16


@dataclass(frozen=True)
class ReportedStore:
    """A store, its pointer, and its model; None where only its numbers are wanted."""

    store: LatentStore
    pointer: Pointer
    vae: VAE | None

    @property
    def name(self) -> str:
        """Its folder's name."""
        return storage.shown(self.store.url).rstrip("/").rsplit("/", 1)[-1]


def store_page(found: ReportedStore, other: ReportedStore | None) -> Page:
    """The page; `other` is what it is compared with."""
    snapshot = found.store.snapshot
    sections = [_content(found), _provenance(found)]
    if other is not None:
        sections.insert(0, _changes(found, other))
    state = "whole" if snapshot.complete else "partial: some shards have no latents"
    lead = [f"{len(found.store):,} latents of {_shapes(found.store)}; {state}."]
    vae = found.vae
    drawn = draw_map(vae, _encoded(vae, found.store)) if vae and len(found.store) else None
    return Page(f"Latent store {found.name}", lead, sections, drawn)


def _shapes(store: LatentStore) -> str:
    return ", ".join(" x ".join(map(str, shape)) for shape in store.shapes)


def _encoded(vae: VAE, store: LatentStore) -> Encoded:
    """Latents of its most frequent shape, evenly spread, and the images that they decode to."""
    values = int(np.prod(vae.image_shape))
    count = min(len(store), max(_FEWEST, min(_MOST_LATENTS, _MOST_VALUES // values)))
    spread = np.unique(np.linspace(0, len(store) - 1, count).astype(int))
    latents = [store[number] for number in spread.tolist()]
    primary = store.snapshot.identity.options.tensors[0]
    shapes = Counter(latent.tensors[primary].shape for latent in latents)
    frequent = shapes.most_common(1)[0][0]
    latents = [each for each in latents if each.tensors[primary].shape == frequent]
    means = torch.from_numpy(np.stack([each.tensors[primary] for each in latents]).astype("f4"))
    with torch.inference_mode():
        images = [vae.decode(part.to(vae.device)).cpu() for part in means.split(_AT_ONCE)]
    labels = [each.columns.get("label") for each in latents]
    return Encoded(
        "images that the store's latents decode to",
        torch.cat(images),
        means,
        [path_of(each.key) for each in latents],
        label_names(labels),
    )


def _content(found: ReportedStore) -> Section:
    store, snapshot = found.store, found.store.snapshot
    statistics = store.statistics
    draws = statistics.sample_std or (None,) * len(statistics.mean)
    channels = [
        (str(number), mean, std, draw)
        for number, (mean, std, draw) in enumerate(
            zip(statistics.mean, statistics.std, draws, strict=True)
        )
    ]
    options = snapshot.identity.options
    counts: Mapping[str, Cell] = {
        "latents": len(store),
        "failed images": snapshot.failed,
        "left out by its filter": snapshot.filtered,
        "shards": len(snapshot.shards),
        "shape": _shapes(store),
        "arithmetic": options.precision,
        "type": options.dtype,
        "content": options.content,
    }
    return Section(
        "What it holds",
        (),
        [
            Table("Counts and kind", ("what", "how many or which"), [*counts.items()]),
            Table(
                "Each channel over all latents",
                ("channel", "mean", "deviation", "deviation of draws"),
                channels,
            ),
        ],
        [Picture("Mean and deviation of each channel", to_png(draw_channels, statistics))],
    )


def _provenance(found: ReportedStore) -> Section:
    snapshot, pointer = found.store.snapshot, found.pointer
    facts: Mapping[str, Cell] = {
        "store": storage.shown(found.store.url),
        "snapshot": snapshot.path,
        "of the dataset": storage.shown(pointer.data),
        "its generation": snapshot.dataset,
        "by the model": storage.shown(pointer.model),
        "model's digest": snapshot.identity.model_digest,
    }
    rows = [*facts.items()]
    return Section("Where it comes from", (), [Table("Provenance", ("what", "which"), rows)])


def _changes(found: ReportedStore, other: ReportedStore) -> Section:
    names = (found.name, other.name)
    mine, theirs = found.store.snapshot, other.store.snapshot
    differing = settings_table(mine.identity.to_json(), theirs.identity.to_json(), names)
    rows = [
        (name, before, now, now - before)
        for name, before, now in (
            ("latents", len(other.store), len(found.store)),
            ("failed images", theirs.failed, mine.failed),
        )
    ]
    words = [] if differing.rows else ["They are of one model, and encoded in the same way."]
    if mine.dataset != theirs.dataset:
        words.append("They are of different generations, or datasets.")
    counts = Table("Counts", ("what", names[1], names[0], "difference"), rows)
    tables = [differing, counts] if differing.rows else [counts]
    return Section(f"What changed against {other.name}", words, tables)
