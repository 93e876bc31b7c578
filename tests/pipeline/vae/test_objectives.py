import dataclasses
import math
from typing import Any

import pytest
import torch

from pipeline.config import ModelConfig, ObjectiveConfig, PreprocessConfig
from pipeline.errors import ModelError
from pipeline.vae import ElboTerms, ObjectiveState, build_vae, draw_noise, objective_loss
from pipeline.vae.objectives import beta_at, optimised


def terms(samples: int = 1) -> ElboTerms:
    torch.manual_seed(0)
    vae = build_vae(
        ModelConfig(latent_channels=4, width=8), PreprocessConfig(image_size=8, channels=1)
    )
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    return vae(images, draw_noise(vae, 0, 1, range(3), samples=samples), at_mean=True)


def test_beta_one_is_the_negative_elbo_and_leaves_it_alone() -> None:
    found = terms()
    loss = objective_loss(ObjectiveConfig(), found, 1)
    torch.testing.assert_close(loss.loss_per_image, -found.elbo)
    weighted = objective_loss(ObjectiveConfig(beta=4.0), found, 1)
    torch.testing.assert_close(weighted.loss_per_image, -found.elbo + 3 * found.kl)
    assert weighted.beta == 4


def test_linear_warm_up_ends_at_its_last_step() -> None:
    config = ObjectiveConfig(beta=2.0, warmup="linear:10")
    assert [beta_at(config, step) for step in (1, 5, 10, 1000)] == [0.2, 1.0, 2.0, 2.0]


def test_cyclical_warm_up_starts_again_and_holds_half_of_each_cycle() -> None:
    config = ObjectiveConfig(warmup="cyclical:8")
    found = [beta_at(config, step) for step in range(1, 11)]
    assert found == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.25, 0.5]


def test_free_bits_charge_each_dimension_at_least_its_allowance() -> None:
    found = terms()
    loss = objective_loss(ObjectiveConfig(kind="free_bits", free_nats=0.5), found, 1)
    charged = torch.tensor(
        [[max(0.5, kl) for kl in row] for row in found.kl_per_dimension.tolist()]
    ).sum(1)
    torch.testing.assert_close(loss.loss_per_image, charged - found.log_likelihood)
    (loss.loss_per_image - -found.log_likelihood).sum().backward()
    # The untrained posterior is near the prior: below the allowance the KL has no gradient left.
    assert bool((found.kl_per_dimension < 0.5).all())


def test_iwae_is_log_mean_of_the_weights_and_not_their_weighted_mean() -> None:
    found = terms(samples=5)
    loss = objective_loss(ObjectiveConfig(kind="iwae", samples=5), found, 1).loss_per_image
    weights = found.log_weights.double()
    expected = math.log(5) - weights.logsumexp(1)
    torch.testing.assert_close(loss.double(), expected)
    optimistic = (weights.softmax(1) * weights).sum(1)
    # The weighted mean is too high by KL(weights || uniform).
    surplus = (weights.softmax(1) * (weights.log_softmax(1) + math.log(5))).sum(1)
    torch.testing.assert_close(optimistic + loss.double(), surplus, rtol=0, atol=1e-3)


def test_gradient_of_iwae_is_the_weighted_gradient_of_the_log_weights() -> None:
    leaf = torch.tensor([[1.0, 2.0, 4.0]], requires_grad=True)
    found = terms()
    config = ObjectiveConfig(kind="iwae", samples=3)
    weighted = dataclasses.replace(found, log_weights=leaf)
    objective_loss(config, weighted, 1).loss_per_image.backward()
    torch.testing.assert_close(leaf.grad, -leaf.detach().softmax(1))


def test_multi_sample_elbo_is_the_mean_over_the_samples() -> None:
    found = terms(samples=7)
    prior_and_posterior = found.log_weights.mean(1) - found.log_likelihood
    assert found.elbo.shape == (3,)
    # E log p(z)/q(z) by samples is -KL up to noise; the analytic KL is what the ELBO uses.
    torch.testing.assert_close(found.elbo, found.log_likelihood - found.kl)
    torch.testing.assert_close(prior_and_posterior, -found.kl, rtol=0, atol=1.0)


def test_autoencoder_optimises_the_mean_and_no_kl() -> None:
    found = terms()
    loss = objective_loss(ObjectiveConfig(kind="autoencoder"), found, 1)
    assert found.log_likelihood_at_mean is not None
    torch.testing.assert_close(loss.loss_per_image, -found.log_likelihood_at_mean)
    assert loss.beta == 0
    assert ObjectiveConfig(kind="autoencoder").needs_mean


def test_geco_lowers_beta_until_the_reconstruction_holds_its_target() -> None:
    config = ObjectiveConfig(kind="geco", target_bits_per_dim=4.0)
    with pytest.raises(ModelError, match="state"):
        objective_loss(config, terms(), 1)
    state = ObjectiveState()
    for _ in range(300):
        # A model whose distortion follows beta: it holds 4 bits at beta = 0.25.
        bits = 4 + math.log2(state.beta / 0.25)
        state = state.updated(config, -bits * math.log(2) * 64, 64)
    assert state.beta == pytest.approx(0.25, rel=0.3)
    loss = objective_loss(config, found := terms(), 1, state)
    torch.testing.assert_close(loss.loss_per_image, -found.log_likelihood + state.beta * found.kl)
    assert ObjectiveState.from_json(state.to_json()) == state


@pytest.mark.parametrize(
    "knobs",
    [
        {"kind": "geco"},
        {"kind": "iwae"},
        {"free_nats": 1.0},
        {"kind": "iwae", "samples": 5, "beta": 0.5},
        {"warmup": "linear"},
        {"warmup": "linear:0"},
        {"warmup": "cosine:5"},
        {"kind": "geco", "target_bits_per_dim": 4.0, "warmup": "linear:5"},
        {"kind": "autoencoder", "samples": 2},
    ],
)
def test_knobs_that_make_no_sense_together_fail_at_construction(knobs: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Value error"):
        ObjectiveConfig(**knobs)


@pytest.mark.parametrize("log_likelihood", [math.nan, math.inf, -math.inf])
def test_a_step_whose_likelihood_is_not_finite_leaves_geco_where_it_is(
    log_likelihood: float,
) -> None:
    geco = ObjectiveConfig(kind="geco", target_bits_per_dim=4.0)
    state = ObjectiveState(beta=0.5, constraint=0.1)
    assert state.updated(geco, log_likelihood, 48) == state
    assert state.updated(geco, -100.0, 48) != state


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"beta": 4.0}, {"kind": "beta", "beta": 4.0, "samples": 1}),
        (
            {"beta": 4.0, "warmup": "linear:40"},
            {"kind": "beta", "beta": 1.0, "samples": 1, "full_beta": 4.0},
        ),
        (
            {"kind": "free_bits", "free_nats": 0.5},
            {"kind": "free_bits", "beta": 1.0, "samples": 1, "free_nats": 0.5},
        ),
        (
            {"kind": "geco", "target_bits_per_dim": 3.0},
            {"kind": "geco", "beta": 0.25, "samples": 1, "target_bits_per_dim": 3.0},
        ),
        ({"kind": "iwae", "samples": 8}, {"kind": "iwae", "samples": 8}),
        ({"kind": "autoencoder"}, {"kind": "autoencoder", "beta": 0.0, "samples": 1}),
    ],
)
def test_a_bundle_is_told_what_was_optimised_and_the_kl_weight_of_the_last_step(
    knobs: dict[str, Any], told: dict[str, Any]
) -> None:
    config = ObjectiveConfig.model_validate(knobs)
    assert optimised(config, 10, ObjectiveState(beta=0.25)).to_json() == told
