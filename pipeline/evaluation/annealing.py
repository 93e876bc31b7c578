"""Annealed importance sampling: log p(x) from below, and from above where a true z is known.

Neal 2001. Chains go from q(z|x) to p(x, z) by Hamiltonian moves that leave q^(1 - t) p(x, z)^t as
it is, for t from 0 to 1. The mean of their weights is p(x) in expectation, so its log is a
stochastic lower bound. A chain that starts at a z which drew x, a sample of p(z|x), and goes back
gives a stochastic upper bound (Grosse et al. 2015): log mean over it and K - 1 forward chains,
whose expectation exceeds log p(x) by a KL between the two ways of making K chains.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.progress import Progress
from pipeline.vae import VAE, Posterior
from pipeline.vae.noise import slot_generator
from pipeline.vae.posterior import DiagonalPosterior, FullPosterior

_PILOTS = 4
"""Chains that find each step's size beforehand: a step that looked at its own chain is no
transition that leaves a density as it is, and neither bound would hold."""
_WANTED = 0.75
"""Accepted share that step sizes are led to (Betancourt et al. 2014: 0.6 to 0.9 cost the same)."""
_PIXELS = 4_000_000
"""Decoded at once with their graph: a few hundred megabytes for the networks here."""
_STREAMS = -2_000_000
"""Of the noise: steps that neither training nor another measure draws from."""


@dataclass(frozen=True)
class Schedule:
    """K = `chains` per image, `temperatures` steps of t, each with `leapfrogs` gradients."""

    chains: int = 8
    temperatures: int = 32
    leapfrogs: int = 4

    @property
    def gradients(self) -> int:
        """That one image takes, its pilot chains' among them."""
        moves = self.temperatures - 1
        return self.leapfrogs * (self.chains * moves + _PILOTS * (moves + 3))

    @property
    def gradients_back(self) -> int:
        """That one image takes on top for its upper bound: a chain the other way."""
        return self.leapfrogs * (self.temperatures - 1)

    def places(self) -> list[float]:
        """t of each step, 0 first and 1 last, dense at both ends."""
        steps = [step / self.temperatures for step in range(self.temperatures + 1)]
        return [step * step * (3 - 2 * step) for step in steps]


@dataclass(frozen=True)
class Annealed:
    """Bounds in nats, float64 `[B]`; `upper` is None without a z that drew the image.

    `effective_samples`: (sum w)^2 / sum w^2 of the K chains, in [1, K].
    """

    lower: Tensor
    upper: Tensor | None
    effective_samples: Tensor


def anneal(
    vae: VAE,
    posterior: Posterior,
    target: Tensor,
    seed: int,
    schedule: Schedule,
    *,
    drawn_from: Tensor | None = None,
    progress: Progress | None = None,
) -> Annealed:
    """Bounds on log p(target), targets `[B, C, H, W]`, from chains that start at `posterior`.

    `drawn_from` `[B, Z, h, w]`: latents that drew the targets. Image i's noise is that of (seed, i)
    whatever else is in the batch. `progress` counts the gradients.
    """
    rows = max(1, _PIXELS // (target[0].numel() * schedule.chains))
    parts = []
    for start in range(0, len(target), rows):
        part = slice(start, start + rows)
        slots = range(start, min(start + rows, len(target)))
        known = None if drawn_from is None else drawn_from[part]
        path = _Path(
            vae, _sliced(posterior, part), target[part], schedule=schedule, seed=seed, slots=slots,
            progress=progress,
        )  # fmt: skip
        parts.append(path.run(known))
    uppers = [found.upper for found in parts if found.upper is not None]
    return Annealed(
        torch.cat([found.lower for found in parts]),
        torch.cat(uppers) if uppers else None,
        torch.cat([found.effective_samples for found in parts]),
    )


@dataclass(frozen=True)
class _Point:
    """K states of each image in q's own coordinates `[B, K, D]`, where q is N(0, I).

    `log_joint` `[B, K]`: log p(x, z) there, float64; `gradient`: its own.
    """

    white: Tensor
    log_joint: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class _Path:
    """The way from q to p(x, z) for B images."""

    vae: VAE
    posterior: Posterior
    target: Tensor
    schedule: Schedule
    seed: int
    slots: Sequence[int]
    progress: Progress | None

    def run(self, drawn_from: Tensor | None) -> Annealed:
        sizes = self._step_sizes()
        forward = self._forward(self._noise(0, self.schedule.chains), sizes)
        count = self.schedule.chains
        upper = None
        if drawn_from is not None:
            back = self._back(_whitened(self.posterior, drawn_from)[:, None], sizes)
            together = torch.cat([back, forward[:, : count - 1]], dim=1)
            upper = together.logsumexp(1) - math.log(count)
        shares = forward.softmax(1)
        return Annealed(forward.logsumexp(1) - math.log(count), upper, 1 / shares.square().sum(1))

    def _forward(self, white: Tensor, sizes: Sequence[Tensor]) -> Tensor:
        """log weights `[B, K]` of chains from q's draws."""
        places = self.schedule.places()
        point, total = self._at(white), torch.zeros_like(white[..., 0], dtype=torch.float64)
        for step in range(1, len(places)):
            total += (places[step] - places[step - 1]) * self._log_ratio(point)
            if step < len(places) - 1:
                point, _ = self._move(point, places[step], sizes[step], step)
        return total

    def _back(self, white: Tensor, sizes: Sequence[Tensor]) -> Tensor:
        """log weights `[B, 1]` of chains that start at draws of p(z|x)."""
        places = self.schedule.places()
        point, total = self._at(white), torch.zeros_like(white[..., 0], dtype=torch.float64)
        for step in range(len(places) - 1, 0, -1):
            total += (places[step] - places[step - 1]) * self._log_ratio(point)
            if step > 1:
                # Another stream than the chains' that go forward.
                point, _ = self._move(point, places[step - 1], sizes[step - 1], -step)
        return total

    def _step_sizes(self) -> list[Tensor]:
        """Of each move, `[B]`, led by pilot chains that count nowhere."""
        places = self.schedule.places()
        size = torch.full((len(self.target),), 0.5, dtype=self.target.dtype)
        size = size.to(self.target.device)
        point, sizes = self._at(self._noise(10_000, _PILOTS)), [size]
        for step in range(1, len(places) - 1):
            for attempt in range(4 if step == 1 else 1):
                point, accepted = self._move(
                    point, places[step], size, 10_000 * (attempt + 1) + step
                )
                size = (size * (1.5 * (accepted - _WANTED)).exp()).clamp(max=1.5)
            sizes.append(size)
        return sizes

    def _move(
        self, point: _Point, place: float, size: Tensor, stream: int
    ) -> tuple[_Point, Tensor]:
        """A Hamiltonian move at t = `place`: the new states, and the accepted share `[B]`."""
        chains = point.white.shape[1]
        momentum = self._noise(stream, chains)
        uniforms = self._uniforms(stream, chains)
        step = size[:, None, None]
        start = self._energy(point, place) + 0.5 * momentum.square().sum(2).double()
        moved, speed = point, momentum - 0.5 * step * self._slope(point, place)
        for number in range(self.schedule.leapfrogs):
            moved = self._at(moved.white + step * speed)
            last = number == self.schedule.leapfrogs - 1
            speed = speed - (0.5 if last else 1.0) * step * self._slope(moved, place)
        end = self._energy(moved, place) + 0.5 * speed.square().sum(2).double()
        if self.progress is not None:
            self.progress.advance(self.schedule.leapfrogs * momentum[..., 0].numel())
        # A state whose density is not a number is never moved to.
        taken = (uniforms.log() < start - end) & end.isfinite()
        return _Point(
            torch.where(taken[..., None], moved.white, point.white),
            torch.where(taken, moved.log_joint, point.log_joint),
            torch.where(taken[..., None], moved.gradient, point.gradient),
        ), taken.to(size.dtype).mean(dim=1)

    def _energy(self, point: _Point, place: float) -> Tensor:
        own = 0.5 * point.white.square().sum(2).double()
        return (1 - place) * own - place * point.log_joint

    def _slope(self, point: _Point, place: float) -> Tensor:
        return (1 - place) * point.white - place * point.gradient

    def _log_ratio(self, point: _Point) -> Tensor:
        """log p(x, z) - log q(z|x): `[B, K]`."""
        latents = self._latents(point.white)
        return point.log_joint - self.posterior.log_prob(latents).double()

    def _latents(self, white: Tensor) -> Tensor:
        return self.posterior.sample(white.reshape(*white.shape[:2], *self.vae.latent_shape))

    def _at(self, white: Tensor) -> _Point:
        """The states with their density and its gradient."""
        chains = white.shape[1]
        with torch.enable_grad():
            place = white.detach().requires_grad_()
            latents = self._latents(place)
            parameters = self.vae.decode_parameters(latents.flatten(0, 1)).double()
            # A sum of thousands of pixels in float32 is off by a thousandth of a nat.
            target = self.target.double().repeat_interleave(chains, 0)
            conditional = self.vae.likelihood.log_prob(parameters, target).view(-1, chains)
            joint = conditional + self.vae.prior.log_prob(latents)
            (gradient,) = torch.autograd.grad(joint.sum(), [place])
        return _Point(place.detach(), joint.detach().double(), gradient)

    def _noise(self, stream: int, chains: int) -> Tensor:
        size = (chains, self.vae.latent.dimensions)
        rows = [
            torch.from_numpy(slot_generator(self.seed, _STREAMS + stream, slot).normal(size=size))
            for slot in self.slots
        ]
        return torch.stack(rows).to(self.target)

    def _uniforms(self, stream: int, chains: int) -> Tensor:
        rows = [
            torch.from_numpy(slot_generator(self.seed, 2 * _STREAMS + stream, slot).random(chains))
            for slot in self.slots
        ]
        return torch.stack(rows).to(self.target.device)


def _whitened(posterior: Posterior, latents: Tensor) -> Tensor:
    """The noise `[B, D]` that `posterior.sample` makes into these latents `[B, Z, h, w]`."""
    centred = (latents - posterior.mean).flatten(1)
    if isinstance(posterior, FullPosterior):
        factor = posterior.cholesky
        solved: Tensor = torch.linalg.solve_triangular(factor, centred[..., None], upper=False)
        return solved[..., 0]
    deviation: Tensor = (0.5 * posterior.log_variance).exp().flatten(1)
    return centred / deviation


def _sliced(posterior: Posterior, part: slice) -> Posterior:
    assert isinstance(posterior, DiagonalPosterior | FullPosterior), "a third family"
    fields = {name: value[part] for name, value in vars(posterior).items()}
    return replace(posterior, **fields)
