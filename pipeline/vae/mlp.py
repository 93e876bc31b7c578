"""The multilayer perceptron of the IWAE paper, and the linear VAE (probabilistic PCA)."""

import math

import torch
from torch import Tensor, nn

from pipeline.vae.networks import Network, NetworkShape
from pipeline.vae.posterior import num_moments


class Mlp(Network):
    """784-200-200-50 and back with tanh (Burda et al. 2015, one stochastic layer), by default."""

    def __init__(self, shape: NetworkShape, latent_channels: int = 50, width: int = 200) -> None:
        super().__init__()
        self.latent_shape = (latent_channels, 1, 1)
        self._image_shape = (shape.num_parameters, shape.image_size, shape.image_size)
        pixels = shape.channels * shape.image_size**2
        self.encoder = nn.Sequential(
            nn.Linear(pixels, width),
            nn.Tanh(),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Linear(width, num_moments(shape.posterior, latent_channels)),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_channels, width),
            nn.Tanh(),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Linear(width, math.prod(self._image_shape)),
        )
        for layer in (*self.encoder, *self.decoder):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def encode(self, images: Tensor) -> Tensor:
        """Two hidden layers, then moments."""
        # The paper's input is 0 or 1 (or grey between them).
        moments: Tensor = self.encoder(0.5 * (images.flatten(1) + 1))
        return moments[..., None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Two hidden layers, then parameters."""
        parameters: Tensor = self.decoder(latents.flatten(1))
        return parameters.view(-1, *self._image_shape)

    @torch.no_grad()
    def start_at(self, parameters: Tensor) -> None:
        """A bias for each pixel."""
        last = self.decoder[-1]
        assert isinstance(last, nn.Linear)
        last.bias.copy_(parameters.flatten())


class Linear(Network):
    """x = W z + m and q's mean a linear map of x, its covariance the same for all x.

    With a Gaussian likelihood this is probabilistic PCA (Tipping & Bishop 1999), whose every number
    is known in closed form; with a full posterior the bound is tight.
    """

    def __init__(self, shape: NetworkShape, latent_channels: int = 8) -> None:
        super().__init__()
        self.latent_shape = (latent_channels, 1, 1)
        self._image_shape = (shape.num_parameters, shape.image_size, shape.image_size)
        pixels = shape.channels * shape.image_size**2
        covariance = num_moments(shape.posterior, latent_channels) - latent_channels
        self.encoder = nn.Linear(pixels, latent_channels)
        self.covariance = nn.Parameter(torch.zeros(covariance))
        self.decoder = nn.Linear(latent_channels, math.prod(self._image_shape))
        nn.init.zeros_(self.encoder.bias)
        nn.init.zeros_(self.decoder.bias)

    def encode(self, images: Tensor) -> Tensor:
        """The mean, and the shared log-variances (or Cholesky factor)."""
        mean = self.encoder(images.flatten(1))
        shared = self.covariance.to(mean.dtype).expand(len(mean), -1)
        return torch.cat([mean, shared], 1)[..., None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """W z + m."""
        parameters: Tensor = self.decoder(latents.flatten(1))
        return parameters.view(-1, *self._image_shape)

    @torch.no_grad()
    def start_at(self, parameters: Tensor) -> None:
        """A bias for each pixel."""
        self.decoder.bias.copy_(parameters.flatten())
