"""Where a step's time goes, which rank holds the others up, and what share of the GPU is used."""

import copy
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import ObjectiveConfig
from pipeline.training.world import World
from pipeline.vae import VAE, ObjectiveState, draw_noise, objective_loss

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""NVIDIA's numbers for dense bfloat16, by a word of the GPU's name."""


class Stopwatch:
    """Seconds that a device worked inside `running`, added up until they are taken."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Times the block; on a GPU what it enqueues there."""
        if device.type != "cuda":
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started
            return
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._events.append((begin, end))

    def take(self) -> float:
        """The seconds since the last call; on a GPU it waits until the blocks are worked off."""
        seconds, self._seconds = self._seconds, 0.0
        events, self._events = self._events, []
        for begin, end in events:
            end.synchronize()
            seconds += begin.elapsed_time(end) / 1e3
        return seconds


def parts_of_step(
    seconds: float, waited: float, copied: float, fetching: float, decoding: float
) -> dict[str, float]:
    """One step's `seconds` as fetch, decode, copy and compute; they add up to it.

    A step that `waited` for data waited for the threads that fetch and decode, in the proportion of
    the seconds that those spent on either since the step before.
    """
    busy = fetching + decoding
    fetch = waited * fetching / busy if busy > 0 else waited
    return {
        "fetch": fetch,
        "decode": waited - fetch,
        "copy": copied,
        "compute": seconds - waited - copied,
    }


@dataclass(frozen=True)
class Slowest:
    """The rank whose own work takes longest, and by how much: 1.0 is as long as the median's."""

    rank: int
    ratio: float


def slowest_rank(own_seconds: Sequence[float]) -> Slowest | None:
    """By each rank's own seconds; None where there is one rank or nothing was measured."""
    middle = statistics.median(own_seconds) if own_seconds else 0.0
    if len(own_seconds) < 2 or middle <= 0.0:
        return None
    rank = max(range(len(own_seconds)), key=own_seconds.__getitem__)
    return Slowest(rank, own_seconds[rank] / middle)


def flops_per_image(vae: VAE, objective: ObjectiveConfig, device: torch.device) -> float:
    """Floating-point operations of one image's training step, two per multiply-add.

    Counted by torch on a copy of the model, forwards and backwards; what gradient checkpointing
    computes again is no progress and is left out.
    """
    model = copy.deepcopy(vae)
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False  # type: ignore[assignment]  # no tensor
    count = 2  # A user's network may normalise over the batch.
    images = torch.zeros((count, *vae.image_shape), dtype=torch.uint8, device=device)
    noise = draw_noise(model, 0, 1, range(count), device, samples=objective.samples)
    # A network with dropout draws from the generator that training goes on with.
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        FlopCounterMode(display=False) as counter,
    ):
        terms = model(images, noise, objective.needs_mean)
        loss: Tensor = objective_loss(objective, terms, 1, ObjectiveState()).loss_per_image
        loss.sum().backward()
    return float(counter.get_total_flops()) / count


class GpuShare:
    """Model FLOPs utilisation (MFU): of the GPUs' dense bfloat16 peak, whatever the precision."""

    def __init__(self, vae: VAE, objective: ObjectiveConfig, world: World) -> None:
        self._peak = peak_tflops(world.device)
        self._flops = (
            flops_per_image(vae, objective, world.device) / (self._peak * 1e12 * world.size)
            if self._peak is not None
            else 0.0
        )

    def of(self, images: int, seconds: float) -> float | None:
        """Of a step with `images` in the global batch; None on a CPU or a GPU not in the table."""
        return images * self._flops / seconds if self._peak is not None else None


def peak_tflops(device: torch.device) -> float | None:
    """The device's peak, if it is a GPU of the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for word, peak in PEAK_TFLOPS.items() if word in name), None)
