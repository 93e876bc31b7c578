import math

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from tests.support.ppca import (
    EIGENVALUES,
    LN_256,
    NOISE,
    PIXELS,
    UNIT,
    Ppca,
    data,
    exact_noise,
    optimum,
    terms_of,
    with_loadings,
)


@pytest.fixture(scope="module")
def positions() -> Tensor:
    return data()


def correlated() -> Tensor:
    """Two latents whose mean-field gap is 0.5128451100: -1/2 ln(1 - rho^2)."""
    rho = math.sqrt(1 - math.exp(-2 * 0.5128451100))
    gram = torch.tensor([[4.0, 4.0 * rho], [4.0 * rho, 4.0]], dtype=torch.float64)
    inner = gram - NOISE * torch.eye(2, dtype=torch.float64)
    factor = torch.linalg.cholesky(inner, upper=True)
    columns = torch.zeros(PIXELS, 2, dtype=torch.float64)
    columns[:2] = factor
    return columns * UNIT


def test_elbo_with_the_exact_posterior_is_the_log_likelihood_of_ppca(positions: Tensor) -> None:
    model = optimum("diagonal")
    terms = terms_of(model.vae, positions, exact_noise(len(positions), 5))
    # The bound is tight at every image's mean, not on the average alone.
    torch.testing.assert_close(terms.elbo, model.log_prob(positions), rtol=0, atol=1e-9)


def test_mean_log_likelihood_at_the_optimum_is_tipping_and_bishops(positions: Tensor) -> None:
    terms = terms_of(optimum("diagonal").vae, positions, exact_noise(len(positions), 5))
    variance = NOISE * UNIT**2
    spectrum = (EIGENVALUES * UNIT**2).log().sum() + (PIXELS - 5) * math.log(variance)
    expected = -0.5 * (PIXELS * math.log(2 * math.pi) + spectrum + PIXELS) - PIXELS * LN_256
    assert float(terms.elbo.detach().mean()) == pytest.approx(float(expected), abs=1e-8)


def test_kl_per_dimension_at_the_optimum_is_half_log_eigenvalue_over_noise(
    positions: Tensor,
) -> None:
    terms = terms_of(optimum("diagonal").vae, positions, exact_noise(len(positions), 5))
    found = terms.kl_per_dimension.mean(0).detach()
    torch.testing.assert_close(found, 0.5 * (EIGENVALUES / NOISE).log(), rtol=0, atol=1e-9)
    # The literal numbers of the published check (section 2a).
    assert [round(float(nats), 4) for nats in found[:3]] == [1.4452, 1.0397, 0.6931]


def test_variance_of_posterior_means_is_one_minus_noise_over_eigenvalue(positions: Tensor) -> None:
    model = optimum("diagonal")
    means = model.true_posterior(positions).mean
    encoded = terms_of(model.vae, positions, exact_noise(len(positions), 5))
    activity = means.var(0, unbiased=False)
    torch.testing.assert_close(activity, 1 - NOISE / EIGENVALUES, rtol=0, atol=1e-9)
    # Activity + posterior variance is the aggregated variance, exactly that of the prior.
    torch.testing.assert_close(
        (2 * encoded.cross_entropy_q_prior).mean(),
        torch.tensor(5 * (1 + math.log(2 * math.pi)), dtype=torch.float64),
    )


def test_the_rate_at_the_optimum_is_mutual_information_and_no_marginal_kl(
    positions: Tensor,
) -> None:
    """Hoffman & Johnson: mean KL = I(x; z) + KL(q(z) || p(z)), all Gaussian here."""
    model = optimum("diagonal")
    terms = terms_of(model.vae, positions, exact_noise(len(positions), 5))
    means = normal_of(model, positions).mean.detach()
    own = normal_of(model, positions).covariance_matrix.mean(0).detach()
    prior = torch.distributions.MultivariateNormal(torch.zeros(5).double(), torch.eye(5).double())
    # Gaussian data through a linear encoder: q(z) is the normal with these two moments.
    aggregated = torch.distributions.MultivariateNormal(
        means.mean(0), means.T.cov(correction=0) + own
    )
    marginal_kl = float(kl_divergence(aggregated, prior))
    information = float(aggregated.entropy() - terms.entropy_q.detach().mean())
    rate = float(0.5 * (EIGENVALUES / NOISE).log().sum())
    assert marginal_kl == pytest.approx(0, abs=1e-9)
    assert information == pytest.approx(rate, abs=1e-9)
    assert float(terms.kl.detach().mean()) == pytest.approx(information + marginal_kl, abs=1e-9)


@pytest.mark.parametrize(("posterior", "gap"), [("diagonal", 0.5128451100), ("full", 0.0)])
def test_gap_of_correlated_latents_is_the_mean_field_gap_or_zero(
    positions: Tensor, posterior: str, gap: float
) -> None:
    model = with_loadings(posterior, correlated(), NOISE * UNIT**2)
    terms = terms_of(model.vae, positions, exact_noise(len(positions), 2))
    found = model.log_prob(positions) - terms.elbo
    torch.testing.assert_close(found, torch.full_like(found, gap), rtol=0, atol=1e-8)


def test_gap_is_the_kl_from_the_true_posterior(positions: Tensor) -> None:
    model = with_loadings("diagonal", correlated(), NOISE * UNIT**2)
    with torch.no_grad():
        model.vae.get_parameter("network.encoder.bias").add_(0.3)
        model.vae.get_parameter("network.covariance").add_(0.2)
    terms = terms_of(model.vae, positions, exact_noise(len(positions), 2))
    divergence = kl_divergence(normal_of(model, positions), model.true_posterior(positions))
    torch.testing.assert_close(
        model.log_prob(positions) - terms.elbo, divergence, atol=1e-8, rtol=0
    )


def normal_of(model: Ppca, positions: Tensor) -> torch.distributions.MultivariateNormal:
    network = model.vae.network
    moments = network.encode((positions - 0.5) * 512 / 255).flatten(1)
    mean, log_variance = moments.chunk(2, dim=1)
    return torch.distributions.MultivariateNormal(mean, torch.diag_embed(log_variance.exp()))


def test_every_form_of_the_elbo_agrees(positions: Tensor) -> None:
    model = with_loadings("full", correlated(), NOISE * UNIT**2)
    with torch.no_grad():
        model.vae.get_parameter("network.encoder.bias").add_(0.3)
    terms = terms_of(model.vae, positions, exact_noise(len(positions), 2))
    forms = {
        "reconstruction - KL": terms.log_likelihood - terms.kl,
        "E log p(x,z) + H(q)": terms.log_likelihood - terms.cross_entropy_q_prior + terms.entropy_q,
        "E[log p(x,z) - log q]": terms.log_weights.mean(1),
        "-(distortion + rate)": -(-terms.log_likelihood + terms.kl_per_dimension.sum(1)),
    }
    for name, form in forms.items():
        torch.testing.assert_close(form, terms.elbo, rtol=0, atol=1e-8, msg=name)


@pytest.mark.slow
def test_training_a_linear_vae_reaches_the_maximum_of_ppca(positions: Tensor) -> None:
    torch.manual_seed(0)
    model = optimum("diagonal")
    best = float(model.log_prob(positions).mean())
    vae = model.vae
    with torch.no_grad():
        for parameter in vae.network.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
        vae.get_parameter("likelihood.scale").copy_(torch.tensor(math.log(0.2) / 10))
    noise = exact_noise(len(positions), 5)
    optimizer = torch.optim.LBFGS(
        vae.parameters(), max_iter=1000, max_eval=2000, history_size=100,
        line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=1e-14,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -terms_of(vae, positions, noise).elbo.mean()
        loss.backward()
        return loss

    # Directions with eigenvalues near the noise are found last: 0.55 beside 0.5.
    for _ in range(4):
        optimizer.step(closure)
    assert -float(closure().detach()) == pytest.approx(best, abs=1e-6)


def test_with_a_frozen_decoder_the_elbo_rises_as_the_gap_falls(positions: Tensor) -> None:
    model = with_loadings("diagonal", correlated(), NOISE * UNIT**2)
    network = model.vae.network
    for parameter in (
        *network.get_submodule("decoder").parameters(),
        *model.vae.likelihood.parameters(),
    ):
        parameter.requires_grad_(False)
    with torch.no_grad():
        network.get_parameter("encoder.bias").add_(0.5)
    optimizer = torch.optim.Adam([p for p in model.vae.parameters() if p.requires_grad], lr=0.02)
    noise, sums, elbos = exact_noise(len(positions), 2), [], []
    for _ in range(20):
        terms = terms_of(model.vae, positions, noise)
        gap = kl_divergence(normal_of(model, positions), model.true_posterior(positions))
        elbos.append(float(terms.elbo.mean().detach()))
        sums.append(float((terms.elbo + gap).mean().detach()))
        optimizer.zero_grad()
        (-terms.elbo.mean()).backward()
        optimizer.step()
    assert elbos[-1] - elbos[0] > 0.1
    assert sums == pytest.approx([float(model.log_prob(positions).mean())] * 20, abs=1e-8)
