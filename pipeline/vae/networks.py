"""What a network is to the VAE: two methods, and how large what they give must be.

A user's own comes by its import path, and passes the checks that ours pass.
"""

import abc
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig
from pipeline.config.import_path import OWN_CODE, find_named, told
from pipeline.errors import ModelError
from pipeline.vae.posterior import num_moments


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


_EXAMPLE = "A whole example: docs/extend.md."


def custom_network(model: ModelConfig, shape: NetworkShape) -> Network:
    """The class at `model.custom`, built with `(shape, model)` and tried on two images.

    It needs `latent_shape`, `encode` and `decode` as `Network` says, and may be any `nn.Module`.
    """
    assert model.custom is not None
    made_by = _class(model.custom)
    try:
        network: Any = made_by(shape, model)
    except OWN_CODE as error:  # Somebody's own class raises what it likes.
        raise ModelError(
            f"--model.custom {model.custom}: can't be built: {told(error)} Its constructor is "
            f"`__init__(self, shape, model)`: a NetworkShape and the ModelConfig. {_EXAMPLE}"
        ) from error
    for name in ("latent_shape", "encode", "decode"):
        if not hasattr(network, name):
            raise ModelError(
                f"--model.custom {model.custom}: has no `{name}`. A network needs "
                "`self.latent_shape = (Z, h, w)`, `encode(images)` and `decode(latents)`. "
                f"{_EXAMPLE}"
            )
    try:
        _try(model.custom, network, shape)
    except ModelError:
        raise
    except OWN_CODE as error:  # So do its methods.
        raise ModelError(
            f"--model.custom {model.custom}: failed on two black images: {told(error)} encode gets "
            f"[B, {shape.channels}, {shape.image_size}, {shape.image_size}], decode "
            f"[B, *latent_shape]; latent_shape is (Z, h, w). {_EXAMPLE}"
        ) from error
    made: Network = network
    return made


def _class(path: str) -> Any:
    found = find_named(path, "--model.custom", ModelError)
    if not isinstance(found, type):
        raise ModelError(f"--model.custom {path}: is no class, but {found!r}.")
    # Before it is called: the path may come from somebody's bundle.
    if not issubclass(found, nn.Module):
        raise ModelError(f"--model.custom {path}: is no torch.nn.Module. Derive it from one.")
    return found


@torch.no_grad()
def _try(path: str, network: Network, shape: NetworkShape) -> None:
    size = shape.image_size
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise ModelError(f"--model.custom {path}: has no weights to train.")
    training = network.training
    network.eval()
    latent_shape = tuple(network.latent_shape)
    dimensions = math.prod(latent_shape)
    moments = network.encode(parameter.new_zeros(2, shape.channels, size, size))
    parameters = network.decode(parameter.new_zeros(2, *latent_shape))
    network.train(training)
    wanted: tuple[int, ...] = (2, 2 * latent_shape[0], *latent_shape[1:])
    if shape.posterior == "full":
        wanted = (2, num_moments("full", dimensions), 1, 1)
    _same(f"--model.custom {path}: `encode`", tuple(moments.shape), wanted)
    wanted = (2, shape.num_parameters, size, size)
    _same(f"--model.custom {path}: `decode`", tuple(parameters.shape), wanted)


def _same(where: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise ModelError(f"{where} of 2 images gives {found}, and must give {wanted}. {_EXAMPLE}")
