"""Adopt existing WebDataset tars in place, without copying them."""

from jobs.command import Outcome, run_job
from pipeline.config import IndexConfig


def main(config: IndexConfig) -> Outcome:
    """Reads each tar once, and commits a manifest that names them where they lie."""
    from dataclasses import asdict

    from pipeline.packing.adopt import adopt

    result = adopt(config)
    over = result.seen > 0 and result.rejected > config.bad_fraction * result.seen
    summary = [f"{result.dataset}: {result.samples} images in {result.shards} adopted tars."]
    return Outcome(asdict(result), config.quarantine_exit if over else 0, summary)


if __name__ == "__main__":
    run_job(IndexConfig, main)
