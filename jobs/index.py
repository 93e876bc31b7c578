"""Adopt existing WebDataset tars in place, without copying them."""

from jobs.command import REFUSED_EXIT, Outcome, run_job
from pipeline.config import IndexConfig


def main(config: IndexConfig) -> Outcome:
    """Reads each tar once, and commits a manifest that names them where they lie."""
    from pipeline.packing.adopt import adopt

    result = adopt(config)
    over = result.counts.is_over(config.bad_fraction)
    summary = [f"{result.dataset}: {result.samples} images in {result.shards} adopted tars."]
    summary += result.counts.summary()
    if result.rejects_url:
        summary.append(f"Rejected samples, with reasons: {result.rejects_url}")
    if over:
        summary += result.counts.over_lines(config.bad_fraction)
    return Outcome(result.to_json(), REFUSED_EXIT if over else 0, summary)


if __name__ == "__main__":
    run_job(IndexConfig, main)
