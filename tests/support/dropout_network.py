"""A network of somebody's own that draws numbers of itself."""

from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.vae.networks import NetworkShape


class Dropping(nn.Module):
    """One convolution each way, with dropout before it."""

    def __init__(self, shape: NetworkShape, model: ModelConfig) -> None:
        super().__init__()
        latents, side = model.latent_channels or 2, shape.image_size // 4
        self.latent_shape = (latents, side, side)
        self.drop = nn.Dropout(0.5)
        self.down = nn.Conv2d(shape.channels, 2 * latents, kernel_size=4, stride=4)
        self.up = nn.ConvTranspose2d(latents, shape.num_parameters, kernel_size=4, stride=4)

    def encode(self, images: Tensor) -> Tensor:
        """[B, C, S, S] to moments [B, 2Z, h, w]."""
        moments: Tensor = self.down(self.drop(images))
        return moments

    def decode(self, latents: Tensor) -> Tensor:
        """[B, Z, h, w] to parameters [B, P, S, S]."""
        parameters: Tensor = self.up(self.drop(latents))
        return parameters
