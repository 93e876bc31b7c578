"""Directions in latent space that mean something: between labels, or along principal axes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class PrincipalAxes:
    """The axes `[A, D]` of largest variance of latent means, unit vectors, with deviations `[A]`.

    `share` is the part of the whole variance that each explains.
    """

    axes: Tensor
    deviations: Tensor
    share: Tensor


def label_direction(means: Tensor, labels: Sequence[str], start: str, goal: str) -> Tensor:
    """The mean latent of label `goal` minus that of `start`: `[N, ...]` to `[...]`, float64.

    Added to an image's latent, it exchanges what the two labels differ in on average.
    """
    known = sorted(set(labels))
    for name in (start, goal):
        if name not in known:
            raise ConfigError(
                f"label {name!r} is not in the dataset, which has {', '.join(known[:20])}. "
                "Name two of these."
            )
    places = torch.tensor([known.index(label) for label in labels], device=means.device)
    points = means.double()
    averages = [points[places == known.index(name)].mean(dim=0) for name in (start, goal)]
    return averages[1] - averages[0]


def principal_axes(means: Tensor, count: int) -> PrincipalAxes:
    """The `count` principal axes of latent means `[N, ...]`, flattened to `[N, D]`, float64.

    A sign is fixed (the entry of largest size is positive), so that equal data give equal axes.
    """
    points = means.double().flatten(1)
    centred = points - points.mean(dim=0)
    _, singular, vectors = torch.linalg.svd(centred, full_matrices=False)
    axes, singular = vectors[:count], singular[:count]
    largest = axes.abs().argmax(dim=1, keepdim=True)
    axes = axes * axes.gather(1, largest).sign()
    variance = singular.square() / len(points)
    total = centred.square().sum() / len(points)
    return PrincipalAxes(axes, variance.sqrt(), variance / total.clamp(min=1e-300))
