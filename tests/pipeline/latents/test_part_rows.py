from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.latents.part_rows import PartRows, statistics_without
from tests.support.small_store import encode, small_dataset, small_vae


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> PartRows:
    folder = tmp_path_factory.mktemp("store")
    return encode(small_vae(), small_dataset(folder, range(40)), folder / "s").selection.rows[0]


def test_a_position_is_found_by_arithmetic(rows: PartRows) -> None:
    for position in range(len(rows.part.held)):
        batch = rows.read(rows.number_of(position))
        assert position in batch.positions


@given(st.sets(st.integers(0, 12), max_size=12))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_without_removed_rows_the_statistics_are_those_of_the_rest(
    rows: PartRows, removed: Any
) -> None:
    found = statistics_without(rows, tuple(removed))
    batches = [rows.read(number) for number in range(len(rows.part.record_batches))]
    left = np.concatenate(
        [b.tensors["mean"][~np.isin(b.positions, list(removed))] for b in batches]
    ).astype(np.float64)
    assert found.rows == len(left)
    np.testing.assert_allclose(found.mean, left.mean((0, 2, 3)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.std, left.std((0, 2, 3)), rtol=1e-7)


@pytest.mark.parametrize("damage", ["short", "missing", "garbage"])
def test_a_damaged_file_is_an_error_that_names_it_and_the_way_to_mend(
    rows: PartRows, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / rows.part.path
    path.parent.mkdir(parents=True)
    data = (tmp_path.__class__(rows.store) / rows.part.path).read_bytes()
    if damage == "short":
        path.write_bytes(data[:-1])
    elif damage == "garbage":
        path.write_bytes(b"\xff" * len(data))
    with pytest.raises(StoreError, match=rf"{rows.part.path}.*jobs.verify"):
        PartRows(str(tmp_path), rows.part, rows.identity).read(0)
