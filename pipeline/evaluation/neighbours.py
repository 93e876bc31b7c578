"""What do near codes have in common? Labels and pixels of nearest neighbours among latent means."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 2**22  # elements of one block of distances
_MOST = 10
"""Neighbours of an image: more than one, so that a vote is no accident."""
_SHUFFLES = 199
"""Of the labels: two of them at least as high have p = 3/200, one has 0.01."""


@dataclass(frozen=True)
class NeighbourAgreement:
    """How often the majority of an image's `neighbours` nearest other images has its label.

    `chance` is the share of the most frequent label: what a blind guess reaches. `shuffled` and
    `needed` are of `shuffles` permutations of the labels among the images: the mean agreement, and
    what only one of them passes: above it, an agreement is chance in one case of a hundred.
    """

    images: int
    labels: int
    neighbours: int
    agreement: float
    chance: float
    shuffles: int
    shuffled: float
    needed: float


@dataclass(frozen=True)
class ImageSimilarity:
    """Root-mean-square pixel difference (images in [0, 1]), means over `images`.

    `nearest`: of an image to those of its `neighbours` nearest codes; `any`: to any other image.
    `error`: one standard error of their paired difference.
    """

    images: int
    neighbours: int
    nearest: float
    any: float
    error: float


def image_similarity(draws: Tensor, images: Tensor) -> ImageSimilarity | None:
    """Of uint8 images `[N, C, H, W]` and draws of their q `[N, D]`; None for fewer than four.

    Of 10 neighbours, of fewer than 100 images the root of their count: ten of twenty are anybody.
    Quadratic in N: a few hundred images are meant.
    """
    count = len(images)
    if count < 4:
        return None
    neighbours = min(_MOST, math.isqrt(count))
    codes, pixels = draws.double().flatten(1), images.double().flatten(1) / 255
    apart = torch.cdist(pixels, pixels) / math.sqrt(pixels.shape[1])
    distances = torch.cdist(codes, codes).fill_diagonal_(torch.inf)
    near = distances.topk(neighbours, dim=1, largest=False).indices
    nearest = apart.gather(1, near).mean(dim=1)
    others = apart.sum(dim=1) / (count - 1)
    error = float((others - nearest).std()) / math.sqrt(count)
    return ImageSimilarity(count, neighbours, float(nearest.mean()), float(others.mean()), error)


def label_agreement(means: Tensor, labels: Sequence[str]) -> NeighbourAgreement | None:
    """Leave-one-out k-nearest-neighbour accuracy of means `[N, D]`, Euclidean, equal votes.

    k as of `neighbours_of`; a tie goes to the label that sorts first. None where there are fewer
    than two labels, or no label has two images: then no neighbour could agree.
    """
    names = sorted(set(labels))
    neighbours = neighbours_of(labels)
    if len(names) < 2 or neighbours == 0:
        return None
    code = {name: index for index, name in enumerate(names)}
    codes = torch.tensor([code[label] for label in labels])
    near = _nearest(means.double().flatten(1), neighbours)
    generator = torch.Generator().manual_seed(0)
    shuffled = [
        _agreement(codes[torch.randperm(len(codes), generator=generator)], near)
        for _ in range(_SHUFFLES)
    ]
    return NeighbourAgreement(
        images=len(labels),
        labels=len(names),
        neighbours=neighbours,
        agreement=_agreement(codes, near),
        chance=int(torch.bincount(codes).max()) / len(codes),
        shuffles=_SHUFFLES,
        shuffled=math.fsum(shuffled) / _SHUFFLES,
        needed=sorted(shuffled)[-2],
    )


def neighbours_of(labels: Sequence[str]) -> int:
    """How many neighbours vote: 10, but at most the root of the images' count, and as many as an
    image of the smallest label has others of its own; labels of one image are not asked.

    0 where each label has one image.
    """
    several = [count for count in Counter(labels).values() if count > 1]
    return min(_MOST, math.isqrt(len(labels)), min(several) - 1) if several else 0


def _nearest(points: Tensor, neighbours: int) -> Tensor:
    """The indices `[N, k]` of each point's nearest others."""
    norms = points.square().sum(dim=1)
    count, found = len(points), []
    for part in torch.arange(count).split(max(1, _CHUNK // count)):
        # |a - b|^2 without |a|^2, which is the same for a whole row.
        distances = norms - 2 * points[part] @ points.T
        distances[torch.arange(len(part)), part] = torch.inf
        found.append(distances.topk(neighbours, dim=1, largest=False).indices.cpu())
    return torch.cat(found)


def _agreement(codes: Tensor, near: Tensor) -> float:
    """The share of labels `[N]` that the majority of the labels of neighbours `[N, k]` agrees with.

    By pairs of votes: with thousands of labels a table of votes would have millions of cells.
    """
    votes = codes[near]
    same = (votes[:, :, None] == votes[:, None, :]).sum(dim=2)
    # One number for votes and name: argmax takes the first of equals only by accident.
    best = (same * (int(codes.max()) + 1) - votes).argmax(dim=1, keepdim=True)
    return float((votes.gather(1, best)[:, 0] == codes).double().mean())
