"""The exponential moving average of the weights, in float32 or better."""

import copy

import torch
from torch import nn


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
