"""A rank, a disk, a bucket or a checkpoint fails under a training; its weights stay the same."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import rgw
from tests.servers.fault_proxy import FaultProxy, Rule
from tests.support.killing import descendants, finish, start_job, tree
from tests.support.packed_digits import write_digits
from tests.support.watching import Running

pytestmark = pytest.mark.chaos

TRAIN = (
    "--run", "r", "--global-batch-size", "64", "--image-size", "8", "--channels", "1",
    "--model.kind", "mlp", "--steps", "800", "--evaluate-every", "100000", "--workers", "2",
    "--checkpoint-every", "100", "--max-failures", "20",
)  # fmt: skip
Start = Callable[..., Running]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_digits(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def calm(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("calm")
    return finish(start_job(folder, "jobs.train", "--data", data, *TRAIN))


@pytest.fixture
def start(data: str, tmp_path: Path) -> Iterator[Start]:
    """Starts the run, or starts it again; what is left of it dies with the test."""
    started: list[Running] = []

    def begin(*more: str, runs: str | None = None) -> Running:
        runs = runs or str(tmp_path / "runs")
        arguments = ("--data", data, *TRAIN, "--storage", runs, *more)
        started.append(Running.start(tmp_path, f"{runs}/r", *arguments))
        return started[-1]

    yield begin
    for run in started:
        run.kill()


def same(result: dict[str, Any], calm: dict[str, Any]) -> bool:
    return (result["digest"], result["samples"]) == (calm["digest"], calm["samples"])


def reached(run: Running, step: int) -> Callable[[], bool]:
    return lambda: max(run.checkpoints(), default=0) >= step


def test_a_rank_that_stands_still_past_the_stall_limit_is_replaced(
    start: Start, calm: dict[str, Any]
) -> None:
    run = start("--stall-seconds", "10")
    run.until(reached(run, 200))
    os.kill(run.workers()[-1], signal.SIGSTOP)
    run.until(lambda: run.worker_groups() >= 2)
    assert same(finish(run.process), calm)


def test_a_worker_that_is_killed_for_memory_is_replaced(
    start: Start, calm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    total, available = (
        int(re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/meminfo").read_text())[0]) * 1024
        for name in ("MemTotal", "MemAvailable")
    )
    # Ray's own monitor kills workers above this share of the machine; the ballast passes it.
    limit = (total - available + 3 * 2**30) / total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit:.3f}")
    run = start()
    run.until(reached(run, 200))
    before = set(run.workers())
    ballast: list[Any] = []

    def one_was_killed() -> bool:
        assert len(ballast) < 60, "6 GB, and no worker was killed"
        ballast.append(bytearray(os.urandom(2**20) * 100))
        time.sleep(0.3)
        return not before <= set(run.workers())

    run.until(one_was_killed)
    ballast.clear()
    assert same(finish(run.process), calm)


def test_a_bucket_that_answers_503_for_30_seconds_delays_a_checkpoint_and_no_more(
    start: Start, calm: dict[str, Any], s3_server: rgw.S3Server, fault_proxy: FaultProxy
) -> None:
    run = start(runs=s3_server.bucket())
    run.until(reached(run, 200))
    fault_proxy.rules = [Rule("^PUT .*/checkpoints/", "status")]
    # Thirty seconds are the fault itself, counted from the first write that met it.
    run.until(lambda: any(each.fault for each in fault_proxy.matching("^PUT .*/checkpoints/")))
    refused = time.monotonic()
    run.until(lambda: time.monotonic() - refused > 30)
    fault_proxy.rules = []
    assert same(finish(run.process), calm)
    assert run.worker_groups() == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_at_a_checkpoint_ends_the_run_clearly_and_it_goes_on(
    start: Start, calm: dict[str, Any], small_disk: Path
) -> None:
    run = start(runs=str(small_disk))
    run.until(reached(run, 200))
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        space = os.statvfs(small_disk)
        file.write(b"x" * (space.f_bavail * space.f_frsize))
    assert run.process.wait(timeout=300) == 1
    assert "No space left on device" in run.log()
    assert "Traceback" not in run.log()
    ballast.unlink()
    assert same(finish(start(runs=str(small_disk)).process), calm)


def test_a_truncated_checkpoint_costs_the_steps_since_the_one_before(
    start: Start, calm: dict[str, Any], tmp_path: Path
) -> None:
    run = start()
    run.until(reached(run, 300))
    run.kill()
    newest = sorted((tmp_path / "runs/r/checkpoints").glob("*.pt"))[-1]
    os.truncate(newest, newest.stat().st_size // 2)
    assert same(finish(start().process), calm)
    logs = [path.read_text() for path in (tmp_path / "runs/r/logs").glob("000002*rank0*")]
    assert any("is skipped" in text for text in logs)


def test_a_driver_that_wakes_up_after_another_has_finished_its_run_writes_nothing(
    start: Start, calm: dict[str, Any], tmp_path: Path
) -> None:
    older = start()
    older.until(reached(older, 200))
    asleep = [older.process.pid, *descendants(older.process.pid)]
    for pid in asleep:
        os.kill(pid, signal.SIGSTOP)
    assert same(finish(start().process), calm)
    kept = state_of(tmp_path / "runs/r")
    for pid in reversed(asleep):
        os.kill(pid, signal.SIGCONT)
    assert older.process.wait(timeout=300) == 1
    assert "was started again elsewhere" in older.log()
    assert state_of(tmp_path / "runs/r") == kept


def state_of(run: Path) -> dict[str, str]:
    """Every file that says something about the run's state: not its logs, not Ray's own files.

    Nor what the older start alone may finish writing: the step that it says of itself.
    """
    its_own = {str(path.relative_to(run)) for path in run.glob("checkpoints/*newest-000001.*")}
    return {
        name: digest
        for name, digest in tree(run).items()
        if name.split("/")[0] not in ("logs", "ray", "metrics.json") and name not in its_own
    }
