"""What a training step changes."""

from dataclasses import dataclass, field

import torch
from torch import nn

from pipeline.config import OptimizerConfig
from pipeline.training.ema import Ema
from pipeline.training.step_time import Stopwatch
from pipeline.vae import VAE, ObjectiveState


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
    skipped_in_a_row: int = 0
    """Steps up to now whose loss or gradient was not finite."""
    forward: Stopwatch = field(default_factory=Stopwatch)
    own_seconds: float = 0.0
    """Of this rank's last step, until it had to wait for the others: data, copy, forward pass."""


def make_optimizer(config: OptimizerConfig, vae: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the weights that are not frozen; its learning rate is set at each step."""
    weights = [weight for weight in vae.parameters() if weight.requires_grad]
    return torch.optim.AdamW(weights, lr=0.0, weight_decay=config.weight_decay, fused=True)
