"""The mistakes that other VAE code has made, and where each one's test is in this project."""

import importlib.util
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]

DEFECTS = {
    "the trainer bypasses DDP's forward, so no gradient is all-reduced": (
        "pipeline/training/test_step.py::test_gradients_on_two_ranks_equal_those_of_one_process"
    ),
    "a term of the loss is computed without gradient": (
        "pipeline/vae/test_identities.py::test_every_term_of_the_bound_reaches_the_encoder"
    ),
    "the average of the weights is kept in bfloat16 and never moves": (
        "pipeline/training/test_state.py::"
        "test_the_average_of_bfloat16_weights_moves_although_each_step_is_below_their_resolution"
    ),
    "the learned scale is handed to no optimiser": (
        "pipeline/vae/test_identities.py::test_a_learned_deviation_is_trained_with_the_rest"
    ),
    "Laplace's constant is 2 in place of log 2": (
        "pipeline/vae/test_likelihoods.py::test_laplace_has_log_two_in_its_constant"
    ),
    "the bound of one sample uses a hundred": (
        "pipeline/vae/test_identities.py::test_a_bound_of_one_sample_is_made_of_one_sample"
    ),
    "the weighted mean of the log-weights is reported as the IWAE bound": (
        "pipeline/vae/test_objectives.py::"
        "test_iwae_is_log_mean_of_the_weights_and_not_their_weighted_mean"
    ),
    "embedding draws a sample": (
        "pipeline/vae/test_identities.py::test_encoding_gives_moments_and_draws_nothing"
    ),
    "binary cross-entropy on grey images is taken for a likelihood": (
        "pipeline/vae/test_likelihoods.py::"
        "test_bernoulli_refuses_grey_values_and_names_the_likelihood_to_use"
    ),
    "the log-variance is read as a deviation": (
        "pipeline/vae/test_posterior.py::test_kl_reads_log_variance_and_not_deviation"
    ),
    "the encoder's variance is dropped and samples have deviation 1": (
        "pipeline/vae/test_posterior.py::test_samples_have_the_variance_and_not_unit_deviation"
    ),
    "the KL is averaged over dimensions": (
        "pipeline/vae/test_posterior.py::"
        "test_total_kl_is_the_sum_over_dimensions_and_not_their_mean"
    ),
    "the KL cancels to a negative number in low precision": (
        "pipeline/vae/test_posterior.py::"
        "test_kl_of_a_nearly_collapsed_dimension_is_positive_and_right"
    ),
    "tiles change the latents and nobody says by how much": (
        "pipeline/vae/test_tiling.py::test_the_error_of_tiles_is_measured_and_falls_with_overlap"
    ),
    "p(x) = ELBO + KL, the logarithm left out, and the other classic slips": (
        "pipeline/explanation/test_mistakes.py::test_a_kl_with_a_planted_slip_is_named"
    ),
    "z at the mean of q is taken for the expectation": (
        "pipeline/vae/test_vae.py::"
        "test_log_likelihood_at_the_mean_is_another_number_than_its_expectation"
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_known_mistake_has_its_test(defect: str) -> None:
    path, name = DEFECTS[defect].split("::")
    spec = importlib.util.spec_from_file_location("found", TESTS / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(getattr(module, name))
