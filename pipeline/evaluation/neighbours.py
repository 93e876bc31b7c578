"""What do near codes have in common? Labels and pixels of nearest neighbours among latent means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 2**22  # elements of one block of distances


@dataclass(frozen=True)
class NeighbourAgreement:
    """How often the majority of an image's `neighbours` nearest other images has its label.

    `chance` is the share of the most frequent label: what a blind guess reaches.
    """

    images: int
    labels: int
    neighbours: int
    agreement: float
    chance: float


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


def image_similarity(draws: Tensor, images: Tensor, neighbours: int = 10) -> ImageSimilarity | None:
    """Of uint8 images `[N, C, H, W]` and draws of their q `[N, D]`; None for too few of them.

    Quadratic in N: a few hundred images are meant.
    """
    count = len(images)
    if count < 2 * neighbours:
        return None
    codes, pixels = draws.double().flatten(1), images.double().flatten(1) / 255
    apart = torch.cdist(pixels, pixels) / math.sqrt(pixels.shape[1])
    distances = torch.cdist(codes, codes).fill_diagonal_(torch.inf)
    near = distances.topk(neighbours, dim=1, largest=False).indices
    nearest = apart.gather(1, near).mean(dim=1)
    others = apart.sum(dim=1) / (count - 1)
    error = float((others - nearest).std()) / math.sqrt(count)
    return ImageSimilarity(count, neighbours, float(nearest.mean()), float(others.mean()), error)


def label_agreement(
    means: Tensor, labels: Sequence[str], neighbours: int = 10
) -> NeighbourAgreement | None:
    """Leave-one-out k-nearest-neighbour accuracy of means `[N, D]`, Euclidean, equal votes.

    A tie goes to the label that sorts first. None where there are fewer than two labels or images.
    """
    names = sorted(set(labels))
    count = len(labels)
    if len(names) < 2 or count <= neighbours:
        return None
    codes = torch.tensor([names.index(label) for label in labels])
    points = means.double().flatten(1)
    norms = points.square().sum(dim=1)
    hits = 0
    rows = max(1, _CHUNK // count)
    for start in range(0, count, rows):
        part = torch.arange(start, min(start + rows, count))
        # |a - b|^2 without |a|^2, which is the same for a whole row.
        distances = norms - 2 * points[part] @ points.T
        distances[torch.arange(len(part)), part] = torch.inf
        nearest = distances.topk(neighbours, dim=1, largest=False).indices.cpu()
        votes = torch.zeros(len(part), len(names), dtype=torch.int64)
        votes.scatter_add_(1, codes[nearest], torch.ones_like(nearest))
        # argmax takes the first of equal votes only by accident of its implementation.
        winners = (votes * len(names) - torch.arange(len(names))).argmax(dim=1)
        hits += int((winners == codes[part]).sum())
    chance = int(torch.bincount(codes).max()) / count
    return NeighbourAgreement(count, len(names), neighbours, hits / count, chance)
