import pytest
import torch

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.vae import build_vae
from pipeline.vae.posterior import num_moments

KINDS = {
    "linear": ModelConfig(kind="linear", latent_channels=3),
    "linear_full": ModelConfig(kind="linear", latent_channels=3, posterior="full"),
    "mlp": ModelConfig(kind="mlp", latent_channels=3, width=8),
    "mlp_full": ModelConfig(kind="mlp", latent_channels=3, width=8, posterior="full"),
    "conv": ModelConfig(kind="conv", latent_channels=3, width=8),
    "conv_grid": ModelConfig(kind="conv", latent_channels=3, latent_size=4, width=8),
    "autoencoder_kl": ModelConfig(kind="autoencoder_kl", factor=4, width=32),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_network_keeps_the_shapes_that_the_contract_names(name: str) -> None:
    model = KINDS[name]
    network = build_vae(model, PreprocessConfig(image_size=16, channels=1)).network
    channels, height, width = network.latent_shape
    with torch.no_grad():
        moments = network.encode(torch.zeros(2, 1, 16, 16))
        parameters = network.decode(torch.zeros(2, *network.latent_shape))
    dimensions = channels * height * width
    if model.posterior == "full":
        assert moments.shape == (2, num_moments("full", dimensions), 1, 1)
    else:
        assert moments.shape == (2, 2 * channels, height, width)
    assert parameters.shape == (2, 1, 16, 16)
