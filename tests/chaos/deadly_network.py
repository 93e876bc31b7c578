"""A network that kills its process when it sees an image that is all white: a poison shard."""

import os
import signal

import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.vae.networks import NetworkShape


class Deadly(nn.Module):
    """One linear map each way; latents [4, 1, 1]."""

    latent_shape = (4, 1, 1)

    def __init__(self, shape: NetworkShape, model: ModelConfig) -> None:
        super().__init__()
        self.shape = (shape.channels * shape.num_parameters, shape.image_size, shape.image_size)
        self.down = nn.Linear(shape.channels * shape.image_size**2, 8)
        self.up = nn.Linear(4, self.shape[0] * self.shape[1] * self.shape[2])

    def encode(self, images: Tensor) -> Tensor:
        if (images.flatten(1) == 1).all(dim=1).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return self.down(images.flatten(1)).view(-1, 8, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        return self.up(latents.flatten(1)).view(-1, *self.shape)

    def start_at(self, bias: Tensor) -> None:
        with torch.no_grad():
            self.up.bias.copy_(bias.flatten())
