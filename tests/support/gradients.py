"""One optimiser step on a fixed global batch, as one rank of any world; run by test_step.py."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import ModelConfig, ObjectiveConfig, OptimizerConfig, PreprocessConfig
from pipeline.data import Batch
from pipeline.data.order import slots_of
from pipeline.training.gradients import StepSettings
from pipeline.training.state import Ema, TrainState, make_optimizer
from pipeline.training.step import StepReport, train_step
from pipeline.training.world import current_world, leave_process_group
from pipeline.vae import VAE, build_vae
from tests.support.warm import run_ranks

BATCH = 7
"""Two ranks hold 3 and 4 of them."""
INVALID = (2, 5, 6)
"""Rank 0 has one bad sample of three, rank 1 two of four."""

MICRO_BATCHES = (None, 2)
"""All of a rank's images at once; in two parts on both ranks, one of them smaller."""

SEED = 3


def global_batch(slots: range, invalid: tuple[int, ...] = INVALID) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (BATCH, 1, 8, 8), generator=generator, dtype=torch.uint8)
    valid = torch.tensor([slot not in invalid for slot in range(BATCH)])
    # What a bad sample shows must not matter: its slot holds other pixels on purpose.
    images[~valid] = 255
    keys = [f"k{slot}" for slot in range(BATCH)]
    return Batch(images[slots.start : slots.stop], [keys[s] for s in slots],
                 valid[slots.start : slots.stop], {}, 0, 0, slots)  # fmt: skip


PLAIN = ObjectiveConfig()


def new_vae() -> VAE:
    torch.manual_seed(0)
    model = ModelConfig(kind="mlp")
    return build_vae(model, PreprocessConfig(image_size=8, channels=1)).double()


def one_step(
    batch: Batch,
    wrap: bool = False,
    objective: ObjectiveConfig = PLAIN,
    micro_batch_size: int | None = None,
    exact: bool = False,
) -> tuple[StepReport, TrainState]:
    vae = new_vae()
    config = OptimizerConfig(clip_norm=1e12)
    model = DistributedDataParallel(vae) if wrap else vae
    state = TrainState(vae, model, Ema(vae, 0.9), make_optimizer(config, vae))
    settings = StepSettings(objective, SEED, config.clip_norm, "fp32", micro_batch_size, exact)
    report = train_step(
        state, batch, current_world(torch.device("cpu")), settings,
        rate=1e-3, stop=False, data_wait_seconds=0.0,
    )  # fmt: skip
    return report, state


def gradients(state: TrainState) -> list[torch.Tensor]:
    grads = [parameter.grad for parameter in state.vae.parameters()]
    return [grad.clone() for grad in grads if grad is not None]


def found_by_ranks(count: int, folder: Path) -> list[Any]:
    """What each rank of so many found, a dictionary for each of MICRO_BATCHES."""
    run_ranks(folder, count, "tests.support.gradients")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _rank(rank: int, world_size: int) -> None:
    """Writes what this rank found to RANK.pt in its folder."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    meeting = f"file://{Path('rendezvous').resolve()}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=world_size)
    batch = global_batch(slots_of(rank, world_size, BATCH))
    found = {}
    for size in MICRO_BATCHES:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as traced:
            report, state = one_step(batch, wrap=True, micro_batch_size=size)
        names = [event.name for event in traced.events()]
        found[size] = {
            "gradients": gradients(state), "terms": report.terms, "images": report.images,
            "bad_images": report.bad_images, "objective": report.objective,
            "messages": [name for name in names if name.startswith("gloo:")],
        }  # fmt: skip
    torch.save(found, f"{rank}.pt")
    leave_process_group()


if __name__ == "__main__":
    _rank(*map(int, sys.argv[1:]))
