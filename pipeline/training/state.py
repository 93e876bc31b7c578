"""What a training step changes: weights, their average, optimiser, counts."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import nn

from pipeline.config import OptimizerConfig
from pipeline.training.step_time import Stopwatch
from pipeline.vae import VAE, ObjectiveState

Component = Literal["elbo", "log_likelihood", "kl", "entropy_q", "cross_entropy_q_prior"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
"""Means over the global batch that every step reports; evaluation adds `log_likelihood_at_mean`."""


class Ema:
    """A copy of a module whose weights follow it slowly; `module` is what one evaluates and keeps.

    With `decay` 0 the average is the module's present weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        if next(module.parameters()).dtype != torch.float64:
            self.module.float()

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards `module` after optimiser step `step` (the first is 1)."""
        # Early on the average would remember the initial weights: 0.999 forgets in 1,000 steps.
        decay = min(self.decay, step / (step + 9.0))
        averages = [average.data for average in self.module.parameters()]
        values = [
            value.detach().to(average.dtype)
            for average, value in zip(averages, module.parameters(), strict=True)
        ]
        if averages:
            torch._foreach_lerp_(averages, values, 1.0 - decay)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)


@dataclass
class TrainState:
    """Everything that a step changes."""

    vae: VAE
    model: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    objective: ObjectiveState = field(default_factory=ObjectiveState)
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False)
    )
    """Keeps float16 gradients above its smallest number; other precisions leave it off."""
    step: int = 0
    images_seen: int = 0
    bad_images: int = 0
    terms: Mapping[Component, float] = field(default_factory=dict)
    """The last step's means in nats per image; empty before the first one."""
    skipped_in_a_row: int = 0
    """Steps up to now whose loss or gradient was not finite."""
    forward: Stopwatch = field(default_factory=Stopwatch)
    own_seconds: float = 0.0
    """Of this rank's last step, until it had to wait for the others: data, copy, forward pass."""


def make_optimizer(config: OptimizerConfig, vae: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the weights that are not frozen; its learning rate is set at each step."""
    weights = [weight for weight in vae.parameters() if weight.requires_grad]
    return torch.optim.AdamW(weights, lr=0.0, weight_decay=config.weight_decay, fused=True)
