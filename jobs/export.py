"""Write a latent store as WebDataset tars of .npy or .safetensors."""

from jobs.command import Outcome, run_job
from pipeline.config import ExportConfig
from pipeline.counted import counted


def main(config: ExportConfig) -> Outcome:
    """One tar per shard; the same snapshot gives the same bytes."""
    from pipeline.exchange.store_export import export_store
    from pipeline.latents import LatentStore

    store = LatentStore.open(config.store, size=config.size)
    shards = export_store(store, config.output, config.format)
    return Outcome(
        {"shards": shards, "samples": len(store), "output": config.output},
        summary=[f"{config.output}: {counted(len(store), 'latent')} in {counted(shards, 'tar')}."],
    )


if __name__ == "__main__":
    run_job(ExportConfig, main)
