"""A training's `--transform` that changes nothing: in a pod it takes its time, and memory if told.

Steps on tiny images are over before a fault is made; these are not.
"""

import os
import time
from pathlib import Path

import torch

HUNGRY = Path("/tmp/hungry")
"""Where this file is there, all of a pod's memory is taken, once."""
HURRIED = Path("/tmp/hurried")
"""Where this file is there, no time is taken any more."""


def pause(images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """The images as they came; a tenth of a second for a step of 96."""
    return _wait(images, 0.02)


def rest(images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """The same, five times as long."""
    return _wait(images, 0.1)


def _wait(images: torch.Tensor, seconds: float) -> torch.Tensor:
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        time.sleep(0 if HURRIED.exists() else seconds)
        if HUNGRY.exists():
            HUNGRY.unlink()
            _take_all_memory()
    return images


def _take_all_memory() -> None:
    taken = []
    while True:
        taken.append(b"\1" * 2**26)
