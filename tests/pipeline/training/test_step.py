from typing import Any

import pytest
import torch

from pipeline.config import ObjectiveConfig
from pipeline.errors import RunError
from pipeline.vae import draw_noise
from tests.support.gradients import (
    BATCH,
    INVALID,
    MICRO_BATCHES,
    SEED,
    found_by_ranks,
    global_batch,
    gradients,
    new_vae,
    one_step,
)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("ranks")
    return found_by_ranks(2, folder)


@pytest.mark.process
@pytest.mark.parametrize("micro", MICRO_BATCHES)
def test_gradients_on_two_ranks_equal_those_of_one_process(
    two_ranks: Any, micro: int | None
) -> None:
    # 7 images on 2 ranks, with masked samples: 3 and 4 slots, 2 and 2 of them valid.
    _, state = one_step(global_batch(range(BATCH)))
    for rank in two_ranks:
        for found, expected in zip(rank[micro]["gradients"], gradients(state), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.process
@pytest.mark.parametrize("micro", MICRO_BATCHES)
def test_every_rank_reports_the_means_over_the_global_valid_images(
    two_ranks: Any, micro: int | None
) -> None:
    report, _ = one_step(global_batch(range(BATCH)))
    for found in (rank[micro] for rank in two_ranks):
        assert found["images"] == BATCH - len(INVALID)
        assert found["bad_images"] == len(INVALID)
        assert found["terms"] == pytest.approx(report.terms, rel=1e-9)
        assert found["objective"] == pytest.approx(report.objective, rel=1e-9)


@pytest.mark.process
@pytest.mark.parametrize("micro", MICRO_BATCHES)
def test_ranks_add_their_gradients_once_a_step_however_many_micro_batches_there_are(
    two_ranks: Any, micro: int | None
) -> None:
    # What torch's profiler saw of gloo: the counts, the sums, and all gradients in one bucket.
    for rank in two_ranks:
        assert rank[micro]["messages"].count("gloo:all_reduce") == 3


def test_the_gradient_is_the_mean_of_single_image_gradients() -> None:
    # A sum over ranks and slots in place of a mean, or a mean that counts masked slots, dies here.
    _, whole = one_step(global_batch(range(BATCH)))
    parts = []
    for slot in (s for s in range(BATCH) if s not in INVALID):
        others = tuple(s for s in range(BATCH) if s != slot)
        parts.append(gradients(one_step(global_batch(range(BATCH), others))[1]))
    for index, expected in enumerate(gradients(whole)):
        mean = torch.stack([part[index] for part in parts]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-9)


def test_the_loss_without_beta_is_minus_the_mean_elbo() -> None:
    report, _ = one_step(global_batch(range(BATCH)))
    assert report.objective == pytest.approx(report.terms["elbo"], rel=1e-12)
    assert report.terms["elbo"] == pytest.approx(
        report.terms["log_likelihood"] - report.terms["kl"], rel=1e-9
    )


def test_a_batch_without_valid_images_moves_no_weight() -> None:
    report, state = one_step(global_batch(range(BATCH), tuple(range(BATCH))))
    assert report.skipped
    assert report.images == 0
    assert state.step == 1
    for found, initial in zip(state.vae.parameters(), new_vae().parameters(), strict=True):
        assert torch.equal(found, initial)


@pytest.mark.parametrize(
    "objective",
    [
        ObjectiveConfig(beta=0.5),
        ObjectiveConfig(samples=3),
        ObjectiveConfig(kind="iwae", samples=4),
        ObjectiveConfig(kind="free_bits", free_nats=0.1),
        ObjectiveConfig(kind="geco", target_bits_per_dim=4.0),
        ObjectiveConfig(kind="autoencoder"),
    ],
    ids=lambda config: f"{config.kind}-{config.samples}",
)
def test_every_objective_trains_and_the_true_elbo_is_reported_beside_it(
    objective: ObjectiveConfig,
) -> None:
    plain, _ = one_step(global_batch(range(BATCH)))
    report, state = one_step(global_batch(range(BATCH)), objective=objective)
    assert not report.skipped
    for moved, before in zip(state.vae.parameters(), new_vae().parameters(), strict=True):
        assert moved.grad is not None
        # Adam's first step is the rate itself wherever there is a gradient.
        way = (moved - before).detach().abs()
        assert float(way.max()) <= report.learning_rate * (1 + 1e-9)
        assert torch.equal(way > 0, moved.grad != 0)
    # Of the same weights and images: the KL is the same number whatever is optimised.
    assert report.terms["kl"] == pytest.approx(plain.terms["kl"], rel=1e-9)
    assert report.terms["elbo"] == pytest.approx(
        report.terms["log_likelihood"] - report.terms["kl"], rel=1e-9
    )
    if objective.kind == "iwae":
        assert report.objective > report.terms["elbo"]
    if objective.kind == "geco":
        assert state.objective.beta != 1.0


def test_noise_and_warm_up_of_a_step_are_those_of_the_number_that_it_reports() -> None:
    batch = global_batch(range(BATCH), ())
    report, _ = one_step(batch, objective=ObjectiveConfig(warmup="linear:4"))
    terms = new_vae()(batch.images, draw_noise(new_vae(), SEED, report.step, range(BATCH)))
    assert report.step == 1
    assert report.beta == 0.25
    for name, found in report.terms.items():
        assert found == pytest.approx(float(getattr(terms, name).detach().mean()), rel=1e-9), name


def test_exact_sums_of_micro_batches_that_a_ranks_slots_do_not_fill_are_refused() -> None:
    with pytest.raises(RunError, match=r"micro-batches of 2 don't fit .* slots 0 to 7"):
        one_step(global_batch(range(BATCH)), micro_batch_size=2, exact=True)
    with pytest.raises(RunError, match=r"micro-batches of 3 don't fit .* slots 1 to 7"):
        one_step(global_batch(range(1, BATCH)), micro_batch_size=3, exact=True)
