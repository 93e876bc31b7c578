"""One optimiser step on one global batch, of which this rank holds its slots."""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.config import ObjectiveConfig, OptimizerConfig
from pipeline.data import Batch
from pipeline.training.ema import Ema
from pipeline.training.world import World
from pipeline.vae import VAE, ElboTerms, ObjectiveState, draw_noise, objective_loss

COMPONENTS = ("elbo", "log_likelihood", "kl", "entropy_q", "cross_entropy_q_prior")
"""Means over the global batch that every step reports; evaluation adds `log_likelihood_at_mean`."""


@dataclass(frozen=True)
class StepReport:
    """What one step did; the same on every rank but for the seconds.

    `terms` are means in nats per valid image of the global batch, `objective` is what was
    maximised (nats per image), `images` counts valid images and `bad_images` those that could not
    be read or decoded. `skipped` says that loss or gradient was not finite: no weight moved.
    """

    step: int
    epoch: int
    images: int
    bad_images: int
    images_seen: int
    terms: dict[str, float]
    objective: float
    beta: float
    gradient_norm: float
    learning_rate: float
    skipped: bool
    stop_requested: bool
    seconds: float
    data_wait_seconds: float


@dataclass
class TrainState:
    """Everything that a step changes."""

    vae: VAE
    model: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    objective: ObjectiveState = field(default_factory=ObjectiveState)
    step: int = 0
    images_seen: int = 0
    bad_images: int = 0


def make_optimizer(config: OptimizerConfig, vae: nn.Module) -> torch.optim.Optimizer:
    """AdamW over all weights; its learning rate is set at each step."""
    fused = all(parameter.is_cuda for parameter in vae.parameters())
    return torch.optim.AdamW(
        vae.parameters(), lr=0.0, weight_decay=config.weight_decay, fused=fused
    )


@dataclass(frozen=True)
class StepSettings:
    """What stays the same for all steps of a run, and the rate of this one."""

    objective: ObjectiveConfig
    seed: int
    clip_norm: float
    autocast: torch.dtype | None


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
    step = state.step + 1
    images, bad_images, wishes = _counts(batch, world, stop=stop)
    sums, beta = _backward(state, batch, world, settings, images)
    gradient_norm = nn.utils.clip_grad_norm_(state.vae.parameters(), settings.clip_norm)
    # Both numbers are sums over all ranks, so every rank decides alike without another message.
    finite = bool(torch.isfinite(gradient_norm) & torch.isfinite(sums[-1])) and images > 0
    if finite:
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.ema.update(state.vae, step)
    state.step = step
    state.images_seen += images
    state.bad_images += bad_images
    *terms_of, loss_mean = (sums / max(1, images)).tolist()
    means = dict(zip(COMPONENTS, terms_of, strict=True))
    state.objective = state.objective.updated(
        settings.objective, means["log_likelihood"], math.prod(state.vae.image_shape)
    )
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
        stop_requested=wishes > 0,
        seconds=time.perf_counter() - started + data_wait_seconds,
        data_wait_seconds=data_wait_seconds,
    )


def _counts(batch: Batch, world: World, *, stop: bool) -> list[int]:
    """Over all ranks: valid images, bad images, and ranks that wish to stop."""
    named = torch.tensor([key != "" for key in batch.keys])
    wish = torch.tensor(int(stop))
    mine = torch.stack([batch.valid.sum(), (named & ~batch.valid).sum(), wish])
    return [int(count) for count in world.sum(mine.to(world.device)).tolist()]


def _backward(
    state: TrainState, batch: Batch, world: World, settings: StepSettings, images: int
) -> tuple[Tensor, float]:
    """Leaves the gradients of the global mean; returns the global sums (see `_sums`) and beta."""
    step, chosen = state.step + 1, settings.objective
    valid = batch.valid.to(world.device)
    noise = draw_noise(
        state.vae, settings.seed, step, batch.slots, world.device, samples=chosen.samples
    )
    with torch.autocast(world.device.type, settings.autocast, settings.autocast is not None):
        pixels = batch.images.to(world.device, non_blocking=True)
        terms = state.model(pixels, noise, chosen.needs_mean)
    objective = objective_loss(chosen, terms, step, state.objective)
    loss = torch.where(valid, objective.loss_per_image, 0.0).sum() * (world.size / max(1, images))
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own, without types
    return world.sum(_sums(terms, objective.loss_per_image, valid)), objective.beta


def _sums(terms: ElboTerms, loss_per_image: Tensor, valid: Tensor) -> Tensor:
    """The sums of each component and of the loss over this rank's valid images: [6], float64."""
    columns = [getattr(terms, name) for name in COMPONENTS] + [loss_per_image]
    # float64: a sum over 10^4 images of 10^4 nats keeps its last digits whatever the world size.
    table = torch.stack([column.detach().double() for column in columns])
    return torch.where(valid, table, 0.0).sum(dim=1)
