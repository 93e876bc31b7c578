"""What changes nothing of a job, and in a pod takes its time: a fault then meets work.

`pause` is a training's `--transform`, which also takes memory if told; `Drowsy` an encoding's
`--also`. Work on tiny images is over before a fault is made; this is not.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

HUNGRY = Path("/tmp/hungry")
"""Where this file is there, all of a pod's memory is taken, once."""
HURRIED = Path("/tmp/hurried")
"""Where this file is there, no time is taken any more."""
_DROWSY_SECONDS = 5.0


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


class Drowsy:
    """One zero for each image."""

    columns: Mapping[str, int] = {"nothing": 1}

    def digest(self) -> str:
        """It has no weights."""
        return "0" * 16

    def encode(self, images: torch.Tensor, columns: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Sleeps for each batch."""
        if "KUBERNETES_SERVICE_HOST" in os.environ and not HURRIED.exists():
            time.sleep(_DROWSY_SECONDS)
        return {"nothing": torch.zeros(len(images), 1)}
