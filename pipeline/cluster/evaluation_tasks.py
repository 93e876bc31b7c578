"""A model measured by Ray tasks, one share of the images each."""

from contextlib import closing

import torch

from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.data import Dataset
from pipeline.evaluation.reading import in_order
from pipeline.evaluation.rows import Measured, MeasureOptions, measure, merge
from pipeline.progress import Progress
from pipeline.vae import VAE


def measure_on_ray(vae: VAE, workers: int, dataset: Dataset, options: MeasureOptions) -> Measured:
    """Every image of the dataset measured once, by `workers` tasks, and put together."""
    with ray_cluster(workers):
        import ray

        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= workers else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(_measure_part)
        shared = ray.put(vae)
        where = dataset.url, dataset.digest, dataset.shards_below
        pending = [task.remote(shared, where, options, rank, workers) for rank in range(workers)]
        parts = []
        with Progress("evaluate", len(dataset), "images") as progress:
            while pending:
                ready, pending = ray.wait(pending)
                part = ray.get(ready[0])
                progress.advance(len(part.positions))
                parts.append(part)
    return merge(parts, vae.latent.dimensions)


def _measure_part(
    vae: VAE,
    where: tuple[str, str, tuple[str, ...]],
    options: MeasureOptions,
    rank: int,
    world_size: int,
) -> Measured:
    dataset = Dataset.open(*where)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_size = options.global_batch_size
    with closing(
        in_order(dataset, vae.preprocess, batch_size, rank=rank, world_size=world_size)
    ) as loader:
        return measure(vae.to(device), loader, options, device)
