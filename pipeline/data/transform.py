"""How a training image differs from epoch to epoch: mirrored, and a user's own transform.

A transform is a pure function of images and their seeds, by import path.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.import_path import find_named
from pipeline.errors import ConfigError, DatasetError

Transform = Callable[[Tensor, Tensor], Tensor]
"""`transform(images, seeds)`: uint8 `[n, C, S, S]` and int64 `[n]` to images of the same shape.

Each image may depend on itself and its own seed alone: how many come at once, and which, is not
promised, and the same sample has the same seed in an epoch whatever the number of workers.
"""


@dataclass(frozen=True)
class Augmentation:
    """`flip`: half of the images, by a coin for each (seed, key, epoch), are mirrored.

    `transform` is the import path of a `Transform`, as package.module:function, applied last.
    """

    flip: bool = False
    transform: str | None = None


def load_transform(path: str) -> Transform:
    """The function at `package.module:function`; raises `ConfigError` if there is none."""
    found = find_named(path, "transform", ConfigError)
    if not callable(found):
        raise ConfigError(f"transform {path}: is no function, but {found!r}.")
    checked: Transform = found
    return checked


def apply_transform(transform: Transform, path: str, images: Tensor, seeds: list[int]) -> None:
    """Replaces `images` in place; raises `DatasetError` for another shape or type."""
    result = transform(images, torch.tensor(seeds, dtype=torch.int64))
    if result.shape != images.shape or result.dtype != torch.uint8:
        raise DatasetError(
            f"transform {path}: gave {result.dtype} {tuple(result.shape)} for uint8 "
            f"{tuple(images.shape)}; it must give uint8 of the same shape."
        )
    images.copy_(result)
