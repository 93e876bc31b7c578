"""One optimiser step on one global batch, of which this rank holds its slots."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from pipeline.data import Batch, LoaderTotals
from pipeline.runs.checkpoint import CheckpointStats
from pipeline.runs.goodput import State
from pipeline.training.gradients import StepSettings, leave_gradients
from pipeline.training.state import COMPONENTS, Component, TrainState
from pipeline.training.step_counts import Counts
from pipeline.training.world import World


@dataclass(frozen=True)
class StepReport:
    """What one step did; the same on every rank but for seconds and this rank's own counts.

    `terms` are means in nats per valid image of the global batch, `objective` is what was
    maximised (nats per image), `images` counts valid images and `bad_images` those that could not
    be read or decoded. `skipped` says that no weight moved: loss or gradient was not finite, or no
    image was valid.
    """

    step: int
    epoch: int
    images: int
    bad_images: int
    images_seen: int
    terms: Mapping[Component, float]
    objective: float
    beta: float
    gradient_norm: float
    learning_rate: float
    skipped: bool
    stop_requested: bool
    seconds: float
    data_wait_seconds: float
    copy_seconds: float = 0.0
    """Part of `seconds`: sending the images to the device."""
    rank_seconds: tuple[float, ...] = ()
    """Of the step before: what each rank did by itself, not waiting for another one."""
    gpu_share: float | None = None
    """Of the GPUs' peak: see `GpuShare`."""
    loader: LoaderTotals = field(default_factory=LoaderTotals)
    """What this rank's loader has done so far."""
    checkpoints: CheckpointStats = field(default_factory=CheckpointStats)
    """What this rank has written so far."""
    run_seconds: Mapping[State, float] = field(default_factory=dict)
    """Where the run's time went so far, in seconds by state: see goodput.py."""


def train_step(
    state: TrainState,
    batch: Batch,
    world: World,
    settings: StepSettings,
    *,
    rate: float,
    stop: bool,
    data_wait_seconds: float,
) -> StepReport:
    """Moves the weights by one step, on the mean over the global batch's valid images.

    The local loss is (sum over local valid images) x world / (global valid images): DDP's mean
    over ranks then is the gradient of the global mean, also when ranks hold unequal numbers of
    valid images. `stop` is this rank's wish to stop; the report carries any rank's.
    """
    started = time.perf_counter()
    batch = replace(batch, images=batch.images.to(world.device, non_blocking=True))
    copied = time.perf_counter()
    step = state.step + 1
    counts = Counts(batch, world, state.own_seconds, stop=stop)
    sums, beta = leave_gradients(state, batch, world, settings, counts)
    images, bad_images = counts.images, counts.bad_images
    state.scaler.unscale_(state.optimizer)
    gradient_norm = nn.utils.clip_grad_norm_(state.vae.parameters(), settings.clip_norm)
    # Both numbers are sums over all ranks, so every rank decides alike without another message.
    finite = bool(torch.isfinite(gradient_norm) & torch.isfinite(sums[-1])) and images > 0
    if finite:
        _move(state, step, rate)
    # After an overflow of float16 this lowers the scale, so that the next step fits.
    state.scaler.update()
    state.skipped_in_a_row = 0 if finite or images == 0 else state.skipped_in_a_row + 1
    state.step = step
    state.images_seen += images
    state.bad_images += bad_images
    *terms_of, loss_mean = (sums / max(1, images)).tolist()
    means = state.terms = dict(zip(COMPONENTS, terms_of, strict=True))
    state.objective = state.objective.updated(
        settings.objective, means["log_likelihood"], math.prod(state.vae.image_shape)
    )
    state.own_seconds = data_wait_seconds + (copied - started) + state.forward.take()
    return StepReport(
        step=step,
        epoch=batch.epoch,
        images=images,
        bad_images=bad_images,
        images_seen=state.images_seen,
        terms=means,
        objective=-loss_mean,
        beta=beta,
        gradient_norm=float(gradient_norm),
        learning_rate=rate,
        skipped=not finite,
        stop_requested=counts.wishes > 0,
        seconds=time.perf_counter() - started + data_wait_seconds,
        data_wait_seconds=data_wait_seconds,
        copy_seconds=copied - started,
        rank_seconds=counts.rank_seconds,
    )


def _move(state: TrainState, step: int, rate: float) -> None:
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.ema.update(state.vae, step)
