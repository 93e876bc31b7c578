"""Encode a dataset into a latent store, exactly once; run again, it writes nothing."""

from jobs.command import Outcome, run_job
from pipeline.config import EncodeConfig


def main(config: EncodeConfig) -> Outcome:
    """Encodes; too many failed images, or a lost shard, end with `quarantine_exit`."""
    from pipeline.commands.encode import run_encoding

    result = run_encoding(config)
    if config.dry_run:
        return Outcome(result)
    whole = result["samples"] + result["failed"]
    lost = bool(result["lost"]) and config.limit is None
    over = lost or result["failed"] > config.bad_fraction * whole
    return Outcome(result, config.quarantine_exit if over else 0)


if __name__ == "__main__":
    run_job(EncodeConfig, main)
