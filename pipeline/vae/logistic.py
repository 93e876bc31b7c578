"""Discretised logistic likelihoods: probabilities of the 256 levels themselves, in nats.

Level k takes the logistic's mass between k/256 and (k+1)/256; the first and the last level take the
tails too, so that the 256 sum to one (Kingma et al. 2016; Salimans et al. 2017).
"""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.vae.likelihoods import (
    LEVELS,
    Likelihood,
    position,
    to_levels,
    uniform_like,
)

SMALLEST_SCALE = 1 / 2048
"""An eighth of a level: all mass on one level already, and exponents stay in fp32's range."""


class DiscretisedLogistic(Likelihood):
    """One logistic per pixel and channel: locations and scales from the decoder."""

    uses_pixel_noise: ClassVar[bool] = False

    @property
    def num_parameters(self) -> int:
        """Locations, then scales."""
        return 2 * self.channels

    def target(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """The level itself, as a float."""
        return images.to(uniforms.dtype)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        location, scale = parameters.chunk(2, dim=1)
        return position(location), logistic_scale(scale)

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        """Sum of the log-probabilities of the levels."""
        return level_log_probs(target, *self._split(parameters)).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The mean level of 255, over all 256 of them."""
        return mean_level(*self._split(parameters)) / (LEVELS - 1)

    def draw(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """The level on which a draw of the logistic falls, tails to the ends."""
        location, scale = self._split(parameters)
        return to_levels(location + scale * uniform_like(location, generator).logit())


COMPONENTS = 5
"""Of a pixel's mixture, each 1 + 2 C channels of the decoder's output: a pixel given its latent has
few modes, so more of them cost memory and say little more."""


class LogisticMixture(Likelihood):
    """Mixture whose component is chosen per pixel and shared by its channels.

    Parameters per pixel: `mixtures` logits, then locations and scales [mixtures x channels] each.
    """

    uses_pixel_noise: ClassVar[bool] = False

    def __init__(self, channels: int, mixtures: int) -> None:
        super().__init__(channels)
        self.mixtures = mixtures

    @property
    def num_parameters(self) -> int:
        """Weights, locations and scales."""
        return self.mixtures * (1 + 2 * self.channels)

    def target(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """The level itself, as a float."""
        return images.to(uniforms.dtype)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log-weights [B, M, H, W]; locations and scales [B, M, C, H, W]."""
        count = self.mixtures * self.channels
        logits, location, scale = torch.split(parameters, [self.mixtures, count, count], dim=1)
        shape = (len(parameters), self.mixtures, self.channels, *parameters.shape[2:])
        # Spread over the range, so that components start apart: equal ones have equal gradients.
        spread = torch.linspace(-1, 1, self.mixtures + 2, device=parameters.device)[1:-1]
        location = location.reshape(shape) + spread.to(location.dtype).view(-1, 1, 1, 1)
        return logits.log_softmax(1), position(location), logistic_scale(scale.reshape(shape))

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        """Sum over pixels of the log of the weighted probabilities of all channels' levels."""
        log_weights, location, scale = self._split(parameters)
        per_component = level_log_probs(target.unsqueeze(1), location, scale).sum(2)
        return (log_weights + per_component).logsumexp(1).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The weighted mean level of 255."""
        log_weights, location, scale = self._split(parameters)
        weights = log_weights.exp().unsqueeze(2)
        return (weights * mean_level(location, scale)).sum(1) / (LEVELS - 1)

    def draw(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """A component per pixel (Gumbel's trick), then a level for each channel."""
        log_weights, location, scale = self._split(parameters)
        gumbel = -(-uniform_like(log_weights, generator).log()).log()
        chosen = (log_weights + gumbel).argmax(1)[:, None, None]
        index = chosen.expand(-1, 1, self.channels, -1, -1)
        location, scale = location.gather(1, index)[:, 0], scale.gather(1, index)[:, 0]
        return to_levels(location + scale * uniform_like(location, generator).logit())

    def start_at(self, mean_image: Tensor) -> Tensor:
        """Every component moved by the mean image."""
        start = mean_image.new_zeros(self.num_parameters, *mean_image.shape[1:])
        moved = (2 * mean_image - 1).repeat(self.mixtures, 1, 1)
        start[self.mixtures : self.mixtures + len(moved)] = moved
        return start


def logistic_scale(raw: Tensor) -> Tensor:
    """A scale on [0, 1], at least 1/2048; 0 gives 0.1."""
    return SMALLEST_SCALE + (raw + math.log(0.1)).clamp(max=10).exp()


def level_log_probs(levels: Tensor, location: Tensor, scale: Tensor) -> Tensor:
    """ln P(level) for each pixel, exact in both tails.

    Upper and lower edges a > b: sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a)).
    """
    lower = (levels / LEVELS - location) / scale
    width = 1 / (LEVELS * scale)
    upper = lower + width
    below_all = levels == 0
    above_all = levels == LEVELS - 1
    log_upper = torch.where(above_all, 0.0, F.logsigmoid(upper))
    log_lower = torch.where(below_all, 0.0, F.logsigmoid(-lower))
    between = torch.where(below_all | above_all, 0.0, torch.log(-torch.expm1(-width)))
    return log_upper + log_lower + between


def mean_level(location: Tensor, scale: Tensor) -> Tensor:
    """E[level] = sum over k = 1..255 of P(level >= k)."""
    total = torch.zeros_like(location)
    for level in range(1, LEVELS):
        total += ((location - level / LEVELS) / scale).sigmoid()
    return total
