"""Encode a dataset into a latent store, exactly once; run again, it writes nothing."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.command import REFUSED_EXIT, Outcome, run_job
from pipeline.config import EncodeConfig

if TYPE_CHECKING:
    from pipeline.commands.encode import Encoded

_LOST_SHOWN = 5
"""Shards that a terminal is told; the report has all."""


def main(config: EncodeConfig) -> Outcome:
    """Encodes; too many failed images, or a lost shard, end with 3, unless all may fail."""
    from pipeline.commands.encode import cost_of_encoding, run_encoding

    if config.dry_run:
        return Outcome(asdict(cost_of_encoding(config)))
    result = run_encoding(config)
    whole = result.samples + result.failed
    lost = bool(result.lost) and config.limit is None and config.bad_fraction < 1
    over = lost or result.failed > config.bad_fraction * whole
    return Outcome(asdict(result), REFUSED_EXIT if over else 0, _summary(result))


def _summary(result: "Encoded") -> list[str]:
    lines = [
        f"{result.store}: {result.samples:,} latents in {result.shards:,} shards; "
        f"{result.encoded:,} images encoded now, {result.failed:,} failed."
    ]
    if result.filtered:
        lines.append(f"{result.filtered:,} images do not meet `--where` and were left out.")
    if result.lost:
        lines.append(
            f"{len(result.lost)} shards with {result.lost_samples:,} images are not in it; "
            "the same command tries them again:"
        )
        lines += [f"  {shard}: {reason}" for shard, reason in result.lost[:_LOST_SHOWN]]
    return [*lines, f"Prove it whole: `vae verify --store {result.store}`"]


if __name__ == "__main__":
    run_job(EncodeConfig, main)
