"""An ex-post density of the latents: a Gaussian mixture where the prior misses where codes lie.

Ghosh et al. 2020 ("From variational to deterministic autoencoders"): ten Gaussians fitted to a
trained model's latents give better samples than the prior it was trained with. Nothing of the
model changes; the likelihoods of this density are not the model's.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_FULL_LIMIT = 128  # dimensions; above, 10 full covariances of D^2 numbers don't pay
_RIDGE = 1e-6
"""On each variance: a dimension that is always the same has none, and no inverse."""


@dataclass(frozen=True)
class Mixture:
    """Weights `[M]`, means `[M, D]` and the covariances' Cholesky factors, float64.

    factors: `[M, D, D]`, or `[M, D]` for diagonal covariances (deviations).
    """

    log_weights: Tensor
    means: Tensor
    factors: Tensor

    def log_prob(self, points: Tensor) -> Tensor:
        """log density in nats of points `[N, D]`: `[N]`."""
        return torch.logsumexp(self.log_joint(points), dim=1)

    def log_joint(self, points: Tensor) -> Tensor:
        """log weight + log N(point; component): `[N, M]`."""
        dimensions = points.shape[1]
        constant = -0.5 * dimensions * math.log(2 * math.pi)
        columns = []
        for mean, factor in zip(self.means, self.factors, strict=True):
            centred = (points.double() - mean).T
            if factor.dim() == 1:
                solved, diagonal = centred / factor[:, None], factor
            else:
                solved = torch.linalg.solve_triangular(factor, centred, upper=False)
                diagonal = factor.diagonal()
            columns.append(constant - 0.5 * solved.square().sum(dim=0) - diagonal.log().sum())
        return torch.stack(columns, dim=1) + self.log_weights

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws `[count, D]`, float64."""
        weights = self.log_weights.exp()
        chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
        shape = (count, self.means.shape[1])
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        points = self.means[chosen]
        for component, factor in enumerate(self.factors):
            here = chosen == component
            moved = noise[here] * factor if factor.dim() == 1 else noise[here] @ factor.T
            points[here] += moved
        return points


def choose_mixture(points: Tensor, seed: int = 0) -> Mixture:
    """The best of three shapes for points `[N, D]`: fitted to two thirds, chosen by every third.

    Ten Gaussians (fewer where less than 20 points fall on each) with full or diagonal covariances,
    or a single full one: with few points in many dimensions ten full covariances describe nothing
    but the points they were fitted to.
    """
    points = points.double().flatten(1)
    judges = torch.arange(len(points)) % 3 == 2
    full = points.shape[1] <= _FULL_LIMIT
    shapes = [(10, False), (10, True), (1, True)] if full else [(10, False), (1, False)]
    candidates = [
        fit_mixture(points[~judges], components, seed, full=covariances)
        for components, covariances in shapes
    ]
    return max(candidates, key=lambda mixture: float(mixture.log_prob(points[judges]).mean()))


def fit_mixture(
    points: Tensor,
    components: int = 10,
    seed: int = 0,
    steps: int = 100,
    tolerance: float = 1e-3,
    *,
    full: bool = True,
) -> Mixture:
    """Expectation maximisation on points `[N, D]` from k-means++ seeds, in float64.

    Of `components` there are at most as many as get 20 points each. Covariances are full or
    diagonal; ends when the mean log density rises by less than `tolerance`
    nats, after `steps` rounds at most.
    """
    points = points.double().flatten(1)
    generator = torch.Generator().manual_seed(seed)
    components = max(1, min(components, len(points) // 20))
    seeds = _spread_seeds(points, components, generator)
    distances = torch.cdist(points, seeds)
    shares = torch.nn.functional.one_hot(distances.argmin(dim=1), components).double()
    last = -math.inf
    while True:
        mixture = _maximise(points, shares, full=full)
        joint = mixture.log_joint(points)
        evidence = torch.logsumexp(joint, dim=1)
        shares = (joint - evidence[:, None]).exp()
        value = float(evidence.mean())
        steps -= 1
        if value - last < tolerance or steps == 0:
            return mixture
        last = value


def _spread_seeds(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur & Vassilvitskii 2007): seeds drawn by squared distance to the others."""
    first = torch.randint(len(points), (1,), generator=generator)
    chosen = points[first]
    nearest = (points - chosen).square().sum(dim=1)
    for _ in range(count - 1):
        index = torch.multinomial(nearest.clamp(min=1e-12), 1, generator=generator)
        chosen = torch.cat([chosen, points[index]])
        nearest = torch.minimum(nearest, (points - points[index]).square().sum(dim=1))
    return chosen


def _maximise(points: Tensor, shares: Tensor, *, full: bool) -> Mixture:
    totals = shares.sum(dim=0) + 1e-10
    means = shares.T @ points / totals[:, None]
    factors = []
    for component in range(len(totals)):
        centred = points - means[component]
        weighted = shares[:, component, None] * centred
        if full:
            covariance = weighted.T @ centred / totals[component]
            covariance.diagonal().add_(_RIDGE)
            factors.append(torch.linalg.cholesky(covariance))
        else:
            factors.append(((weighted * centred).sum(dim=0) / totals[component] + _RIDGE).sqrt())
    return Mixture((totals / totals.sum()).log(), means, torch.stack(factors))
