"""How long a run takes to start and to get over a kill, and what tracking costs a step.

python -m tests.benchmarks.runs starting   # jobs.train to its first step; a kill to the next step
python -m tests.benchmarks.runs tracking   # the reporter's time; with and without tracking

Needs digits alone (scikit-learn's); prints one JSON line.
"""

import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import mlflow

from pipeline.config import ModelConfig, TrackingConfig, TrainConfig
from pipeline.data import Dataset
from pipeline.runs.outbox import Outbox
from pipeline.runs.run import Pins, Run
from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.recorder import RecorderSettings, RunRecorder
from pipeline.tracking.reporter import Reporter
from pipeline.training.loop import train
from pipeline.training.settings import settings_of
from pipeline.training.step import StepReport
from pipeline.training.world import current_world
from tests.servers.ray_nodes import RayNodes
from tests.support.killing import finish, start_job
from tests.support.packed_digits import write_digits
from tests.support.watching import Running

ROUNDS, STEPS = 3, 100
JOB = (
    "--run", "r", "--global-batch-size", "64", "--image-size", "8", "--channels", "1",
    "--workers", "2", "--steps", "100000", "--evaluate-every", "1000000",
    "--checkpoint-every", "50", "--tracking.every-steps", "1",
)  # fmt: skip


def main() -> None:
    """Prints one JSON line of results."""
    with tempfile.TemporaryDirectory() as name:
        data = str(write_digits(Path(name)))
        measure = {"starting": starting, "tracking": tracking}[sys.argv[1]]
        print(
            json.dumps({key: round(value, 4) for key, value in measure(Path(name), data).items()})
        )


def starting(folder: Path, data: str) -> dict[str, float]:
    """Seconds on the wall clock, by the time stamps of the points in MLflow."""
    (folder / "alone").mkdir()
    began = time.time()
    alone, _ = run_until(folder / "alone", data, kill=False)
    short = Path(tempfile.mkdtemp(prefix="rb-"))
    cluster = RayNodes(short / "r")
    try:
        cluster.start("head", 2)
        os.environ.update(cluster.environment)
        (folder / "joined").mkdir()
        joining = time.time()
        joined, killed = run_until(folder / "joined", data, kill=True, cluster=cluster)
    finally:
        cluster.stop()
        shutil.rmtree(short)
    return {
        "seconds_to_first_step_without_ray": min(alone) - began,
        "seconds_to_first_step_with_ray_up": min(joined) - joining,
        # Of a step not made before: the steps since the checkpoint are made again first.
        "seconds_from_kill_to_next_step": min(when for when in joined if when > killed) - killed,
    }


def run_until(
    folder: Path, data: str, *, kill: bool, cluster: RayNodes | None = None
) -> tuple[list[float], float]:
    """The times at which steps were first made, and that of the kill, in seconds since 1970."""
    run = Running(start_job(folder, "jobs.train", "--data", data, *JOB), f"{folder}/runs/r", folder)
    run.until(lambda: max(run.checkpoints(), default=0) >= 200)
    killed = time.time()
    if kill and cluster is not None:
        os.kill(cluster.processes("RayTrainWorker")[-1], signal.SIGKILL)
        run.until(lambda: run.worker_groups() >= 2)
        before = max(run.checkpoints())
        run.until(lambda: max(run.checkpoints()) >= before + 100)
    (folder / "runs/r/STOP").touch()
    client = mlflow.MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    history = client.get_metric_history(finish(run.process)["run_id"], "elbo")
    return [metric.timestamp / 1000 for metric in history], killed


def tracking(folder: Path, data: str) -> dict[str, float]:
    """The reporter's own share of the steps' time, and whole rounds with it against without."""
    shares: list[float] = []
    rates: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * ROUNDS):
        tracked = number % 2 == 0
        share, rate = one_round(folder, data, f"r{number}", tracked=tracked)
        rates[tracked].append(rate)
        if tracked:
            shares.append(share)
    with_it, without = (statistics.median(rates[tracked]) for tracked in (True, False))
    return {
        "reporter_share_of_step_time": statistics.median(shares),
        "images_per_second_tracked": with_it,
        "images_per_second_bare": without,
        "ratio": with_it / without,
    }


def one_round(folder: Path, data: str, name: str, *, tracked: bool) -> tuple[float, float]:
    """The reporter's share, and images per second after the first 20 steps."""
    config = TrainConfig(
        data=data, run=name, storage=str(folder / "runs"), steps=STEPS, global_batch_size=64,
        image_size=16, channels=1, workers=0, evaluate_every=10**9, model=ModelConfig(width=16),
    )  # fmt: skip
    run = Run.at(config)
    run.open(config, Pins(Dataset.open(data).digest, None))
    outbox, reporter = Outbox(), None
    if tracked:
        uri = f"sqlite:///{folder}/mlflow.db"
        recorder = RunRecorder(RecorderSettings(run.url, name, TrackingConfig(), uri, {}))
        while recorder.run_id() is None:
            time.sleep(0.05)  # MLflow's first connection costs seconds, once a run.
        reporter = Reporter(recorder, outbox, config.tracking.every_steps, MetricsReport(restart=1))
    inside, images, began = 0.0, 0, 0.0
    for report in train(settings_of(config), run, run.claim(), current_world(), outbox):
        if isinstance(report, StepReport):
            started = time.perf_counter()
            began = started if report.step == 20 else began
            images += report.images if report.step > 20 else 0
            if reporter:
                reporter.step(report)
            inside += time.perf_counter() - started if report.step > 20 else 0
    seconds = time.perf_counter() - began
    if reporter:
        last = reporter.settle()
        assert recorder.settle(last.points, last.report, 60) == []
        recorder.finish("FINISHED")
    return inside / seconds, images / seconds


if __name__ == "__main__":
    main()
