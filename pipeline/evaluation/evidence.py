"""How far is q from the true posterior? The best bound that was computed, and how it was had.

log p(x) = ELBO + KL(q(z|x) || p(z|x)): a lower bound on log p(x) bounds that KL, the posterior gap,
from below. On images drawn from the model itself log p(x) is bounded from above too, so that the
width between the bounds says what they are worth.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.evaluation.amortisation import (
    OPTIMISING_DRAWS,
    importance_bound,
    optimise_posterior,
)
from pipeline.evaluation.annealing import Schedule, anneal
from pipeline.evaluation.sums import evaluating, seen_images
from pipeline.progress import Progress
from pipeline.vae import VAE, draw_noise

Method = Literal["importance", "optimised", "annealed"]
METHODS: dict[Method, str] = {
    "importance": "importance sampling with the encoder's q",
    "optimised": "importance sampling with q optimised for each image",
    "annealed": "annealed importance sampling from q optimised for each image",
}
ENOUGH_EFFECTIVE = 10
"""Below so many effective draws a bound's error over images says nothing of how low it lies."""

_SCHEDULE = Schedule()
_STEPS = 200
"""Of optimising each image's q: what is left then is told as `remaining`."""
_DRAWN = -6
"""The noise of latents that images are drawn from: no other measure uses this step."""
_SECONDS = 60.0
"""That the better bounds of one kind may take, as far as `_FEWEST` images allow."""
_FEWEST = 4
"""However slow: fewer have no error worth the name."""


@dataclass(frozen=True)
class PosteriorGap:
    """KL(q(z|x) || p(z|x)) >= `nats`, the mean over the first `images`, by the `method` that gave
    the highest bound, chance apart; `error` is one standard error over these images.

    `elbo`: of these images, by the draws that the gap is measured to: ELBO + gap <= log p(x).
    `amortisation`: nats that q optimised for each image wins over the encoder's, and its error;
    `remaining`: what that q still lacks at least. They add up to `nats`; None where nothing was
    optimised. `bounds`: the gap that each method shows, all of them lower bounds.
    """

    images: int
    elbo: float
    nats: float
    error: float
    method: Method
    samples: int
    effective_samples: float
    bounds: dict[Method, float]
    amortisation: float | None = None
    amortisation_error: float | None = None
    remaining: float | None = None

    @property
    def how(self) -> str:
        """The method in words."""
        return METHODS[self.method]

    @property
    def evidence(self) -> float:
        """log p(x) >= this, in the mean over the gap's own images."""
        return self.elbo + self.nats


@dataclass(frozen=True)
class Bracket:
    """Mean bounds on log p(x) of `images` drawn from the model, in nats; `width` = upper - lower.

    `elbo`: the mean ELBO of the same images, so that the posterior gap is bracketed too.

    Errors are one standard error over images; that of `width` is of the paired differences.
    """

    images: int
    lower: float
    lower_error: float
    upper: float
    upper_error: float
    elbo: float
    width: float
    width_error: float
    chains: int
    temperatures: int


def affordable(vae: VAE, asked: int) -> int:
    """How many of the images asked for get the better bounds: as many as this machine decodes and
    differentiates some 2,500 times each in a minute by a short trial, 4 at least.

    What else the machine does later makes it longer: how many they are must not hang on that.
    """
    if asked <= _FEWEST:
        return asked
    gradients = _SCHEDULE.gradients + _STEPS * OPTIMISING_DRAWS
    return images_within(asked, gradients * _seconds_per_gradient(vae))


def images_within(asked: int, seconds_each: float) -> int:
    """Halved until they take a minute, so that a little more load changes nothing; 4 at least."""
    count = asked
    while count > _FEWEST and count * seconds_each > _SECONDS:
        count //= 2
    return max(count, min(asked, _FEWEST))


def _seconds_per_gradient(vae: VAE) -> float:
    """Of log p(x, z) at one z, the better of two tries at as many as one image's chains."""
    device = next(vae.parameters()).device
    images = torch.zeros(_SCHEDULE.chains, *vae.image_shape, dtype=torch.uint8, device=device)
    target = vae.likelihood.target(images, torch.zeros(images.shape, device=device)).double()
    latents = torch.zeros(_SCHEDULE.chains, *vae.latent_shape, dtype=vae.dtype, device=device)
    tries = []
    with evaluating(vae), torch.enable_grad():
        for _ in range(2):
            started = time.perf_counter()
            place = latents.clone().requires_grad_()
            joint = vae.likelihood.log_prob(vae.decode_parameters(place).double(), target)
            torch.autograd.grad(joint.sum(), [place])
            tries.append(time.perf_counter() - started)
    return min(tries) / len(latents)


@dataclass(frozen=True)
class WeightRows:
    """What K = `samples` importance weights of each image showed: `[N]` each."""

    elbos: npt.NDArray[np.float64]
    gaps: npt.NDArray[np.float64]
    effective: npt.NDArray[np.float64]
    samples: int

    def first(self, count: int) -> "WeightRows":
        """Those of the first images."""
        elbos, gaps, effective = self.elbos[:count], self.gaps[:count], self.effective[:count]
        return WeightRows(elbos, gaps, effective, self.samples)


def importance_gap(rows: WeightRows) -> PosteriorGap:
    """What the importance weights of an evaluation show by themselves."""
    kept = torch.from_numpy(rows.gaps[np.isfinite(rows.gaps)])
    return PosteriorGap(
        images=len(kept),
        elbo=float(rows.elbos[np.isfinite(rows.gaps)].mean()),
        nats=float(kept.mean()),
        error=_standard_error(kept),
        method="importance",
        samples=rows.samples,
        effective_samples=float(rows.effective[np.isfinite(rows.gaps)].mean()),
        bounds={"importance": float(kept.mean())},
    )


def bound_gap(
    vae: VAE,
    images: Tensor,
    slots: Sequence[int],
    weights: WeightRows,
    seed: int,
    without: str = "",
) -> PosteriorGap:
    """The gap on uint8 images `[B, C, H, W]`, which hold these positions of the hold-out.

    `weights`: what the importance weights of the same images showed. `without`: what stands beside
    the progress, of how one does without it.
    """
    noise = draw_noise(vae, seed, 0, slots, images.device)
    samples = weights.samples
    with evaluating(vae), _told(f"bounds of {len(images)} images", len(images)) as progress:
        progress.advance(0, note=without)
        with torch.no_grad():
            target = vae.likelihood.target(images, noise.pixels)
            start = vae.encode(seen_images(vae, images, noise))
        found = optimise_posterior(vae, start, target, seed, _STEPS, progress=progress)
        weighed = importance_bound(vae, found.posterior, target, seed, samples)
        annealed = anneal(vae, found.posterior, target, seed, _SCHEDULE, progress=progress)
    gaps: dict[Method, Tensor] = {
        "annealed": annealed.lower.cpu() - found.encoder_elbo,
        "optimised": weighed.nats - found.encoder_elbo,
        "importance": torch.from_numpy(weights.gaps),
    }
    amortisation = found.elbo - found.encoder_elbo
    method = _best(gaps)
    bounds = {name: float(values.mean()) for name, values in gaps.items()}
    nats = bounds[method]
    effective: dict[Method, float] = {
        "annealed": float(annealed.effective_samples.mean()),
        "optimised": float(weighed.effective_samples.mean()),
        "importance": importance_gap(weights).effective_samples,
    }
    return PosteriorGap(
        images=len(images),
        elbo=float(weights.elbos.mean() if method == "importance" else found.encoder_elbo.mean()),
        nats=nats,
        error=_standard_error(gaps[method]),
        method=method,
        samples=_SCHEDULE.chains if method == "annealed" else samples,
        effective_samples=effective[method],
        bounds=bounds,
        amortisation=float(amortisation.mean()),
        amortisation_error=_standard_error(amortisation),
        remaining=nats - float(amortisation.mean()),
    )


def bracket_evidence(vae: VAE, count: int, seed: int, without: str = "") -> Bracket:
    """Both bounds on log p(x) for `count` images that are drawn from the model.

    `without`: as of `bound_gap`.
    """
    latents = draw_noise(vae, seed, _DRAWN, range(count)).posterior.to(vae.dtype)
    generator = torch.Generator().manual_seed(seed)
    back = _SCHEDULE.gradients_back
    with evaluating(vae), _told(f"bounds of {count} drawn images", count, back) as progress:
        progress.advance(0, note=without)
        with torch.no_grad():
            parameters = vae.decode_parameters(latents)
            target, images = vae.likelihood.draw_target(parameters, generator)
            start = vae.encode(images)
        found = optimise_posterior(vae, start, target, seed, _STEPS, progress=progress)
        bounds = anneal(
            vae, found.posterior, target, seed, _SCHEDULE, drawn_from=latents, progress=progress
        )
    assert bounds.upper is not None, "the images' latents were given"
    width = bounds.upper - bounds.lower
    return Bracket(
        images=count,
        lower=float(bounds.lower.mean()),
        lower_error=_standard_error(bounds.lower),
        upper=float(bounds.upper.mean()),
        upper_error=_standard_error(bounds.upper),
        elbo=float(found.encoder_elbo.mean()),
        width=float(width.mean()),
        width_error=_standard_error(width),
        chains=_SCHEDULE.chains,
        temperatures=_SCHEDULE.temperatures,
    )


def _told(label: str, images: int, back: int = 0) -> Progress:
    """Of the gradients that the better bounds of so many images take."""
    each = _SCHEDULE.gradients + back + _STEPS * OPTIMISING_DRAWS
    return Progress(label, images * each, "steps")


def _best(gaps: dict[Method, Tensor]) -> Method:
    """The method of the largest mean gap, the first unless another is clearly above it.

    Whichever came out highest by its noise would be no lower bound any more.
    """
    best, *others = gaps
    for name in others:
        ahead = gaps[name] - gaps[best]
        if float(ahead.mean()) > 2 * _standard_error(ahead):
            best = name
    return best


def _standard_error(values: Tensor) -> float:
    return float(values.std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
