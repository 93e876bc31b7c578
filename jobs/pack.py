"""Pack folders, archives and prefixes of images into a sharded dataset; append what is new."""

from jobs.command import Outcome, run_job
from pipeline.config import PackConfig


def main(config: PackConfig) -> Outcome:
    """Packs, and says what became of every input."""
    from dataclasses import asdict

    from pipeline.data.pack import pack

    if config.dry_run:
        from pipeline.data.pack_probe import probe

        estimate = probe(config)
        return Outcome(asdict(estimate), summary=[estimate.summary])
    result = pack(config)
    over = result.seen > 0 and result.rejected > config.bad_fraction * result.seen
    summary = [f"{result.dataset}: {result.samples} images in {result.shards} shards."]
    if result.rejects_url:
        summary.append(f"Rejected inputs, with reasons: {result.rejects_url}")
    return Outcome(asdict(result), config.quarantine_exit if over else 0, summary)


if __name__ == "__main__":
    run_job(PackConfig, main)
