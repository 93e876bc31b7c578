"""`jobs.train --dry-run`: what a run would cost, from a short probe of its own steps."""

import time
from contextlib import closing
from typing import Any

from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.runs.run import Run
from pipeline.training.gradients import StepSettings
from pipeline.training.loop import make_loader
from pipeline.training.restore import autocast_dtype, numerics, restore
from pipeline.training.step import train_step
from pipeline.training.world import World, current_world

PROBE_SECONDS = 30.0
_WARM_UP_STEPS = 3


def dry_run(config: TrainConfig, probe_seconds: float = PROBE_SECONDS) -> dict[str, Any]:
    """Images, steps, bytes read and hours of a run; trains here for a while and writes nothing.

    Each of several workers is taken to be like this process with its share of the batch: what they
    send each other is not in the hours.
    """
    dataset = Dataset.open(config.data)
    workers = max(1, config.max_workers)
    single = config.model_copy(update={"global_batch_size": config.global_batch_size // workers})
    seconds, steps = _probe(single, dataset, probe_seconds)
    per_step = seconds / steps
    epochs = config.steps * config.global_batch_size / len(dataset)
    hours = config.steps * per_step / 3600
    return {
        "images": len(dataset),
        "steps": config.steps,
        "epochs": epochs,
        "images_seen": config.steps * config.global_batch_size,
        "bytes_read": int(epochs * sum(shard.bytes for shard in dataset.shards)),
        "workers": workers,
        "seconds_per_step": per_step,
        "hours": hours,
        "worker_hours": hours * workers,
        "probed_steps": steps,
    }


def _probe(config: TrainConfig, dataset: Dataset, probe_seconds: float) -> tuple[float, int]:
    """Seconds that some steps took after a warm-up, and how many they were."""
    world: World = current_world()
    settings = StepSettings(
        config.objective, config.seed, config.optimizer.clip_norm, autocast_dtype(config, world),
        config.micro_batch_size, config.exact,
    )  # fmt: skip
    # A run that nobody will ever start has no checkpoint to go on from.
    nowhere = Run(f"{Run.at(config).url}.dry-run")
    with numerics(config), closing(make_loader(config, dataset, world, None)) as loader:
        state, _ = restore(config, nowhere, world, dataset)
        started, steps = time.perf_counter(), -_WARM_UP_STEPS
        while True:
            for batch in loader:
                train_step(
                    state, batch, world, settings, rate=1e-9, stop=False, data_wait_seconds=0.0
                )
                steps += 1
                if steps == 0:
                    started = time.perf_counter()
                elapsed = time.perf_counter() - started
                if steps > 0 and (elapsed > probe_seconds or steps >= config.steps):
                    return elapsed, steps
