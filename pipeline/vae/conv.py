"""A small convolutional VAE: each layer halves the image, down to about 4 pixels, and back."""

import itertools

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.vae.networks import Network, NetworkShape

SMALLEST_GRID = 4
"""Halving stops here; the rest is two dense layers each way."""

WIDEST = 8
"""Channels double with each halving, up to this many times the first level's."""


DENSE = 256
"""Units of the layer between grid and vector: without it 8-pixel digits cost 0.2 bits/dim more."""


class Conv(Network):
    """Latents are one vector for the whole image (`latent_size` 1) or a small grid.

    No normalisation layers: on CPU they cost as much as the convolutions, and with SiLU and
    variance-preserving starts the network trains without them.
    """

    def __init__(
        self,
        shape: NetworkShape,
        latent_channels: int = 32,
        latent_size: int = 1,
        width: int = 32,
    ) -> None:
        super().__init__()
        self.latent_shape = (latent_channels, latent_size, latent_size)
        sizes = _grid_sizes(shape.image_size, latent_size)
        widths = [width * min(2**level, WIDEST) for level in range(len(sizes) - 1)]
        self._grid = (widths[-1], sizes[-1], sizes[-1])
        features = widths[-1] * sizes[-1] ** 2
        # The first and the last layer change the size too: at full size, layers of few channels
        # would cost most of the time.
        down: list[nn.Module] = []
        for before, after in itertools.pairwise([shape.channels, *widths]):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.SiLU()]
        up: list[nn.Module] = []
        ups = [*widths[::-1], shape.num_parameters]
        for level, (before, after) in enumerate(itertools.pairwise(ups), 1):
            odd = sizes[-1 - level] % 2
            up += [nn.SiLU(), nn.ConvTranspose2d(before, after, 4, 2, 1, output_padding=odd)]
        self.down, self.up = nn.Sequential(*down), nn.Sequential(*up)
        self.to_moments: nn.Sequential
        self.from_latents: nn.Module
        if latent_size == 1:
            self.to_moments = nn.Sequential(
                nn.Linear(features, DENSE), nn.SiLU(), nn.Linear(DENSE, 2 * latent_channels)
            )
            self.from_latents = nn.Sequential(
                nn.Linear(latent_channels, DENSE), nn.SiLU(), nn.Linear(DENSE, features)
            )
        else:
            self.to_moments = nn.Sequential(
                nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)
            )
            self.from_latents = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self._initialise()

    def encode(self, images: Tensor) -> Tensor:
        """Moments [B, 2Z, h, w]."""
        features = self.down(images)
        if self.latent_shape[1] == 1:
            moments: Tensor = self.to_moments(features.flatten(1))
            return moments[..., None, None]
        return self.to_moments(features)  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        """Parameters [B, num_parameters, H, W]."""
        if self.latent_shape[1] == 1:
            features = self.from_latents(latents.flatten(1)).view(-1, *self._grid)
        else:
            features = self.from_latents(latents)
        return self.up(features)  # type: ignore[no-any-return]

    @torch.no_grad()
    def start_at(self, parameters: Tensor) -> None:
        """A bias for each channel: the mean over its pixels."""
        last = self.up[-1]
        assert isinstance(last, nn.ConvTranspose2d)
        assert last.bias is not None
        last.bias.copy_(parameters.mean((1, 2)))

    def _initialise(self) -> None:
        if self.to_moments[-1].weight.is_meta:
            # No numbers to begin with: they are counted, or read from a file. `normal_` would
            # import torch's compiler for that, 3 s of every job's start.
            return
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.xavier_normal_(layer.weight, gain=1.4)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        # The first ELBO is then that of a grey image and a posterior near the prior.
        for last in (self.up[-1], self.to_moments[-1]):
            assert isinstance(last, nn.ConvTranspose2d | nn.Conv2d | nn.Linear)
            nn.init.normal_(last.weight, std=0.01)


def _grid_sizes(image_size: int, latent_size: int) -> list[int]:
    """From the image's size by halving (rounded down) to the latent's, or to about 4."""
    sizes = [image_size]
    stop = latent_size if latent_size > 1 else SMALLEST_GRID
    while sizes[-1] > stop or (len(sizes) == 1 and image_size > 1):
        sizes.append(sizes[-1] // 2)
    if len(sizes) == 1 or (latent_size > 1 and sizes[-1] != latent_size):
        raise ModelError(
            f"latent_size {latent_size} can't be reached by halving image_size {image_size} at "
            f"least once ({' > '.join(map(str, sizes))}). Choose one of these below the first, or "
            "1 for a single vector."
        )
    return sizes
