"""A snapshot's report for people: counts, failures, statistics, and how well latents decode."""

import logging
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.dataset import Dataset
from pipeline.data.shard_reader import samples_at
from pipeline.encoding.cutting import Cutter, place_of
from pipeline.encoding.determinism import exact_numerics
from pipeline.encoding.tiles import TilingCost
from pipeline.errors import DatasetError, StorageError
from pipeline.json_value import Json
from pipeline.latents.identity import EncodeOptions, Identity
from pipeline.latents.receipt import REPORTS, SNAPSHOTS, Rounding
from pipeline.latents.snapshot import Snapshot
from pipeline.latents.store import LatentStore
from pipeline.masking import markdown
from pipeline.vae.vae import VAE

_LOG = logging.getLogger(__name__)
MAX_LISTED = 100
"""Samples named in a report for people; the receipts hold all of them."""


@dataclass(frozen=True)
class Reconstructions:
    """Images [n, C, H, W] uint8, what their stored latents decode to (in [0, 1]), and the keys."""

    keys: tuple[str, ...]
    originals: Tensor
    decoded: Tensor

    @property
    def psnr(self) -> tuple[float, ...]:
        """Peak signal-to-noise ratio of each image, in dB, peak 255."""
        errors = (self.decoded.double() - self.originals.double() / 255).square().flatten(1).mean(1)
        return tuple(-10 * math.log10(max(error, 1e-10)) for error in errors.tolist())


@dataclass(frozen=True)
class Fidelity:
    """How well some images came back from their stored latents: mean PSNR and the worst, in dB."""

    images: int
    psnr: float
    lowest_psnr: float
    lowest_key: str


@dataclass(frozen=True)
class StoreReport:
    """Everything that a snapshot's report states: nothing in it differs between two honest runs."""

    snapshot: str
    identity: Json
    dataset: str
    complete: bool
    samples: int
    failed: int
    filtered: int
    shards: int
    bytes: int
    shapes: str
    """Latents of each shape, the most frequent first."""
    redone_batches: int
    failures: dict[str, int]
    failed_samples: list[tuple[str, str, str]]
    lost: list[tuple[str, int, str]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sample_std: tuple[float, ...] | None
    reconstruction: Fidelity | None
    rounding: Rounding | None
    """What eight bits cost."""
    tiling: TilingCost | None
    """What tiles cost; None also where no image that was looked at fits whole."""


def report_folder(snapshot_path: str) -> str:
    """Where the report of the snapshot at this path lies, both relative to the store."""
    return REPORTS + snapshot_path.removeprefix(SNAPSHOTS).removesuffix(".json")


def reconstruct(
    vae: VAE, dataset: Dataset, store: LatentStore, count: int
) -> Reconstructions | None:
    """`count` images spread evenly over the snapshot, and the images of their stored latents.

    Of several shapes those of the most frequent one. Images whose source can't be read any more are
    left out; None when none is left.
    """
    options, device = store.snapshot.identity.options, next(vae.parameters()).device
    records = {shard.sha256: shard for shard in dataset.shards}
    cutter, primary = Cutter(vae.preprocess, options), options.tensors[0]
    keys, originals, decoded = [], [], []
    for number in _spread(store, count):
        at, position = store.place(number)
        part, record = store.selection.parts[at].part, records[store.snapshot.sources[at]]
        try:
            (raw,) = samples_at(dataset, record, [position])
        except (DatasetError, StorageError) as error:
            _LOG.warning("the report leaves out an image: %s", error)
            continue
        cut = cutter.cut(*raw)
        if cut.reason is not None:
            _LOG.warning("the report leaves out %s: %s", cut.key, cut.reason)
            continue
        latent = store[number]
        z = torch.from_numpy(latent.tensors[primary].astype(np.float32))
        # One at a time: every report of the same latents has the same bytes.
        with exact_numerics(), torch.inference_mode():
            decoded.append(vae.decode(z[None].to(device)).cpu()[0].clamp(0, 1))
        keys.append(latent.key)
        originals.append(cut.cuts[place_of(vae, options, part)][0])
    if not keys:
        return None
    return Reconstructions(tuple(keys), torch.stack(originals), torch.stack(decoded))


def _spread(store: LatentStore, count: int) -> list[int]:
    """Numbers of latents of one shape, evenly spread."""
    first = store.selection.latents.first
    shapes, sizes = [p.part.shape for p in store.selection.parts], np.diff(first)
    most = max(set(shapes), key=lambda s: (sum(sizes[[o == s for o in shapes]]), s))
    starts = zip(first, sizes, shapes, strict=False)
    numbers = np.concatenate([np.arange(a, a + n) for a, n, shape in starts if shape == most])
    return np.unique(numbers[np.linspace(0, len(numbers) - 1, count).astype(int)]).tolist()  # type: ignore[no-any-return]


def report_of(
    snapshot: Snapshot, reconstructions: Reconstructions | None, tiling: TilingCost | None = None
) -> StoreReport:
    """The report of a snapshot, and of the images that were decoded from it."""
    failed = [(shard.receipt.shard, sample) for shard in snapshot.shards for sample in shard.failed]
    statistics = snapshot.statistics
    return StoreReport(
        snapshot=snapshot.path,
        identity=snapshot.identity.to_json(),
        dataset=snapshot.dataset,
        complete=snapshot.complete,
        samples=snapshot.samples,
        failed=snapshot.failed,
        filtered=snapshot.filtered,
        shards=len(snapshot.shards),
        bytes=sum(shard.receipt.bytes for shard in snapshot.shards),
        shapes=_shapes(snapshot),
        redone_batches=sum(shard.receipt.redone_batches for shard in snapshot.shards),
        failures=dict(sorted(Counter(sample.reason for _, sample in failed).items())),
        failed_samples=[(shard, s.key, s.reason) for shard, s in failed[:MAX_LISTED]],
        lost=[(s.shard, s.samples, s.reason) for s in snapshot.lost],
        mean=statistics.mean,
        std=statistics.std,
        sample_std=statistics.sample_std,
        reconstruction=None if reconstructions is None else _fidelity(reconstructions),
        rounding=_rounding(snapshot),
        tiling=tiling,
    )


def _rounding(snapshot: Snapshot) -> Rounding | None:
    """Of all parts together."""
    known = [(s.part.rounding, s.part.rows) for s in snapshot.parts if s.part.rounding is not None]
    if not known:
        return None
    rows, decoded = sum(count for _, count in known), sum(each.decoded for each, _ in known)
    return Rounding(
        max(each.largest for each, _ in known),
        sum(each.mean * count for each, count in known) / rows,
        decoded,
        min(each.lowest_decibels for each, _ in known),
        round(sum(each.mean_decibels * each.decoded for each, _ in known) / decoded, 4),
    )


def _shapes(snapshot: Snapshot) -> str:
    counts: Counter[tuple[int, int, int]] = Counter()
    for stored in snapshot.parts:
        counts[stored.part.shape] += stored.rows
    each = [f"{rows:,} of {list(shape)}" for shape, rows in counts.most_common()]
    return ", ".join(each) if len(each) > 1 else str(list(snapshot.identity.latent_shape))


def _fidelity(reconstructions: Reconstructions) -> Fidelity:
    psnr = reconstructions.psnr
    worst = int(np.argmin(psnr))
    return Fidelity(
        images=len(psnr),
        psnr=round(float(np.mean(psnr)), 4),
        lowest_psnr=round(psnr[worst], 4),
        lowest_key=reconstructions.keys[worst],
    )


def _left_out(where: str | None, count: int) -> list[str]:
    return [f"| left out by {markdown(where)} | {count:,} |"] if where else []


def _as_asked(options: EncodeOptions) -> list[str]:
    """How images are cut and what stands beside them, where it is not as the model says."""
    sizes = [f"{v.size}:{v.step}" if v.step else str(v.size) for v in options.views]
    told = {
        "sizes in pixels (with the step of buckets)": ", ".join(sizes),
        "crop; resize": "; ".join(each for each in (options.crop, options.resize) if each),
        "random crops": str(options.crops or ""),
        "columns": markdown(", ".join(options.column_kinds)),
    }
    rows = [f"| {name} | {value} |" for name, value in told.items() if value]
    return [*rows, f"| images in a batch | {options.batch_size:,} |"]


def _scale(identity: Identity) -> list[str]:
    said = {name: value for name, value in identity.scale.to_json().items() if value is not None}
    return [f"| the model's own {markdown(name)} | {value} |" for name, value in said.items()]


def _tiling(tile: int, cost: TilingCost | None) -> list[str]:
    if cost is None:
        said = "not measured: no image that was looked at is larger, or it does not fit whole"
        return [f"| tiles of {tile} pixels against the whole | {said} |"] if tile else []
    return [
        f"| tiles of {tile} pixels against the whole, {cost.images} images, in units of the means' "
        f"root-mean-square | {cost.mean:.3g} on average, {cost.largest:.3g} at most |",
        f"| the same, decoded | {cost.lowest_decibels:.2f} dB at least |",
    ]


def _channels(report: StoreReport) -> list[str]:
    draws = report.sample_std or (math.nan,) * len(report.mean)
    rows = enumerate(zip(report.mean, report.std, draws, strict=True))
    return [
        "| channel | mean | std | std of draws |",
        "|---|---|---|---|",
        *(
            f"| {channel} | {mean:.5g} | {std:.5g} | {'-' if math.isnan(draw) else f'{draw:.5g}'} |"
            for channel, (mean, std, draw) in rows
        ),
    ]


def to_markdown(report: StoreReport) -> str:
    """The report as a page."""
    state = "whole" if report.complete else "PARTIAL: some shards have no latents"
    identity = Identity.from_json(report.identity)
    options = identity.options
    lines = [
        "# Latent store report",
        "",
        f"Snapshot `{markdown(report.snapshot)}`: {state}.",
        "",
        "| | |",
        "|---|---|",
        f"| latents | {report.samples:,} |",
        f"| failed images | {report.failed:,} |",
        *_left_out(options.where, report.filtered),
        f"| shards | {report.shards:,} |",
        f"| size | {report.bytes / 2**20:,.1f} MiB |",
        f"| arithmetic | {options.precision} |",
        f"| batches computed again in fp32 | {report.redone_batches:,} |",
        f"| shape, type, content | {report.shapes}, {options.dtype}, {options.content} |",
        *_as_asked(options),
        *_scale(identity),
        f"| model | `{markdown(identity.model_digest)}` |",
        f"| dataset | `{markdown(report.dataset)}` |",
    ]
    if found := report.reconstruction:
        lines += [
            f"| PSNR of {found.images} images decoded from the store | {found.psnr:.2f} dB "
            f"(lowest {found.lowest_psnr:.2f}: {markdown(found.lowest_key)}) |",
        ]
    if cost := report.rounding:
        lines += [
            f"| eight bits against float32, in units of the latents | {cost.mean:.3g} on average, "
            f"{cost.largest:.3g} at most |",
            f"| the same, {cost.decoded} images decoded | {cost.mean_decibels:.2f} dB "
            f"(lowest {cost.lowest_decibels:.2f}) |",
        ]
    lines += _tiling(options.tile, report.tiling)
    lines += ["", *_channels(report)]
    if report.failures:
        lines += ["", "| failed because | images |", "|---|---|"]
        lines += [f"| {markdown(reason)} | {n:,} |" for reason, n in report.failures.items()]
        lines += [
            "",
            *(
                f"- {markdown(k)} in {markdown(s)}: {markdown(r)}"
                for s, k, r in report.failed_samples
            ),
        ]
    lines += [
        "",
        *(f"- lost: shard {markdown(s)}, {n:,} images: {markdown(r)}" for s, n, r in report.lost),
    ]
    return "\n".join(lines).rstrip() + "\n"
