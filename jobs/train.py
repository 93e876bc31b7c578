"""Train a VAE on a packed dataset; run again, it continues."""

from jobs.command import Outcome, run_job
from pipeline.config import TrainConfig


def main(config: TrainConfig) -> Outcome:
    """Trains to the last step, tracks, checkpoints and registers."""
    from pipeline.edges.training import run_training

    return Outcome(run_training(config))


if __name__ == "__main__":
    run_job(TrainConfig, main)
