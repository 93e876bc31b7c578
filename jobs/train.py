"""Train a VAE on a packed dataset; run again, it continues."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.command import Outcome, run_job
from pipeline.config import TrainConfig

if TYPE_CHECKING:
    from pipeline.commands.sweep import SweepRow


def main(config: TrainConfig) -> Outcome:
    """Trains to the last step, tracks, checkpoints and registers."""
    if config.dry_run:
        from pipeline.commands.train_cost import dry_run

        cost = dry_run(config)
        return Outcome(
            asdict(cost),
            summary=[
                f"{cost.images:,} images, {cost.epochs:.1f} epochs in {cost.steps:,} "
                f"steps of {cost.seconds_per_step:.3f} s: {cost.hours:.2f} hours on "
                f"{cost.workers} workers, {cost.bytes_read / 1e9:.1f} GB read"
            ],
        )
    if config.sweep is not None:
        from pipeline.commands.sweep import run_sweep

        swept = run_sweep(config)
        return Outcome(swept.to_json(), summary=_table(swept.rows))
    from pipeline.commands.train import run_training

    return Outcome(run_training(config).to_json())


def _table(rows: Sequence["SweepRow"]) -> list[str]:
    head = f"{'':<20}{'ELBO':>12}{'rate':>12}{'distortion':>12}{'active':>8}"
    return [head] + [
        f"{row.name:<20}{_nats(row.elbo)}{_nats(row.rate)}{_nats(row.distortion)}"
        f"{'-' if row.active_units is None else row.active_units:>8}"
        for row in rows
    ]


def _nats(value: float | None) -> str:
    return f"{'diverged':>12}" if value is None else f"{value:12.3f}"


if __name__ == "__main__":
    run_job(TrainConfig, main)
