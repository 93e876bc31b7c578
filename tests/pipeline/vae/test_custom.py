import pytest
import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.errors import ModelError
from pipeline.vae import build_vae, draw_noise
from pipeline.vae.networks import NetworkShape


class Patches(nn.Module):
    """A user's network: the image in patches of 4, no base class of ours."""

    def __init__(self, shape: NetworkShape, model: ModelConfig) -> None:
        super().__init__()
        self.latent_shape = (2, shape.image_size // 4, shape.image_size // 4)
        self.down = nn.Conv2d(shape.channels, 4, 4, stride=4)
        self.up = nn.ConvTranspose2d(2, shape.num_parameters, 4, stride=4)

    def encode(self, images: Tensor) -> Tensor:
        return self.down(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.up(latents)


class WrongShape(Patches):
    def encode(self, images: Tensor) -> Tensor:
        return self.down(images)[:, :3]


class NoDecoder(nn.Module):
    latent_shape = (1, 1, 1)

    def __init__(self, shape: NetworkShape, model: ModelConfig) -> None:
        super().__init__()

    def encode(self, images: Tensor) -> Tensor:
        return images


def test_a_users_network_trains_like_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = build_vae(config("Patches"), PreprocessConfig(image_size=8))
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    vae(images, draw_noise(vae, 0, 1, range(2))).elbo.sum().backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    assert vae.latent_shape == (2, 2, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [("WrongShape", "must give"), ("NoDecoder", "has no `decode`"), ("Absent", "importable")],
)
def test_a_network_that_does_not_fit_is_refused_with_its_reason(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_vae(config(name), PreprocessConfig(image_size=8))


def config(name: str) -> ModelConfig:
    return ModelConfig(kind="custom", custom=f"tests.pipeline.vae.test_custom:{name}")


def test_a_network_that_has_no_start_at_keeps_its_weights() -> None:
    vae = build_vae(config("Patches"), PreprocessConfig(image_size=8))
    before = [weight.clone() for weight in vae.parameters()]
    vae.start_at(torch.full((3, 8, 8), 0.3))
    assert all(map(torch.equal, before, vae.parameters()))
