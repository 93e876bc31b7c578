"""Prove a dataset or a latent store whole, or say what is wrong and how to mend it."""

from typing import Any

from jobs.command import Outcome, run_job
from pipeline.config.verify import PROVED_BATCH, VerifyConfig


def main(config: VerifyConfig) -> Outcome:
    """Reads everything once; problems go to stdout and make the exit code 1."""
    more: dict[str, Any] = {}
    if config.dataset is not None:
        from pipeline.packing.verify_dataset import prove_order, verify_dataset

        url, problems = config.dataset, verify_dataset(config.dataset)
        problems += prove_order(config.dataset, config.worlds, PROVED_BATCH)
    else:
        from pipeline.latents import verify_store

        assert config.store is not None, "the config demands one of both"
        url, problems = config.store, verify_store(config.store)
        if config.sample:
            from pipeline.commands.decode import run_sample

            again = run_sample(config)
            problems = [*problems, *again.problems]
            more = {"reencoded": again.images, "equal": again.equal,
                    "largest_difference": again.largest_difference}  # fmt: skip
    summary = problems or [f"{url}: whole."]
    return Outcome(
        {"ok": not problems, "problems": problems, **more}, 1 if problems else 0, summary
    )


if __name__ == "__main__":
    run_job(VerifyConfig, main)
