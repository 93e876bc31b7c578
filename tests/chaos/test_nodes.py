"""Nodes of a Ray cluster go away under a training, and its weights stay bitwise the same."""

import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.data import Dataset
from tests.servers import rgw
from tests.servers.ray_nodes import RayNodes
from tests.support.killing import finish, start_job
from tests.support.packed_digits import write_digits
from tests.support.watching import Running

pytestmark = pytest.mark.chaos

STEPS = 800
TRAIN = (
    "--run", "r", "--global-batch-size", "64", "--image-size", "8", "--channels", "1",
    "--model.kind", "mlp", "--steps", str(STEPS), "--evaluate-every", "100000",
    "--max-failures", "5",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_digits(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def calm(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same training on one quiet machine."""
    folder = tmp_path_factory.mktemp("calm")
    # A node has one core for its worker; how many threads there are decides a sum's last bits.
    words = ("--workers", "2", "--cpus-per-worker", "1")
    return finish(start_job(folder, "jobs.train", "--data", data, *TRAIN, *words))


@pytest.fixture
def nodes(s3_server: rgw.S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNodes]:
    """A head for the driver, without room for a worker, and two nodes with room for one each.

    Jobs that are started meanwhile join it.
    """
    folder = Path(tempfile.mkdtemp(prefix="rn-"))
    cluster = RayNodes(folder / "r", dict(s3_server.environment))
    try:
        cluster.start("head", 0)
        cluster.start("one", 1)
        cluster.start("two", 1)
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(
    nodes: RayNodes, s3_server: rgw.S3Server, data: str, tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    """Starts the training on the cluster; what is left of it dies with the test."""
    runs, started = s3_server.bucket(), []

    def begin(*more: str) -> Running:
        arguments = ("--data", data, *TRAIN, "--storage", runs, "--checkpoint-every", "100", *more)
        started.append(Running.start(tmp_path, f"{runs}/r", *arguments))
        return started[-1]

    yield begin
    for running in started:
        running.kill()


@pytest.fixture
def run(start: Callable[..., Running]) -> Running:
    return start("--workers", "2")


def test_a_raylet_that_is_killed_and_comes_back_changes_no_bit(
    nodes: RayNodes, run: Running, calm: dict[str, Any]
) -> None:
    run.until(lambda: max(run.checkpoints(), default=0) >= 200)
    nodes.kill_raylet("two")
    nodes.start("two", 1)
    result = finish(run.process)
    assert run.worker_groups() >= 2, "it had ended before the node was killed"
    assert (result["digest"], result["samples"]) == (calm["digest"], calm["samples"])


def test_a_node_that_is_drained_leaves_a_checkpoint_of_its_last_step(
    nodes: RayNodes, run: Running, calm: dict[str, Any]
) -> None:
    run.until(lambda: max(run.checkpoints(), default=0) >= 200)
    nodes.send("two", signal.SIGTERM)
    run.until(lambda: "a node is being taken away" in run.log())
    (said,) = [line for line in run.log().splitlines() if "a node is being taken away" in line]
    step = int(said.partition("at step ")[2].split()[0])
    # Not one that was due anyway: the step at which the notice came.
    assert step in run.checkpoints()
    nodes.wait("two", 120)
    nodes.start("two", 1)
    result = finish(run.process)
    print(json.dumps({"drained_at_step": step, "worker_groups": run.worker_groups()}))
    assert (result["digest"], result["samples"]) == (calm["digest"], calm["samples"])


def test_a_cluster_that_is_drained_whole_loses_no_step_and_says_so_in_a_line(
    nodes: RayNodes, run: Running
) -> None:
    """As when a queue takes it for another job."""
    run.until(lambda: max(run.checkpoints(), default=0) >= 200)
    for name in ("head", "one", "two"):
        nodes.send(name, signal.SIGTERM)
    run.process.wait(120)
    log = run.log()
    (said,) = [line for line in log.splitlines() if "a node is being taken away" in line]
    assert int(said.partition("at step ")[2].split()[0]) == max(run.checkpoints())
    assert run.process.returncode == 1
    assert "this driver's own node is being taken away" in log.splitlines()[-1]
    assert "Traceback" not in log


def test_workers_1_to_2_follow_the_nodes_and_each_image_still_counts_once(
    nodes: RayNodes, start: Callable[..., Running], data: str
) -> None:
    run = start("--workers", "1..2", "--steps", "1000000")

    def groups(size: int) -> int:
        """Worker groups of that size so far; each rank's log begins with its place."""
        firsts = [storage.read(url) for url in run.logs("rank0")]
        return sum(f"rank 0 of {size} starts".encode() in text for text in firsts)

    run.until(lambda: groups(2) == 1 and max(run.checkpoints(), default=0) >= 100)
    nodes.kill_raylet("two")
    run.until(lambda: groups(1) == 1)
    before = max(run.checkpoints())
    run.until(lambda: max(run.checkpoints()) >= before + 200)
    nodes.start("two", 1)
    run.until(lambda: groups(2) == 2)
    before = max(run.checkpoints())
    run.until(lambda: max(run.checkpoints()) >= before + 200)
    storage.publish(f"{run.url}/STOP", b"")
    result = finish(run.process)
    images = len(Dataset.open(data))
    per_epoch = -(-images // 64)
    epochs, rest = divmod(result["steps"], per_epoch)
    assert result["samples"] == epochs * images + rest * 64


def test_the_runs_of_a_sweep_go_side_by_side_where_there_is_room(
    nodes: RayNodes, s3_server: rgw.S3Server, data: str, tmp_path: Path
) -> None:
    runs = s3_server.bucket()
    holdout = data.replace("/train", "/holdout")
    job = start_job(
        tmp_path, "jobs.train", "--data", data, "--holdout", holdout, *TRAIN, "--workers", "1",
        "--storage", runs, "--sweep", "objective.beta=0.5,4",
    )  # fmt: skip
    result = finish(job)
    assert [row["value"] for row in result["sweep"]] == [0.5, 4]
    assert result["sweep"][0]["rate"] > result["sweep"][1]["rate"]
    spans = []
    for row in result["sweep"]:
        claim = storage.read_json(f"{row['run']}/attempts/000001.000.json")
        ended = storage.read_json(f"{row['run']}/time/000001.001.json")["until"]
        spans.append((claim["began"], ended))
    (one, first_ended), (other, second_ended) = spans
    assert max(one, other) < min(first_ended, second_ended)
