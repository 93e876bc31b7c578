"""Do images of one label lie together? Agreement of nearest neighbours among latent means."""

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
