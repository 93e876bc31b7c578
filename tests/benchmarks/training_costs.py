"""Parts of `tests/benchmarks/training.py`: what tracking costs, and what exactness costs."""

import os
import statistics
import time
from pathlib import Path

from pipeline.commands.train_parts import parts_of
from pipeline.config import TrackingConfig, TrainConfig
from pipeline.data import Dataset
from pipeline.runs.outbox import Outbox
from pipeline.runs.run import Pins, Run
from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.recorder import RunRecorder
from pipeline.tracking.reporter import Reporter
from pipeline.training.loop import train
from pipeline.training.settings import settings_of
from pipeline.training.step import StepReport
from pipeline.training.world import current_world
from tests.support import worlds

ROUNDS = 3


def config_of(folder: Path, data: str, name: str, **changes: object) -> TrainConfig:
    """A small convolutional network on images of 64 pixels, in this process."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    values = {
        "data": data, "run": name, "storage": str(folder / "runs"), "workers": 0, "steps": 200,
        "global_batch_size": 32, "image_size": 64, "precision": "fp32",
        "evaluate_every": 10**9, "checkpoint_every": 10**9,
        "model": {"width": 16, "latent_channels": 16},
    }  # fmt: skip
    return TrainConfig.model_validate(values | changes)


def tracking(folder: Path, data: str, seconds: float) -> dict[str, float]:
    """CPU time of the process with and without recorder, MLflow, /metrics; the reporter's calls.

    The recorder's threads run in this process, so their CPU time is in its own.
    """
    steps = 20 + int(12 * seconds)
    cpu: dict[bool, list[float]] = {True: [], False: []}
    calls, walls = [], []
    for number in range(2 * ROUNDS):
        tracked = number % 2 == 0
        config = config_of(folder, data, f"tracking-{number}", steps=steps)
        spent = one_run(config, tracked=tracked)
        cpu[tracked].append(spent["cpu"])
        if tracked:
            calls.append(spent["inside"] / spent["wall"])
            walls.append(spent["wall"])
    with_it, without = (statistics.median(cpu[tracked]) for tracked in (True, False))
    return {
        "reporter_share_of_step_time": statistics.median(calls),
        "cpu_share_with_recorder": (with_it - without) / without,
        "cpu_seconds_bare": without,
        "spread_of_bare": (max(cpu[False]) - min(cpu[False])) / without,
    }


def one_run(config: TrainConfig, *, tracked: bool) -> dict[str, float]:
    """CPU and wall seconds from step 20 on, and those inside the reporter."""
    run = Run.at(config)
    run.open(config, Pins(Dataset.open(config.data).digest, None))
    outbox, reporter, recorder = Outbox(), None, None
    if tracked:
        recorder = RunRecorder(parts_of(config).recording)
        while recorder.run_id() is None:
            time.sleep(0.05)  # MLflow's first connection costs seconds, once a run.
        reporter = Reporter(
            recorder, outbox, TrackingConfig().every_steps, MetricsReport(restart=1)
        )
    inside = cpu = wall = 0.0
    for report in train(settings_of(config), run, run.claim(), current_world(), outbox):
        if not isinstance(report, StepReport):
            continue
        if report.step == 20:
            cpu, wall, inside = time.process_time(), time.perf_counter(), 0.0
        started = time.perf_counter()
        if reporter:
            reporter.step(report)
        inside += time.perf_counter() - started
        if report.step == config.steps:
            spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    if recorder:
        recorder.finish("FINISHED")
    return spent | {"inside": inside}


def numerics(folder: Path, data: str, seconds: float) -> dict[str, float]:
    """Images/s of two gloo ranks, one torch thread each, over those of the plain run."""
    steps = 20 + int(4 * seconds)
    ways: dict[str, dict[str, object]] = {
        "plain": {},
        "plain_micro": {"micro_batch_size": 4},
        "deterministic": {"deterministic": True},
        "exact": {"exact": True, "micro_batch_size": 4},
        "exact_whole": {"exact": True, "micro_batch_size": 16},
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(2):
        for name, changes in ways.items():
            config = config_of(folder, data, f"{name}-{number}", steps=steps, **changes)
            taken = worlds.train(config, 2)[0]["seconds"][20:]
            rates[name].append(config.global_batch_size / statistics.median(taken))
    plain = statistics.median(rates["plain"])
    return {
        "plain_images_per_second": plain,
        **{
            f"{name}_over_plain": statistics.median(found) / plain
            for name, found in rates.items()
            if name != "plain"
        },
        "cores": len(os.sched_getaffinity(0)),
    }
