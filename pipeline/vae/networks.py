"""What a network is to the VAE: two methods, and how large what they give must be."""

import abc
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkShape:
    """What a network is built for: its images, and what likelihood and posterior ask of it."""

    channels: int
    image_size: int
    num_parameters: int
    """Channels per pixel that `decode` gives: the likelihood's parameters."""
    posterior: Literal["diagonal", "full"] = "diagonal"


class Network(nn.Module, abc.ABC):
    """Encoder and decoder. Both may run under autocast; the mathematics happens outside."""

    latent_shape: tuple[int, int, int]
    """(Z, h, w)."""

    @abc.abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Moments from images [B, C, H, W] in [-1, 1].

        Diagonal: [B, 2Z, h, w], means and then log-variances. Full: [B, D(D+3)/2, 1, 1].
        """

    @abc.abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """The likelihood's parameters [B, num_parameters, H, W] from latents [B, Z, h, w].

        Locations are in [-1, 1]; Bernoulli's are logits.
        """

    @abc.abstractmethod
    def start_at(self, parameters: Tensor) -> None:
        """Moves the output's bias to these parameters [num_parameters, H, W]: a mean image, say."""
