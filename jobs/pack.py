"""Pack folders, archives and prefixes of images into a sharded dataset; append what is new."""

import os
from typing import TYPE_CHECKING

from jobs.command import Outcome, run_job
from pipeline.config import PackConfig

if TYPE_CHECKING:
    from pipeline.packing.commit import PackResult


def main(config: PackConfig) -> Outcome:
    """Packs, and says what became of every input."""
    from dataclasses import asdict

    if config.dry_run:
        from pipeline.packing.cost import probe

        estimate = probe(config)
        return Outcome(asdict(estimate), summary=[estimate.summary])
    result = _pack(config)
    over = result.seen > 0 and result.rejected > config.bad_fraction * result.seen
    summary = [f"{result.dataset}: {result.samples} images in {result.shards} shards."]
    if result.rejects_url:
        summary.append(f"Rejected inputs, with reasons: {result.rejects_url}")
    return Outcome(asdict(result), config.quarantine_exit if over else 0, summary)


def _pack(config: PackConfig) -> "PackResult":
    """On the Ray cluster at RAY_ADDRESS, if that is set, else with this machine's cores."""
    if os.environ.get("RAY_ADDRESS"):
        from pipeline.cluster.packing_pool import pack_on_ray

        return pack_on_ray(config)
    from pipeline.packing.pack import pack

    return pack(config)


if __name__ == "__main__":
    run_job(PackConfig, main)
