import math
from collections.abc import Mapping

import pytest
import torch

from pipeline.evaluation.sums import (
    EvaluationSums,
    Importance,
    evaluate_elbo,
    positions_of,
    seen_images,
)
from pipeline.vae import draw_noise
from tests.support.digit_models import TRAINED_ON, digits_vae, held_out, images

IMPORTANCE = Importance(samples=8, images=40)


def sums(world_size: int, batch_size: int, likelihood: str = "gaussian") -> EvaluationSums:
    vae = digits_vae(likelihood)
    parts = [
        evaluate_elbo(
            vae, held_out(97, batch_size, rank, world_size), 5, batch_size, importance=IMPORTANCE
        )
        for rank in range(world_size)
    ]
    return sum(parts, EvaluationSums.empty(vae))


def known(means: Mapping[str, float | None]) -> dict[str, float]:
    """Those that were measured."""
    return {name: value for name, value in means.items() if value is not None}


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 97), (2, 16), (3, 31)])
def test_any_number_of_workers_and_any_batch_size_gives_the_same_means(
    world_size: int, batch_size: int
) -> None:
    whole, shared = sums(1, 50), sums(world_size, batch_size)
    assert shared.images == whole.images == 96
    for name, value in whole.means().items():
        assert shared.means()[name] == pytest.approx(value, rel=1e-6), name
    assert shared.errors() == pytest.approx(whole.errors(), rel=1e-4)
    assert shared.active_units() == whole.active_units()


def test_each_image_counts_once_as_if_it_were_evaluated_alone() -> None:
    vae = digits_vae()
    pixels, _ = images()
    elbos = []
    for position in range(97):
        if position != 3:
            noise = draw_noise(vae, 5, 0, [position])
            place = TRAINED_ON + position
            with torch.no_grad():
                elbos.append(float(vae(pixels[place : place + 1], noise).elbo))
    found = sums(1, 50)
    mean = math.fsum(elbos) / 96
    spread = math.sqrt(sum((elbo - mean) ** 2 for elbo in elbos) / 95 / 96)
    assert found.means()["elbo"] == pytest.approx(mean, rel=1e-6)
    assert found.errors()["elbo"] == pytest.approx(spread, rel=1e-4)
    assert found.means()["bits_per_dim"] == pytest.approx(-mean / (64 * math.log(2)), rel=1e-6)


def test_the_terms_add_up_to_the_elbo_and_dimensions_to_the_kl() -> None:
    found = sums(1, 50)
    means = known(found.means())
    assert means["elbo"] == pytest.approx(means["log_likelihood"] - means["kl"], rel=1e-6)
    entropies = means["cross_entropy_q_prior"] - means["entropy_q"]
    assert means["kl"] == pytest.approx(entropies, rel=1e-5)
    assert float(found.kl_per_dimension().sum()) == pytest.approx(means["kl"], rel=1e-6)


def test_the_gap_is_measured_on_the_images_asked_for_and_is_never_negative() -> None:
    found = sums(1, 50)
    assert found.table[0, -1] == 39  # 40 positions, one of them bad
    assert known(found.means())["iwae_gap"] > 0


def test_bernoulli_states_no_bits_and_encodes_the_binarised_image() -> None:
    assert sums(1, 50, "bernoulli").means()["bits_per_dim"] is None
    vae, (pixels, _) = digits_vae("bernoulli"), images()
    noise = draw_noise(vae, 0, 0, range(4))
    seen = seen_images(vae, pixels[:4], noise)
    assert set(seen.unique().tolist()) == {0, 255}
    with torch.no_grad():
        assert torch.equal(vae(pixels[:4], noise).kl, vae.prior.kl(vae.encode(seen)))


def test_training_mode_comes_back_after_an_evaluation() -> None:
    vae = digits_vae().train()
    evaluate_elbo(vae, held_out(8, 8), 0, 8)
    assert vae.training
    vae.eval()


def test_positions_count_through_batches_and_slots() -> None:
    batches = list(held_out(20, 8, rank=1, world_size=2))
    assert [positions_of(batch, 8) for batch in batches] == [
        range(4, 8), range(12, 16), range(20, 24),
    ]  # fmt: skip


def test_a_dimension_is_active_only_above_a_variance_of_one_hundredth() -> None:
    # Var_x(E_q z) = 1 - s2 / lam: active exactly if lam > s2 / 0.99 (s2 = 0.5).
    means = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variances = 1 - 0.5 / torch.tensor([9.0, 0.52, 0.502], dtype=torch.float64)
    means = means / means.std(dim=0, correction=0) * variances.sqrt()
    table = torch.full((3, 8), float(len(means)), dtype=torch.float64)
    dimensions = torch.stack([torch.zeros(3), means.sum(dim=0), means.square().sum(dim=0)])
    found = EvaluationSums(table, dimensions, torch.zeros(0), pixels=1, has_bits=True)
    assert found.activity().tolist() == pytest.approx(variances.tolist(), rel=1e-3)
    assert found.active_units() == 2
