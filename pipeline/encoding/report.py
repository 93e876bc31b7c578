"""A snapshot's report for people: counts, failures, statistics, and how well latents decode."""

import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.dataset import Dataset
from pipeline.data.shard_reader import read_batch
from pipeline.encoding.determinism import exact_numerics
from pipeline.errors import DatasetError, StorageError
from pipeline.latents.receipt import REPORTS, SNAPSHOTS
from pipeline.latents.snapshot import Snapshot
from pipeline.latents.store import LatentStore
from pipeline.masking import markdown
from pipeline.vae.vae import VAE

_LOG = logging.getLogger(__name__)
_MAX_LISTED = 100
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


def report_folder(snapshot: Snapshot) -> str:
    """Where a snapshot's report lies, relative to the store."""
    return REPORTS + snapshot.path.removeprefix(SNAPSHOTS).removesuffix(".json")


def reconstruct(
    vae: VAE, dataset: Dataset, store: LatentStore, count: int
) -> Reconstructions | None:
    """`count` images spread evenly over the snapshot, and the images of their stored latents.

    Those whose source can't be read any more are left out; None when none is left.
    """
    places = np.unique(np.linspace(0, len(store) - 1, count).astype(int)).tolist()
    records = {shard.sha256: shard for shard in dataset.shards}
    primary, device = store.snapshot.identity.options.tensors[0], next(vae.parameters()).device
    keys, originals, decoded = [], [], []
    for number in places:
        at, position = store.place(number)
        record = records[store.shard_rows[at].receipt.source_sha256]
        try:
            batch = read_batch(dataset, record, vae.preprocess, 1, position)
        except (DatasetError, StorageError) as error:
            _LOG.warning("the report leaves out an image: %s", error)
            continue
        if not batch.valid[0]:
            _LOG.warning("the report leaves out %s: %s", batch.keys[0], batch.errors)
            continue
        latent = store[number]
        z = torch.from_numpy(latent.tensors[primary].astype(np.float32))
        # One at a time: every report of the same latents has the same bytes.
        with exact_numerics(), torch.inference_mode():
            decoded.append(vae.decode(z[None].to(device)).cpu()[0].clamp(0, 1))
        keys.append(latent.key)
        originals.append(batch.images[0])
    if not keys:
        return None
    return Reconstructions(tuple(keys), torch.stack(originals), torch.stack(decoded))


def report_of(snapshot: Snapshot, reconstructions: Reconstructions | None) -> dict[str, Any]:
    """Everything that the report states, JSON-able and without anything that differs by run."""
    failed = [(shard.receipt.shard, sample) for shard in snapshot.shards for sample in shard.failed]
    statistics = snapshot.statistics
    report: dict[str, Any] = {
        "snapshot": snapshot.path,
        "identity": snapshot.identity.to_json(),
        "dataset": snapshot.dataset,
        "complete": snapshot.complete,
        "samples": snapshot.samples,
        "failed": snapshot.failed,
        "shards": len(snapshot.shards),
        "bytes": sum(shard.receipt.bytes for shard in snapshot.shards),
        "redone_batches": sum(shard.receipt.redone_batches for shard in snapshot.shards),
        "failures": dict(sorted(Counter(sample.reason for _, sample in failed).items())),
        "failed_samples": [[shard, s.key, s.reason] for shard, s in failed[:_MAX_LISTED]],
        "lost": [[s.shard, s.samples, s.reason] for s in snapshot.lost],
        "mean": list(statistics.mean),
        "std": list(statistics.std),
        "sample_std": statistics.sample_std and list(statistics.sample_std),
        "reconstruction": None,
    }
    if reconstructions is not None:
        psnr = reconstructions.psnr
        worst = int(np.argmin(psnr))
        report["reconstruction"] = {
            "images": len(psnr),
            "psnr": round(float(np.mean(psnr)), 4),
            "lowest_psnr": round(psnr[worst], 4),
            "lowest_key": reconstructions.keys[worst],
        }
    return report


def to_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    state = "whole" if report["complete"] else "PARTIAL: some shards have no latents"
    options = report["identity"]["options"]
    lines = [
        "# Latent store report",
        "",
        f"Snapshot `{report['snapshot']}`: {state}.",
        "",
        "| | |",
        "|---|---|",
        f"| latents | {report['samples']:,} |",
        f"| failed images | {report['failed']:,} |",
        f"| shards | {report['shards']:,} |",
        f"| size | {report['bytes'] / 2**20:,.1f} MiB |",
        f"| batches computed again in fp32 | {report['redone_batches']:,} |",
        f"| shape, type, content | {report['identity']['latent_shape']}, {options['dtype']}, "
        f"{options['content']} |",
        f"| model | `{report['identity']['model_digest']}` |",
        f"| dataset | `{report['dataset']}` |",
    ]
    if found := report["reconstruction"]:
        lines += [
            f"| PSNR of {found['images']} images decoded from the store | {found['psnr']:.2f} dB "
            f"(lowest {found['lowest_psnr']:.2f}: {markdown(found['lowest_key'])}) |",
        ]
    lines += ["", "| channel | mean | std | std of draws |", "|---|---|---|---|"]
    draws = report["sample_std"] or [math.nan] * len(report["mean"])
    lines += [
        f"| {channel} | {mean:.5g} | {std:.5g} | {'-' if math.isnan(draw) else f'{draw:.5g}'} |"
        for channel, (mean, std, draw) in enumerate(
            zip(report["mean"], report["std"], draws, strict=True)
        )
    ]
    if report["failures"]:
        lines += ["", "| failed because | images |", "|---|---|"]
        lines += [f"| {markdown(reason)} | {n:,} |" for reason, n in report["failures"].items()]
        lines += [
            "",
            *(
                f"- {markdown(k)} in {markdown(s)}: {markdown(r)}"
                for s, k, r in report["failed_samples"]
            ),
        ]
    lines += [
        "",
        *(
            f"- lost: shard {markdown(s)}, {n:,} images: {markdown(r)}"
            for s, n, r in report["lost"]
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"
