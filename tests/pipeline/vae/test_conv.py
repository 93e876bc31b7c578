import pytest
import torch

from pipeline.errors import ModelError
from pipeline.vae.conv import Conv
from pipeline.vae.networks import NetworkShape


@pytest.mark.parametrize("image_size", [2, 5, 8, 28, 33, 64])
def test_any_image_size_comes_back(image_size: int) -> None:
    network = Conv(NetworkShape(3, image_size, 6), latent_channels=5, width=4)
    assert network.encode(torch.zeros(2, 3, image_size, image_size)).shape == (2, 10, 1, 1)
    assert network.decode(torch.zeros(2, 5, 1, 1)).shape == (2, 6, image_size, image_size)


def test_a_grid_of_latents_keeps_its_size() -> None:
    network = Conv(NetworkShape(1, 32, 1), latent_channels=5, latent_size=8, width=4)
    assert network.encode(torch.zeros(2, 1, 32, 32)).shape == (2, 10, 8, 8)
    assert network.decode(torch.zeros(2, 5, 8, 8)).shape == (2, 1, 32, 32)


@pytest.mark.parametrize(("image_size", "latent_size"), [(32, 5), (8, 8), (1, 1)])
def test_a_grid_that_halving_does_not_reach_is_refused(image_size: int, latent_size: int) -> None:
    with pytest.raises(ModelError, match="halving"):
        Conv(NetworkShape(1, image_size, 1), latent_size=latent_size)
