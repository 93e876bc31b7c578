"""How a training image differs from epoch to epoch: mirrored, and a user's own transform.

A transform is a pure function of images and their seeds, by import path.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.import_path import find_named, told
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
    found = find_named(path, "--transform", ConfigError)
    if not callable(found):
        raise ConfigError(f"--transform {path}: is no function, but {found!r}.")
    checked: Transform = found
    return checked


def apply_transform(transform: Transform, path: str, images: Tensor, seeds: list[int]) -> None:
    """Replaces `images` in place; raises `DatasetError` where it fails, or for another shape."""
    try:
        result = transform(images, torch.tensor(seeds, dtype=torch.int64))
    except Exception as error:  # Somebody's own function raises what it likes.
        raise DatasetError(
            f"--transform {path}: failed with {told(error)} It is called as {_called(path)} with "
            f"uint8 {tuple(images.shape)} and int64 [{len(seeds)}], and gives images alike."
        ) from error
    if not isinstance(result, Tensor):
        raise DatasetError(
            f"--transform {path}: gave no tensor, but {type(result).__name__}; {_called(path)} "
            "gives uint8 images of the shape it gets."
        )
    if result.shape != images.shape or result.dtype != torch.uint8:
        raise DatasetError(
            f"--transform {path}: gave {result.dtype} {tuple(result.shape)} for uint8 "
            f"{tuple(images.shape)}; {_called(path)} must give uint8 of the same shape, as with "
            "`.to(torch.uint8)`."
        )
    images.copy_(result)


def _called(path: str) -> str:
    return f"`{path.rpartition(':')[2]}(images, seeds)`"


def try_transform(path: str, shape: tuple[int, int, int]) -> None:
    """Calls it on two black images [C, S, S]; raises `ConfigError` if it can't be trained with."""
    images = torch.zeros((2, *shape), dtype=torch.uint8)
    try:
        apply_transform(load_transform(path), path, images, [0, 1])
    except DatasetError as error:
        raise ConfigError(str(error)) from error
