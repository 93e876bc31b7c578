import math

import pytest
import torch
from torch import Tensor
from torch.distributions import ContinuousBernoulli, Laplace, Normal

from pipeline.errors import ModelError
from pipeline.vae import likelihoods as of

LN_256 = math.log(256)


def grid(count: int = 20_001, low: float = -40.0, high: float = 41.0) -> Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64)


def densities() -> dict[str, tuple[of.Continuous, Tensor, tuple[float, float]]]:
    """Each with parameters of one grey pixel and the interval that holds its mass."""
    value = torch.tensor([[[[0.4]]]], dtype=torch.float64)
    wide = (-8.0, 9.0)
    return {
        "gaussian": (of.Gaussian(1, 0.25, learned=True).double(), value, wide),
        "gaussian_narrowest": (of.Gaussian(1, 1 / 256, learned=False).double(), value, (0.6, 0.8)),
        "gaussian_per_pixel": (
            of.GaussianPerPixel(1),
            torch.tensor([0.4, -1.0], dtype=torch.float64).view(1, 2, 1, 1),
            wide,
        ),
        "laplace": (of.Laplace(1, 0.1, learned=True).double(), value, wide),
        "continuous_bernoulli": (of.ContinuousBernoulli(1), value * 10, (0.0, 1.0)),
        "continuous_bernoulli_flat": (of.ContinuousBernoulli(1), value * 0, (0.0, 1.0)),
        "continuous_bernoulli_steep": (of.ContinuousBernoulli(1), value * -200, (0.0, 1.0)),
    }


@pytest.mark.parametrize("name", densities())
def test_density_integrates_to_one_over_level_units(name: str) -> None:
    likelihood, parameters, (low, high) = densities()[name]
    points = grid(400_001, low, high)
    with torch.no_grad():
        log_density = likelihood.log_prob(
            parameters.expand(len(points), -1, 1, 1), points.view(-1, 1, 1, 1)
        )
    # A unit of the density is one level: 256 of them make the range.
    assert float(torch.trapezoid(log_density.exp(), points * 256)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", densities())
def test_draws_have_the_mean_that_decode_shows(name: str) -> None:
    likelihood, parameters, _ = densities()[name]
    if name in ("gaussian", "laplace", "gaussian_per_pixel"):
        parameters = parameters * torch.tensor([0.1] + [1.0] * (parameters.shape[1] - 1)).view(
            1, -1, 1, 1
        )
    with torch.no_grad():
        drawn = likelihood.draw(parameters.expand(100_000, -1, 1, 1), torch.manual_seed(0))
        shown = float(likelihood.mean(parameters))
    # Cut at black and white: a sliver of the widest densities lies outside.
    assert float(drawn.double().mean()) / 255 == pytest.approx(shown, abs=4e-3)


def test_gaussian_agrees_with_torch_and_its_constant() -> None:
    likelihood = of.Gaussian(3, 0.25, learned=True).double()
    target = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    location = torch.rand(2, 3, 4, 4, dtype=torch.float64) * 2 - 1
    oracle = Normal(of.position(location), 0.25).log_prob(target).flatten(1).sum(1) - 48 * LN_256
    torch.testing.assert_close(likelihood.log_prob(location, target), oracle, rtol=1e-7, atol=0)


def test_laplace_has_log_two_in_its_constant() -> None:
    likelihood = of.Laplace(1, 0.25, learned=True).double()
    target = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    location = torch.zeros_like(target)
    oracle = Laplace(0.5, 0.25).log_prob(target).flatten(1).sum(1) - 16 * LN_256
    # A constant of 2 for log 2 would be 1.307 nats per pixel off.
    torch.testing.assert_close(likelihood.log_prob(location, target), oracle, rtol=1e-7, atol=0)


def test_continuous_bernoulli_agrees_with_torch() -> None:
    logits = torch.linspace(-15, 15, 61, dtype=torch.float64).view(-1, 1, 1, 1)
    target = torch.rand(61, 1, 1, 1, dtype=torch.float64, generator=torch.manual_seed(0))
    oracle = ContinuousBernoulli(logits=logits, lims=(0.4999, 0.5001))
    found = of.ContinuousBernoulli(1).log_prob(logits, target) + LN_256
    torch.testing.assert_close(found, oracle.log_prob(target).flatten(), rtol=0, atol=1e-7)
    shown = of.ContinuousBernoulli(1).mean(logits)
    expected = (oracle.mean * 256 - 0.5) / 255
    torch.testing.assert_close(shown, expected.clamp(0, 1), rtol=0, atol=1e-6)


def test_bernoulli_gives_the_two_images_of_a_pixel_a_total_of_one() -> None:
    parameters = torch.full((2, 1, 1, 1), 1.7, dtype=torch.float64)
    both = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    probabilities = of.Bernoulli(1).log_prob(parameters, both).exp()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    assert float(probabilities[1]) == pytest.approx(1 / (1 + math.exp(-1.7)), abs=1e-12)


def test_bernoulli_refuses_grey_values_and_names_the_likelihood_to_use() -> None:
    with pytest.raises(ModelError, match="continuous_bernoulli"):
        of.Bernoulli(1).log_prob(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5))


def test_binarised_pixels_are_white_as_often_as_their_level_says() -> None:
    images = torch.tensor([0, 64, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(50_000, -1, 1, 1)
    uniforms = torch.rand(50_000, 3, 1, 1, generator=torch.manual_seed(0))
    share = of.Bernoulli(3).target(images, uniforms).mean((0, 2, 3))
    assert share.tolist() == pytest.approx([0, 64 / 255, 1], abs=6e-3)


def test_uniform_density_costs_exactly_eight_bits_per_dim() -> None:
    found = of.ContinuousBernoulli(3).log_prob(torch.zeros(1, 3, 5, 5), torch.rand(1, 3, 5, 5))
    assert float(-found) / (75 * math.log(2)) == pytest.approx(8, abs=1e-5)


def test_no_deviation_is_below_one_level() -> None:
    tiny = of.Gaussian(1, 1 / 256, learned=True)
    with torch.no_grad():
        tiny.scale.fill_(-50)
    assert float(tiny.sigma.detach()) >= 1 / 256


def test_log_sinh_ratio_is_smooth_across_its_series() -> None:
    points = torch.tensor([1e-6, 0.0999999, 0.1000001, 3.0, 90.0], dtype=torch.float64)
    expected = [math.log(math.sinh(p) / p) for p in points.tolist()]
    assert of.log_sinh_ratio(points).tolist() == pytest.approx(expected, abs=1e-11)
    point = torch.zeros(1, requires_grad=True)
    (gradient,) = torch.autograd.grad(of.log_sinh_ratio(point).sum(), point)
    assert float(gradient) == 0


@pytest.mark.parametrize("name", densities())
def test_start_at_gives_the_mean_image_back(name: str) -> None:
    likelihood, _, _ = densities()[name]
    wanted = torch.full((1, 2, 2), 0.3, dtype=torch.float64)
    shown = likelihood.mean(likelihood.start_at(wanted)[None])
    torch.testing.assert_close(shown[0], wanted, rtol=0, atol=2e-3)


def test_a_likelihood_says_what_it_measures_and_whether_all_pixels_share_a_scale() -> None:
    assert of.Bernoulli(1).measure == "binarised image"
    assert {likelihood.measure for likelihood, _, _ in densities().values()} == {"256 levels"}
    scales = {name: likelihood.one_scale for name, (likelihood, _, _) in densities().items()}
    shared = {name: scale.item() for name, scale in scales.items() if scale is not None}
    expected = {"gaussian": 0.25, "gaussian_narrowest": 1 / 256, "laplace": 0.1}
    assert shared == pytest.approx(expected)
