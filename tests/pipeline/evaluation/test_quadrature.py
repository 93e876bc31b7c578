import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.errors import ModelError
from pipeline.evaluation.quadrature import Quadrature, integrate, windows
from pipeline.vae import VAE, Noise, build_vae, draw_noise, importance_estimate
from tests.support.digit_models import digits_vae
from tests.support.digit_models import images as small_digits
from tests.support.ppca import UNIT, data, directions, with_loadings

MNIST = Path(__file__).parents[4] / "shared/data/mnist/train-images-idx3-ubyte.gz"
IMAGES = 16


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    if not MNIST.exists():
        pytest.skip("needs ../shared/data/mnist")
    with gzip.open(MNIST) as file:
        pixels = np.frombuffer(file.read(16 + 4000 * 784), np.uint8, offset=16)
    return torch.from_numpy(pixels.copy()).view(-1, 1, 28, 28)


@pytest.fixture(scope="module")
def vae(digits: torch.Tensor) -> VAE:
    """784-64-64-2 and back, Bernoulli, 300 steps: a second or two."""
    torch.manual_seed(0)
    config = ModelConfig(kind="mlp", likelihood="bernoulli", latent_channels=2, width=64)
    model = build_vae(config, PreprocessConfig(image_size=28, channels=1))
    model.start_at(digits.double().mean(0).float() / 255)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 301):
        chosen = torch.randint(IMAGES, len(digits), (100,), generator=generator)
        loss = -model(digits[chosen], draw_noise(model, 0, step, range(100))).elbo.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def noise(vae: VAE) -> Noise:
    return draw_noise(vae, 1, 0, range(IMAGES))


@pytest.fixture(scope="module")
def found(vae: VAE, digits: torch.Tensor, noise: Noise) -> Quadrature:
    return integrate(vae, digits[:IMAGES], noise)


def elbo_by_hermite(vae: VAE, images: torch.Tensor, noise: Noise, nodes: int = 40) -> torch.Tensor:
    """The package's own forward pass, with Gauss-Hermite nodes as its noise: exact, and no grid."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = torch.cartesian_prod(*[torch.from_numpy(points)] * 2)
    mass = torch.cartesian_prod(*[torch.from_numpy(weights / weights.sum())] * 2).prod(1)
    elbos = []
    with torch.no_grad():
        for place in range(len(images)):
            one = slice(place, place + 1)
            asked = Noise(grid.view(1, -1, 2, 1, 1), noise.pixels[one].double())
            elbos.append((vae.double()(images[one], asked).log_weights * mass).sum())
    vae.float()
    return torch.stack(elbos)


def test_halving_the_spacing_changes_less_than_a_ten_thousandth_of_a_nat(found: Quadrature) -> None:
    assert found.error < 1e-4


def test_log_evidence_is_the_elbo_and_the_kl_between_q_and_the_true_posterior(
    vae: VAE, digits: torch.Tensor, noise: Noise, found: Quadrature
) -> None:
    elbo = elbo_by_hermite(vae, digits[:IMAGES], noise)
    torch.testing.assert_close(elbo + found.kl_q_posterior, found.log_evidence, rtol=0, atol=1e-4)
    assert (found.kl_q_posterior > 0).all()
    assert (found.kl_posterior_q > 0).all()


def test_importance_sampling_comes_to_the_same_evidence(
    vae: VAE, digits: torch.Tensor, found: Quadrature
) -> None:
    many = importance_estimate(vae, digits[:4], 20_000, seed=1).bound
    torch.testing.assert_close(many.double(), found.log_evidence[:4], rtol=0, atol=0.1)


def test_the_linear_models_integrals_are_its_closed_forms() -> None:
    loadings = directions()[:, :2] * UNIT * torch.tensor([2.0, 1.0], dtype=torch.float64)
    mixing = torch.tensor([[0.8, 0.6], [-0.6, 0.8]], dtype=torch.float64)
    linear = with_loadings("diagonal", loadings @ mixing, 0.5 * UNIT**2)
    images = (data(40)[:6] * 256).floor().clamp(0, 255).to(torch.uint8)
    # Noise of one half: the scored image is the one that the encoder sees.
    noise = Noise(torch.zeros(6, 2, 1, 1), torch.full((6, 1, 3, 3), 0.5))
    result = integrate(linear.vae, images, noise)
    positions = (images.double() + 0.5) / 256
    torch.testing.assert_close(result.log_evidence, linear.log_prob(positions), rtol=0, atol=1e-6)
    posterior, true = linear.vae.encode(images), linear.true_posterior(positions)
    spread = torch.diag_embed(posterior.log_variance.flatten(1).exp())
    q = torch.distributions.MultivariateNormal(posterior.mean.flatten(1), spread)
    torch.testing.assert_close(result.kl_q_posterior, kl_divergence(q, true), rtol=0, atol=1e-6)
    torch.testing.assert_close(result.kl_posterior_q, kl_divergence(true, q), rtol=0, atol=1e-6)


def test_one_dimension_is_integrated_too() -> None:
    vae = digits_vae(latents=1, steps=60)
    pixels = small_digits()[0][:2]
    found = integrate(vae, pixels, draw_noise(vae, 0, 0, range(2)))
    assert found.error < 1e-4
    many = importance_estimate(vae, pixels, 20_000, seed=0).bound
    torch.testing.assert_close(many.double(), found.log_evidence, rtol=0, atol=0.1)


def test_a_windows_densities_integrate_to_one(vae: VAE, digits: torch.Tensor) -> None:
    for window in windows(vae, digits[:2], draw_noise(vae, 1, 0, range(2))):
        area = float((window.axes[:, 1] - window.axes[:, 0]).prod())
        assert float(window.true.sum()) * area == pytest.approx(1, abs=2e-3)
        assert float(window.approximate.sum()) * area == pytest.approx(1, abs=2e-3)


def test_three_dimensions_are_refused() -> None:
    vae = digits_vae(latents=3, steps=1)
    with pytest.raises(ModelError, match="one or two latent dimensions"):
        integrate(vae, torch.zeros(1, 1, 8, 8, dtype=torch.uint8), draw_noise(vae, 0, 0, range(1)))
