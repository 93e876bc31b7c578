"""Prove a dataset or a latent store whole, or say what is wrong and how to mend it."""

from jobs.command import Outcome, run_job
from pipeline.config.verify import PROVED_BATCH, PROVED_WORLDS, VerifyConfig
from pipeline.data.keys import path_of
from pipeline.json_value import Json


def main(config: VerifyConfig) -> Outcome:
    """Reads everything once; problems go to stdout and make the exit code 1."""
    more: Json = {}
    if config.store is None:
        from pipeline.data import Dataset
        from pipeline.packing.verify_dataset import prove_order, verify_dataset

        assert config.dataset is not None, "the config demands one of both"
        url, problems = config.dataset, verify_dataset(config.dataset, config.shards_below)
        if not problems:
            dataset = Dataset.open(config.dataset, None, config.shards_below, flag="--dataset")
            problems = prove_order(dataset, PROVED_WORLDS, PROVED_BATCH)
    else:
        from pipeline.latents import verify_store

        url, problems = config.store, verify_store(config.store)
        if config.sample:
            from pipeline.commands.decode import run_sample

            again = run_sample(config)
            problems = [*problems, *again.problems]
            more = {"reencoded": again.images, "equal": again.equal,
                    "largest_difference": again.largest_difference}  # fmt: skip
    summary = problems or [f"{url}: whole."]
    if config.keys:
        keys = _keys(config)
        more = {**more, "keys": keys}
        summary = [*summary, *(f"  {key}  {path_of(key)}" for key in keys)]
    return Outcome(
        {"ok": not problems, "problems": problems, **more}, 1 if problems else 0, summary
    )


def _keys(config: VerifyConfig) -> list[str]:
    if config.store is not None:
        from pipeline.latents import LatentStore

        return list(dict.fromkeys(LatentStore.open_all(config.store).keys()))
    from pipeline.data import Dataset

    assert config.dataset is not None, "the config demands one of both"
    return list(Dataset.open(config.dataset, None, config.shards_below, flag="--dataset").keys())


if __name__ == "__main__":
    run_job(VerifyConfig, main)
