"""Identities that tie the package's terms to plain sums, other estimators and other models."""

import copy
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.vae import VAE, Noise, build_vae, draw_noise, importance_estimate
from pipeline.vae.likelihoods import SIGMA_GAIN, SMALLEST_SIGMA
from pipeline.vae.posterior import DiagonalPosterior
from tests.support.digit_models import digits_vae, images, sigma_of


def mlp(likelihood: str = "gaussian_fixed", sigma: float | None = 0.2) -> VAE:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {
            "kind": "mlp",
            "likelihood": likelihood,
            "latent_channels": 2,
            "width": 16,
            "sigma": sigma,
        }
    )
    return build_vae(config, PreprocessConfig(image_size=8, channels=1)).double()


def test_with_a_discrete_z_every_form_of_the_elbo_is_the_same_plain_sum() -> None:
    """Six codes, each decoded by the package's decoder and scored by its likelihood."""
    vae = mlp()
    generator = torch.Generator().manual_seed(1)
    codes = torch.randn(6, *vae.latent_shape, generator=generator, dtype=torch.float64)
    prior = Categorical(torch.rand(6, generator=generator, dtype=torch.float64))
    q = Categorical(torch.rand(6, generator=generator, dtype=torch.float64))
    target = vae.likelihood.target(images()[0][:1], torch.full((1, 1, 8, 8), 0.5).double())
    with torch.no_grad():
        conditional = vae.likelihood.log_prob(
            vae.decode_parameters(codes), target.expand(6, -1, -1, -1)
        )
    conditional = (conditional - conditional.mean()) / 50 + conditional.mean()
    joint = conditional + prior.logits
    evidence = joint.logsumexp(0)
    posterior = Categorical(logits=joint)
    distortion = -(q.probs * conditional).sum()
    forms = {
        "reconstruction - KL": -distortion - kl_divergence(q, prior),
        "E log p(x,z) + H(q)": (q.probs * joint).sum() + q.entropy(),
        "E log p(x,z) - log q": (q.probs * (joint - q.logits)).sum(),
        "entropies": -distortion + (q.probs * prior.logits).sum() + q.entropy(),
        "-(distortion + rate)": -(distortion + kl_divergence(q, prior)),
        "log p(x) - KL(q || p(z|x))": evidence - kl_divergence(q, posterior),
    }
    for name, value in forms.items():
        assert float(value) == pytest.approx(float(forms["reconstruction - KL"]), rel=1e-12), name
    assert float(forms["entropies"]) < float(evidence)


def test_score_function_and_reparameterised_gradients_agree_in_the_mean() -> None:
    """d ELBO / d (mean, log-variance of q) for one image; the first has far more variance."""
    vae = mlp()
    draws = 40_000
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, draws, *vae.latent_shape, generator=generator, dtype=torch.float64)
    target = vae.likelihood.target(images()[0][:1], torch.full((1, 1, 8, 8), 0.5).double())
    parameters = torch.tensor([0.3, -0.2, -1.0, -0.5], dtype=torch.float64, requires_grad=True)

    def posterior_of(values: torch.Tensor) -> DiagonalPosterior:
        mean, log_variance = values.view(2, 1, *vae.latent_shape)
        return DiagonalPosterior(mean, log_variance)

    def integrand(latents: torch.Tensor, q: DiagonalPosterior) -> torch.Tensor:
        decoded = vae.decode_parameters(latents[0])
        score = vae.likelihood.log_prob(decoded, target.expand(draws, -1, -1, -1))
        return score + vae.prior.log_prob(latents[0]) - q.log_prob(latents)[0]

    def per_draw(function: Any) -> torch.Tensor:
        """[draws, 4]: each draw's own gradient, by giving each its own copy of the parameters."""
        copies = parameters.detach().repeat(draws, 1).requires_grad_()
        means, log_variances = copies.view(draws, 2, *vae.latent_shape).unbind(1)
        q = DiagonalPosterior(means, log_variances)
        function(q).sum().backward()
        assert copies.grad is not None
        return copies.grad

    def reparameterised(q: DiagonalPosterior) -> torch.Tensor:
        latents = q.sample(noise[0])
        decoded = vae.decode_parameters(latents)
        score = vae.likelihood.log_prob(decoded, target.expand(draws, -1, -1, -1))
        return score + vae.prior.log_prob(latents) - q.log_prob(latents)

    def score_function(q: DiagonalPosterior) -> torch.Tensor:
        latents = q.sample(noise[0]).detach()
        with torch.no_grad():
            value = integrand(latents[None], posterior_of(parameters.detach()))
        # A baseline changes no mean, for E d log q = 0.
        return (value - value.mean()) * q.log_prob(latents)

    path, score = per_draw(reparameterised), per_draw(score_function)
    error = ((path.var(0) + score.var(0)) / draws).sqrt()
    assert bool(((path.mean(0) - score.mean(0)).abs() < 4 * error).all())
    ratio = score.var(0) / path.var(0)
    print(f"variance of the score function over the reparameterised: {ratio.tolist()}")
    assert float(ratio.min()) > 1
    assert float(ratio.max()) > 3


@pytest.mark.parametrize("beta", [0.25, 4.0])
def test_beta_is_the_variance_of_a_gaussian_decoder(beta: float) -> None:
    """beta-ELBO at variance s has beta times the gradient of the ELBO at variance beta s."""
    narrow = mlp(sigma=0.1)
    wide = mlp(sigma=0.1)
    deviation = sigma_of(narrow) * beta**0.5
    wide.likelihood.get_buffer("scale").copy_((deviation - SMALLEST_SIGMA).log() / SIGMA_GAIN)
    noise = draw_noise(narrow, 0, 1, range(5))
    for vae, weight in ((narrow, beta), (wide, 1.0)):
        terms = vae(images()[0][:5], noise)
        (terms.log_likelihood - weight * terms.kl).mean().backward()
    for one, other in zip(narrow.parameters(), wide.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(one.grad, beta * other.grad, rtol=1e-9, atol=1e-12)


def test_a_bound_of_one_sample_is_made_of_one_sample() -> None:
    vae = digits_vae()
    chosen = images()[0][:7]
    bound = importance_estimate(vae, chosen, 1, seed=3)
    again = importance_estimate(vae, chosen, 1, seed=3, chunk=1)
    assert torch.equal(bound.bound, again.bound)
    # With a single draw the bound is the ELBO's one-draw estimate and all weight lies on it.
    torch.testing.assert_close(bound.bound, bound.mean_log_weight, rtol=1e-12, atol=0)
    many = digits_vae(), images()[0][:200]
    assert (
        importance_estimate(*many, 1, seed=3).bound.mean()
        < importance_estimate(*many, 100, seed=3).bound.mean()
    )


def test_a_learned_deviation_is_trained_with_the_rest() -> None:
    from pipeline.config import OptimizerConfig
    from pipeline.training.state import make_optimizer

    vae = copy.deepcopy(digits_vae(steps=1)).requires_grad_()
    optimizer = make_optimizer(OptimizerConfig(), vae)
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    assert {id(weight) for weight in vae.parameters()} == held
    assert id(vae.likelihood.scale) in held
    start, trained = sigma_of(digits_vae(steps=1)), sigma_of(digits_vae())
    assert float(trained.detach()) != pytest.approx(float(start.detach()), rel=0.01)


def test_encoding_gives_moments_and_draws_nothing() -> None:
    vae = digits_vae()
    state = torch.random.get_rng_state()
    first, second = vae.encode(images()[0][:3]), vae.encode(images()[0][:3])
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_term_of_the_bound_reaches_the_encoder() -> None:
    vae = mlp("gaussian", None)
    terms = vae(images()[0][:4], Noise(torch.randn(4, 2, 1, 1).double(), torch.rand(4, 1, 8, 8)))
    weight = next(vae.network.parameters())
    for term in (terms.log_likelihood, terms.kl, terms.entropy_q, terms.cross_entropy_q_prior):
        (gradient,) = torch.autograd.grad(term.sum(), weight, retain_graph=True)
        assert float(gradient.abs().max()) > 0
