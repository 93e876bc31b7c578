"""Encode a dataset into a latent store, exactly once; run again, it writes nothing."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.command import LOADING, REFUSED_EXIT, Outcome, run_job
from pipeline.config import EncodeConfig
from pipeline.counted import counted
from pipeline.masking import shell_word
from pipeline.progress import phase

if TYPE_CHECKING:
    from pipeline.commands.encode import Encoded

_LOST_SHOWN = 5
"""Shards that a terminal is told; the report has all."""


def main(config: EncodeConfig) -> Outcome:
    """Encodes; too many failed images, or a lost shard, end with 3, unless all may fail."""
    with phase(LOADING):
        from pipeline.commands.encode import NOT_ASKED, cost_of_encoding, run_encoding

    if config.dry_run:
        return Outcome(asdict(cost_of_encoding(config)))
    result = run_encoding(config)
    whole = result.samples + result.failed
    lost = config.bad_fraction < 1 and any(why != NOT_ASKED for _, why in result.lost)
    over = result.failed > config.bad_fraction * whole
    lines = _summary(result)
    if over:
        share = math.ceil(100 * result.failed / whole) / 100
        lines.append(
            f"More than {config.bad_fraction:.1%} of the images failed, so the exit code is 3. To "
            f"take that for success: `--bad-fraction {1 if lost else share:g}`."
        )
    elif lost:
        lines.append("Shards are missing, so the exit code is 3.")
    if not result.lost:
        lines.append(f"Prove it whole: `vae verify --store {shell_word(result.store)}`")
    return Outcome(asdict(result), REFUSED_EXIT if over or lost else 0, lines)


def _summary(result: "Encoded") -> list[str]:
    from pipeline.commands.encode import NOT_ASKED
    from pipeline.encoding.report import MAX_LISTED

    now, shards = result.now, counted(result.shards, "shard")
    lines = [f"{result.store}: {counted(result.samples, 'latent')} in {shards}."]
    if now.read:
        others = ("failed", now.failed), ("left out", now.filtered), ("superseded", now.superseded)
        more = "".join(f" + {count:,} {name}" for name, count in others if count)
        lines.append(f"{counted(now.read, 'image')} read now = {now.encoded:,} encoded{more}.")
    elif not result.lost:
        lines.append("Nothing is new: all of it was encoded before.")
    if result.failed:
        first = f" the first {MAX_LISTED}" if result.failed > MAX_LISTED else ""
        lines.append(
            f"{counted(result.failed, 'image')} failed and got no latent; listed{first} with "
            f"reasons: {result.report}"
        )
    if result.filtered:
        lines.append(f"{result.filtered:,} images do not meet `--where` and were left out.")
    if result.lost:
        limited = any(why == NOT_ASKED for _, why in result.lost)
        again = "without `--limit` encodes them" if limited else "tries them again"
        lines.append(
            f"Not in it: {counted(len(result.lost), 'shard')} with "
            f"{counted(result.lost_samples, 'image')}; the same command {again}:"
        )
        lines += [f"  {shard}: {reason}" for shard, reason in result.lost[:_LOST_SHOWN]]
        if len(result.lost) > _LOST_SHOWN:
            lines.append(f"  and {counted(len(result.lost) - _LOST_SHOWN, 'shard')} more")
    return lines


if __name__ == "__main__":
    run_job(EncodeConfig, main)
