"""The gradient of the global batch's mean, micro-batch by micro-batch.

Usually DDP adds the ranks' gradients, in an order of its own. `exact` adds the canonical
micro-batches' gradients one after the other, in the order of their slots: the sum then has the same
bits at any world size, for the price of sending each micro-batch's gradient.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import ObjectiveConfig
from pipeline.data import Batch
from pipeline.errors import RunError
from pipeline.training.state import COMPONENTS, TrainState
from pipeline.training.step_counts import Counts
from pipeline.training.world import World
from pipeline.vae import ElboTerms, draw_noise, objective_loss
from pipeline.vae.noise import set_generators

Precision = Literal["auto", "bf16", "fp16", "fp32", "fp64"]


@dataclass(frozen=True)
class StepSettings:
    """What stays the same for all steps of a run.

    `micro_batch_size`: images per forward pass of one rank; None: all of the rank's at once.
    """

    objective: ObjectiveConfig
    seed: int
    clip_norm: float
    precision: Precision
    micro_batch_size: int | None = None
    exact: bool = False


def leave_gradients(
    state: TrainState, batch: Batch, world: World, settings: StepSettings, counts: Counts
) -> tuple[Tensor, float]:
    """Leaves the gradient of the global mean; returns the global sums (see `_sums`) and beta.

    The batch's images are on `world.device`.
    """
    state.optimizer.zero_grad(set_to_none=True)
    if settings.exact:
        return _leave_in_order(state, batch, world, settings, counts)
    total = torch.zeros(len(COMPONENTS) + 1, dtype=torch.float64, device=world.device)
    parts = list(_micro_batches(batch, settings.micro_batch_size))
    for number, part in enumerate(parts, start=1):
        # Only the last backward pass sends anything; the others add to the local gradient.
        is_last = number == len(parts)
        model = state.model
        waits = isinstance(model, DistributedDataParallel) and not is_last
        with model.no_sync() if waits else nullcontext():  # type: ignore[operator]
            passed = _forward(state, model, part, world, settings)
            total += passed.sums
            # It travels while the gradients are computed.
            pending = world.begin_sum(total) if is_last else None
            # DDP takes the mean over ranks: times `size` it is the sum.
            _backward(state, passed, world.size / counts.divisor)
    assert pending is not None, "the last part begins the sum"
    return pending.result(), passed.beta


def _leave_in_order(
    state: TrainState, batch: Batch, world: World, settings: StepSettings, counts: Counts
) -> tuple[Tensor, float]:
    """The same, added in the order of slots; the ranks' micro-batches are of equal number."""
    size = settings.micro_batch_size
    if size is None or len(batch.slots) % size or batch.slots.start % size:
        raise RunError(
            f"exact sums with micro-batches of {size} don't fit {world.size} workers, of which one "
            f"holds slots {batch.slots.start} to {batch.slots.stop} of each batch. Choose workers "
            "or a `--micro-batch-size` that divide them."
        )
    weights = [weight for weight in state.vae.parameters() if weight.requires_grad]
    own: list[tuple[Tensor, Tensor]] = []
    beta = 0.0
    for part in _micro_batches(batch, settings.micro_batch_size):
        state.optimizer.zero_grad(set_to_none=True)
        passed = _forward(state, state.vae, part, world, settings)
        _backward(state, passed, 1 / counts.divisor)
        own.append((_flat(weights), passed.sums))
        beta = passed.beta
    gradient, total = torch.zeros_like(own[0][0]), torch.zeros_like(own[0][1])
    for source in range(world.size):
        for number in range(len(own)):
            gradient += world.share(own[number][0], source)
            total += world.share(own[number][1], source)
    start = 0
    for weight in weights:
        weight.grad = gradient[start : start + weight.numel()].view_as(weight)
        start += weight.numel()
    return total, beta


def _micro_batches(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Consecutive parts of one rank's batch with `size` slots each, the last one smaller."""
    count = len(batch.slots)
    if size is None or size >= count:
        yield batch
        return
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        yield Batch(
            images=batch.images[part],
            keys=batch.keys[part],
            valid=batch.valid[part],
            columns={},
            epoch=batch.epoch,
            index=batch.index,
            slots=batch.slots[part],
        )


@dataclass(frozen=True)
class _Passed:
    """A part's forward pass: the sum of its loss, its sums (see `_sums`), and beta."""

    loss: Tensor
    sums: Tensor
    beta: float


def _forward(
    state: TrainState, model: nn.Module, part: Batch, world: World, settings: StepSettings
) -> _Passed:
    step, chosen = state.step + 1, settings.objective
    valid = part.valid.to(world.device)
    autocast = autocast_dtype(settings.precision, world.device)
    noise = draw_noise(
        state.vae, settings.seed, step, part.slots, world.device, samples=chosen.samples
    )
    set_generators(settings.seed, step, part.slots[0], world.device)
    with (
        torch.autocast(world.device.type, autocast, autocast is not None),
        state.forward.running(world.device),
    ):
        terms = model(part.images, noise, chosen.needs_mean)
    objective = objective_loss(chosen, terms, step, state.objective)
    loss = torch.where(valid, objective.loss_per_image, 0.0).sum()
    return _Passed(loss, _sums(terms, objective.loss_per_image, valid), objective.beta)


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type that the networks compute in; None: that of the weights, without autocast.

    `auto` is bf16 on CUDA and on CPUs with avx512_bf16 or amx: elsewhere bf16 is 12 times slower.
    """
    match precision:
        case "fp32" | "fp64":
            return None
        case "fp16":
            return torch.float16
        case "bf16":
            return torch.bfloat16
    is_fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if is_fast else None


def _backward(state: TrainState, passed: _Passed, weight: float) -> None:
    """Adds `weight` times the gradient of the part's summed loss."""
    loss = passed.loss * weight
    state.scaler.scale(loss).backward()


def _sums(terms: ElboTerms, loss_per_image: Tensor, valid: Tensor) -> Tensor:
    """The sums of each component and of the loss over this rank's valid images: [6], float64."""
    columns = [getattr(terms, name) for name in COMPONENTS] + [loss_per_image]
    # float64: a sum over 10^4 images of 10^4 nats keeps its last digits whatever the world size.
    table = torch.stack([column.detach().double() for column in columns])
    return torch.where(valid, table, 0.0).sum(dim=1)


def _flat(weights: list[nn.Parameter]) -> Tensor:
    """All gradients in one vector; zeros where a weight has none."""
    return torch.cat(
        [
            (torch.zeros_like(weight) if weight.grad is None else weight.grad).flatten()
            for weight in weights
        ]
    )
