"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from pipeline.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate used by step `step` (the first is 1) of a run of `steps`.

    Linear from 0 over `warmup_steps`, then constant, or half a cosine down to 0 at `steps`
    (Loshchilov & Hutter 2017, without restarts).
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
