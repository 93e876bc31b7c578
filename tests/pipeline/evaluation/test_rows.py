import numpy as np
import pytest

from pipeline.evaluation.rows import COLUMNS, Measured, MeasureOptions, measure, merge
from tests.support.digit_models import digits_vae, held_out


def measured(world_size: int, batch_size: int = 24) -> Measured:
    options = MeasureOptions(32, 1, batch_size, 50)
    parts = [
        measure(digits_vae(), held_out(90, batch_size, rank, world_size), options)
        for rank in range(world_size)
    ]
    return merge(parts[::-1], 8)


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 24), (3, 24), (3, 37)])
def test_workers_agree_to_a_millionth_row_by_row_and_in_the_mean(
    world_size: int, batch_size: int
) -> None:
    whole, shared = measured(1), measured(world_size, batch_size)
    assert shared.positions.tolist() == whole.positions.tolist()
    for name in COLUMNS:
        assert shared.column(name).mean() == pytest.approx(
            whole.column(name).mean(), rel=1e-6, nan_ok=True
        )
    assert shared.rows == pytest.approx(whole.rows, rel=1e-4, nan_ok=True)
    assert shared.means == pytest.approx(whole.means, abs=1e-5)
    assert shared.labels == whole.labels


def test_a_bad_sample_has_no_row_and_labels_stay_with_their_images() -> None:
    found = measured(3)
    assert found.positions.tolist() == [p for p in range(90) if p != 3]
    assert len(found.means) == 49
    labels = {
        position: label
        for batch in held_out(90, 90)
        for position, label in enumerate(batch.columns["label"])
    }
    assert found.labels == [labels[p] for p in range(50) if p != 3]


def test_the_bound_lies_above_the_elbo_for_every_image() -> None:
    found = measured(1)
    assert (found.column("iwae") >= found.column("elbo")).all()
    raised = found.column("iwae_gap") + found.column("mean_log_weight")
    # IWAE_K itself differs by what one draw of the ELBO does, which has no mean.
    noise = found.column("iwae") - raised
    assert abs(noise.mean()) < 3 * noise.std() / len(noise) ** 0.5
    assert (found.column("effective_samples") <= 32 + 1e-6).all()


def test_no_parts_make_an_empty_whole() -> None:
    empty = merge([], 8)
    assert empty.rows.shape == (0, len(COLUMNS))
    assert empty.means.shape == (0, 8)
    assert empty.labels is None
    assert np.array_equal(empty.dimensions, np.zeros((3, 8)))
