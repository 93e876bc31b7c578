"""What Ray is asked for each worker, and which error of many a run ends with."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipeline.cluster import worker_group
from pipeline.cluster.worker_group import GroupSettings
from pipeline.errors import DatasetError, RunError


def group(workers: tuple[int, int], cores: int | None = None) -> Any:
    fewest, most = workers
    return SimpleNamespace(min_workers=fewest, max_workers=most, cpus_per_worker=cores)


@pytest.mark.parametrize(
    ("there", "workers", "cores", "address", "each"),
    [
        ({"CPU": 8.0}, (2, 2), None, None, {"CPU": 4}),
        ({"CPU": 2.0}, (4, 4), None, None, {"CPU": 1}),
        ({"CPU": 8.0}, (2, 2), 3, None, {"CPU": 3}),
        ({"CPU": 8.0, "GPU": 2.0}, (2, 4), None, None, {"CPU": 2, "GPU": 1}),
        ({"CPU": 8.0, "GPU": 1.0}, (2, 2), None, None, {"CPU": 4}),
        ({"CPU": 64.0}, (2, 2), None, "auto", {"CPU": 1.0}),
        ({"CPU": 64.0, "GPU": 8.0}, (2, 2), None, "auto", {"GPU": 1.0}),
        ({"CPU": 64.0, "GPU": 8.0}, (2, 2), 6, "auto", {"CPU": 6, "GPU": 1}),
    ],
)
def test_cores_are_an_equal_share_here_and_what_a_cluster_gives_elsewhere(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, float], workers: tuple[int, int],
    cores: int | None, address: str | None, each: dict[str, float],
) -> None:  # fmt: skip
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert worker_group._each(group(workers, cores)) == each


RANK: Any = SimpleNamespace(training=SimpleNamespace(name="first"))


class RaysError(Exception):
    """As Ray Train raises it: the failures of workers by rank."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("workers failed")
        self.worker_failures = failures


def test_an_error_of_ours_behind_rays_is_the_one_that_is_told() -> None:
    ours = DatasetError("shard 3 is gone. Restore it.")
    wrapped = Exception("RayTaskError")
    wrapped._base_exc = ours  # type: ignore[attr-defined]
    found = worker_group._cause(RaysError({0: OSError("gone"), 1: wrapped}), RANK, 3)
    assert found is ours


def test_of_other_deaths_each_rank_is_told_with_how_often_they_were_replaced() -> None:
    found = worker_group._cause(RaysError({0: OSError("x" * 3000), 4: OSError("killed")}), RANK, 3)
    assert isinstance(found, RunError)
    first, *ranks = str(found).splitlines()
    assert first == (
        "run 'first' failed after 3 restarts of its workers. The same command continues it from "
        "its last checkpoint."
    )
    assert ranks == [f"  rank 0: {'x' * 2000}", "  rank 4: killed"]
    assert "\nOSError" not in str(worker_group._cause(OSError("no controller"), RANK, 0))


def test_what_a_call_raises_in_its_thread_is_raised_to_whoever_waits() -> None:
    assert worker_group._in_a_thread(lambda: 7) == 7
    with pytest.raises(KeyboardInterrupt):
        worker_group._in_a_thread(lambda: (_ for _ in ()).throw(KeyboardInterrupt()))


def test_the_settings_of_a_group_are_what_these_tests_stand_in_for() -> None:
    assert {"min_workers", "max_workers", "cpus_per_worker"} <= set(GroupSettings.__annotations__)
