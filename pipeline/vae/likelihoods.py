"""Likelihoods p(x|z): log-probabilities and log-densities in nats, with all their constants.

What is scored is the uint8 image. Discrete likelihoods give the probability of its levels.
Continuous ones give the density of the dequantised image y = level + u, u uniform on [0, 1), per
unit of one level (1/256 of the range): E_u log p(y) is a lower bound on the log-probability of the
levels (Theis et al. 2016), so that all are comparable and bits/dim is -elbo / (D ln 2). Bernoulli
alone scores another thing: the binarised image.

Locations come from the networks in the unit [-1, 1] = [black, white]; inside they become positions
on [0, 1], where level k covers [k/256, (k+1)/256]: -1 and 1 are the centres of levels 0 and 255.
"""

import abc
import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ModelError
from pipeline.vae.posterior import LOG_2PI

LEVELS = 256
LOG_LEVELS = math.log(LEVELS)
SMALLEST_SIGMA = 1 / LEVELS
"""One level: below it a density can grow without bound on images that repeat a level."""

SIGMA_GAIN = 10.0
"""Adam moves each weight by about the learning rate; this lets a deviation move by 1% per step at
1e-3, so that it finds its place in hundreds of steps instead of thousands."""


class Likelihood(nn.Module, abc.ABC):
    """p(x|z) of images with `channels`; its parameters per pixel come from a decoder."""

    uses_pixel_noise: ClassVar[bool] = True
    """Whether `target` depends on the uniform noise."""
    is_binary: ClassVar[bool] = False
    """Whether what is scored is the binarised image, and not the 256 levels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @property
    def num_parameters(self) -> int:
        """Channels that the decoder gives per pixel."""
        return self.channels

    @property
    def measure(self) -> str:
        """What log p(x|z) is a probability of: only ELBOs of one measure can be compared."""
        return "binarised image" if self.is_binary else "256 levels"

    @property
    def one_scale(self) -> Tensor | None:
        """The scale that all pixels share, a scalar, 1 is the whole range; None: there is none."""
        return None

    @abc.abstractmethod
    def target(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """What is scored, from uint8 images and uniform [0, 1) noise, both [B, C, H, W]."""

    @abc.abstractmethod
    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        """log p(target | parameters): [B] nats; parameters [B, num_parameters, H, W]."""

    @abc.abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """The mean image: [B, C, H, W] in [0, 1], level / 255."""

    @abc.abstractmethod
    def draw(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """One image drawn from p(x | parameters): uint8 [B, C, H, W]."""

    def draw_target(self, parameters: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A draw from p(x | parameters) as `log_prob` scores it, and as a uint8 image."""
        image = self.draw(parameters, generator)
        return self.target(image, torch.zeros_like(image, dtype=parameters.dtype)), image

    def start_at(self, mean_image: Tensor) -> Tensor:
        """The parameters whose mean is `mean_image` ([C, H, W] in [0, 1]), others at 0."""
        start = mean_image.new_zeros(self.num_parameters, *mean_image.shape[1:])
        start[: self.channels] = 2 * mean_image - 1
        return start


class Bernoulli(Likelihood):
    """Black or white pixels: log-probability of the image binarised by the noise, from logits.

    A pixel is white with probability level / 255 (Burda et al. 2015: drawn anew each time); images
    of levels 0 and 255 alone stay what they are.
    """

    is_binary: ClassVar[bool] = True

    def target(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """1 where uniform < level / 255, else 0."""
        return (uniforms * 255 < images).to(uniforms.dtype)

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        """Sum of b log p + (1 - b) log(1 - p); refuses grey values."""
        # On a GPU this would wait for the device, and `target` has binarised there as well.
        if target.is_cpu and not torch.compiler.is_compiling():
            _refuse_grey(target)
        return (target * parameters - F.softplus(parameters)).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The probability of white."""
        return parameters.sigmoid()

    def draw(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """0 or 255 in each pixel."""
        white = uniform_like(parameters, generator) < parameters.sigmoid()
        return white.to(torch.uint8) * 255

    def start_at(self, mean_image: Tensor) -> Tensor:
        """Logits of the mean, clipped to [0.001, 0.999] (the IWAE code's own start)."""
        return mean_image.clamp(0.001, 0.999).logit()


class Continuous(Likelihood):
    """A density of the dequantised image; `target` is its position on [0, 1]."""

    def target(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """(level + uniform) / 256."""
        return (images + uniforms) / LEVELS

    def mean(self, parameters: Tensor) -> Tensor:
        """The location, cut to what an image can show."""
        return image_from_position(position(parameters[:, : self.channels]))


class Invertible(Continuous):
    """A density whose cumulative distribution has an inverse in closed form: drawn by it."""

    def draw(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """The level on which a draw of the density falls; draws outside go to the nearest."""
        return self.draw_target(parameters, generator)[1]

    def draw_target(self, parameters: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A draw of the density itself, which no rounding to levels has moved, and its levels."""
        uniforms = uniform_like(parameters[:, : self.channels], generator)
        positions = self.quantile(parameters, uniforms)
        return positions, to_levels(positions)

    @abc.abstractmethod
    def quantile(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """The inverse cumulative distribution: position for uniforms on (0, 1)."""


class ContinuousBernoulli(Invertible):
    """Density C exp(logit * position) on [0, 1] (Loaiza-Ganem & Cunningham 2019)."""

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        """logit (t - 1/2) - ln(sinh(logit/2) / (logit/2)), minus ln 256, summed."""
        per_pixel = parameters * (target - 0.5) - log_sinh_ratio(0.5 * parameters)
        return (per_pixel - LOG_LEVELS).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """1/2 + (coth h - 1/h) / 2 with h = logit / 2."""
        half = 0.5 * parameters
        near_zero = half.abs() < 0.05
        safe = torch.where(near_zero, torch.ones_like(half), half)
        # Langevin's function; by its series below 0.05, where coth h and 1/h cancel.
        langevin = torch.where(near_zero, half / 3 - half**3 / 45, 1 / safe.tanh() - 1 / safe)
        return image_from_position(0.5 + 0.5 * langevin)

    def quantile(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """ln(1 + u (e^logit - 1)) / logit, mirrored for positive logits: nothing overflows."""
        magnitude = parameters.abs().clamp(min=1e-5)
        tail = torch.where(parameters > 0, 1 - uniforms, uniforms)
        from_heavy_end = -torch.log1p(tail * torch.expm1(-magnitude)) / magnitude
        return torch.where(parameters > 0, 1 - from_heavy_end, from_heavy_end)

    def start_at(self, mean_image: Tensor) -> Tensor:
        """The logit with this mean, by 60 bisections of [-60, 60]."""
        low, high = torch.full_like(mean_image, -60.0), torch.full_like(mean_image, 60.0)
        wanted = mean_image.clamp(0.02, 0.98)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self.mean(middle[None])[0] < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)


class OneScale(Continuous):
    """One scale for all pixels, learned or fixed; 1 is the whole range, at least 1/256."""

    def __init__(self, channels: int, sigma: float, learned: bool) -> None:
        super().__init__(channels)
        start = torch.tensor(_inverse_scale(sigma))
        if learned:
            self.scale = nn.Parameter(start)
        else:
            self.register_buffer("scale", start)

    scale: Tensor

    @property
    def sigma(self) -> Tensor:
        """The scale, a scalar, in [1/256, inf)."""
        return SMALLEST_SIGMA + (SIGMA_GAIN * self.scale).exp()

    @property
    def one_scale(self) -> Tensor | None:
        """`sigma`."""
        return self.sigma


class Gaussian(OneScale, Invertible):
    """`sigma` is the deviation."""

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        """-(t - m)^2 / (2 sigma^2) - ln sigma - ln(2 pi) / 2 - ln 256, summed."""
        squares = (target - position(parameters)).square().flatten(1).sum(1)
        sigma = self.sigma.to(target.dtype)
        constant = sigma.log() + 0.5 * LOG_2PI + LOG_LEVELS
        return -0.5 * squares / sigma.square() - target[0].numel() * constant

    def quantile(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """m + sigma times the standard normal's quantile."""
        standard: Tensor = torch.special.ndtri(uniforms)
        return position(parameters) + self.sigma * standard


class GaussianPerPixel(Invertible):
    """A deviation for each pixel and channel, from the decoder."""

    @property
    def num_parameters(self) -> int:
        """Locations, then scales."""
        return 2 * self.channels

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        location, scale = parameters.chunk(2, dim=1)
        # 0 starts at sigma = 0.25, as the learned global one does.
        return position(location), SMALLEST_SIGMA + (scale + math.log(0.25)).clamp(max=10).exp()

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        """As Gaussian, with each pixel's own sigma."""
        location, sigma = self._split(parameters)
        per_pixel = 0.5 * ((target - location) / sigma).square() + sigma.log()
        return -(per_pixel + 0.5 * LOG_2PI + LOG_LEVELS).flatten(1).sum(1)

    def quantile(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """m + sigma times the standard normal's quantile."""
        location, sigma = self._split(parameters)
        standard: Tensor = torch.special.ndtri(uniforms)
        return location + sigma * standard


class Laplace(OneScale, Invertible):
    """exp(-|t - m| / b) / (2 b); `sigma` is b."""

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        """-|t - m| / b - ln(2 b) - ln 256, summed."""
        distances = (target - position(parameters)).abs().flatten(1).sum(1)
        scale = self.sigma.to(target.dtype)
        constant = (2 * scale).log() + LOG_LEVELS
        return -distances / scale - target[0].numel() * constant

    def quantile(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """m - b sign(u - 1/2) ln(1 - 2 |u - 1/2|)."""
        centred = uniforms - 0.5
        return position(parameters) - self.sigma * centred.sign() * torch.log1p(-2 * centred.abs())


def position(location: Tensor) -> Tensor:
    """From the networks' [-1, 1] to positions on [0, 1]: the centres of levels 0 and 255."""
    return 0.5 + location * (0.5 * (LEVELS - 1) / LEVELS)


def image_from_position(positions: Tensor) -> Tensor:
    """Positions on [0, 1] to level / 255, cut to [0, 1]."""
    return ((positions * LEVELS - 0.5) / (LEVELS - 1)).clamp(0, 1)


def to_levels(positions: Tensor) -> Tensor:
    """The uint8 level whose interval holds each position."""
    return (positions * LEVELS).floor().clamp(0, LEVELS - 1).to(torch.uint8)


def log_sinh_ratio(half: Tensor) -> Tensor:
    """ln(sinh(h) / h), even in h, 0 at 0; by its series below 0.1 (error under 1e-12 there)."""
    magnitude = half.abs()
    near_zero = magnitude < 0.1
    safe = torch.where(near_zero, torch.ones_like(magnitude), magnitude)
    exact = safe + torch.log(-torch.expm1(-2 * safe)) - torch.log(2 * safe)
    squared = half.square()
    series = squared * (1 / 6 - squared * (1 / 180 - squared * (1 / 2835 - squared / 37800)))
    return torch.where(near_zero, series, exact)


def _refuse_grey(target: Tensor) -> None:
    if not bool(((target == 0) | (target == 1)).all()):
        raise ModelError(
            "Bernoulli gives probabilities to 0 and 1 only: on grey values its cross-entropy is no "
            "likelihood (its mass on [0, 1] is 0.43 at p = 0.2). Use continuous_bernoulli."
        )


def _inverse_scale(sigma: float) -> float:
    # A fixed sigma of exactly 1/256 is allowed: e^-30 above it.
    return math.log(max(sigma - SMALLEST_SIGMA, 1e-13)) / SIGMA_GAIN


def uniform_like(values: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform on (0, 1): the middle of 2^24 cells, never 0 or 1."""
    cells = torch.randint(
        2**24, values.shape, generator=generator, device=values.device, dtype=torch.int64
    )
    return (cells.to(torch.promote_types(values.dtype, torch.float32)) + 0.5) / 2**24
