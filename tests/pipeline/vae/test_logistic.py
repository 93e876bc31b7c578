import pytest
import torch
from torch import Tensor

from pipeline.vae.logistic import DiscretisedLogistic, LogisticMixture


def all_levels() -> Tensor:
    return torch.arange(256, dtype=torch.float64).view(-1, 1, 1, 1)


@pytest.mark.parametrize(("location", "scale"), [(0.3, 0.0), (-1.4, -9.0), (0.0, 3.0), (1.0, -4.0)])
def test_probabilities_of_the_256_levels_sum_to_one(location: float, scale: float) -> None:
    parameters = torch.tensor([location, scale], dtype=torch.float64).view(1, 2, 1, 1)
    log_probs = DiscretisedLogistic(1).log_prob(parameters.expand(256, -1, 1, 1), all_levels())
    assert float(log_probs.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert bool(torch.isfinite(log_probs).all())
    mean = DiscretisedLogistic(1).mean(parameters)
    expected = (log_probs.exp() * torch.arange(256)).sum() / 255
    assert float(mean) == pytest.approx(float(expected), abs=1e-10)


def test_mixture_over_two_channels_sums_to_one_and_ties_them() -> None:
    mixture = LogisticMixture(2, 3)
    parameters = torch.randn(
        1, mixture.num_parameters, 1, 1, dtype=torch.float64, generator=torch.manual_seed(0)
    )
    first, second = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    levels = torch.stack([first.flatten(), second.flatten()], 1).double()[..., None, None]
    joint = mixture.log_prob(parameters.expand(len(levels), -1, 1, 1), levels).exp().view(256, 256)
    assert float(joint.sum()) == pytest.approx(1, abs=1e-10)
    independent = joint.sum(1)[:, None] * joint.sum(0)
    assert float((joint - independent).abs().sum()) > 1e-3
    means = mixture.mean(parameters).flatten() * 255
    assert float(means[0]) == pytest.approx(float(joint.sum(1) @ torch.arange(256.0).double()))


@pytest.mark.parametrize("likelihood", [DiscretisedLogistic(1), LogisticMixture(1, 4)])
def test_draws_follow_the_probabilities(likelihood: DiscretisedLogistic | LogisticMixture) -> None:
    parameters = 0.5 * torch.randn(
        1, likelihood.num_parameters, 1, 1, dtype=torch.float64, generator=torch.manual_seed(1)
    )
    drawn = likelihood.draw(parameters.expand(200_000, -1, 1, 1), torch.manual_seed(2))
    counts = torch.bincount(drawn.flatten().long(), minlength=256).double()
    expected = likelihood.log_prob(parameters.expand(256, -1, 1, 1), all_levels()).exp() * 200_000
    usual = expected > 50
    chi_squared = ((counts - expected).square() / expected)[usual].sum() / usual.sum()
    assert 0.6 < float(chi_squared) < 1.5


def test_gradient_is_finite_far_out_in_single_precision() -> None:
    parameters = torch.tensor([1.0, -30.0]).view(1, 2, 1, 1).requires_grad_()
    log_prob = DiscretisedLogistic(1).log_prob(parameters, torch.zeros(1, 1, 1, 1))
    log_prob.sum().backward()
    assert bool(torch.isfinite(log_prob).all())
    assert parameters.grad is not None
    assert bool(torch.isfinite(parameters.grad).all())


def test_start_at_moves_the_mean_to_the_image() -> None:
    wanted = torch.tensor([[[0.2]]], dtype=torch.float64)
    likelihood = DiscretisedLogistic(1)
    parameters = likelihood.start_at(wanted)[None]
    parameters[:, 1] = -3
    assert float(likelihood.mean(parameters)) == pytest.approx(0.2, abs=2e-3)
