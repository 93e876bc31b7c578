"""Part of `tests/benchmarks/training.py`: what a run of 256 workers costs beside its workers.

There is no machine with 256 workers at hand, so they are simulated by what they cost: each rank's
part of the order; the recorder, which hears from rank 0 alone; Ray Train's controller and driver
with 4 and 12 workers that only sleep, and the line through both, at 256.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.config import TrackingConfig
from pipeline.data.order import Order, slots_of
from pipeline.runs.outbox import Outbox
from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.recorder import RecorderSettings, RunRecorder
from pipeline.tracking.reporter import SEND_SECONDS, Reporter
from pipeline.training.step import StepReport
from tests.support.killing import descendants
from tests.support.warm import ROOT

WORKERS, BATCH, SAMPLES = 256, 8192, 10**9
FEW, MORE = 4, 12


def control(folder: Path, seconds: float) -> dict[str, float]:
    """Milliseconds, CPU seconds per second, and bytes in MiB."""
    found = {**order_of_a_step(), **recorder(folder)}
    few, more = (ray_train(workers, seconds, folder / f"ray-{workers}") for workers in (FEW, MORE))
    for name in few:
        slope = (more[name] - few[name]) / (MORE - FEW)
        found[f"{name}_{FEW}_workers"] = few[name]
        found[f"{name}_{MORE}_workers"] = more[name]
        found[f"{name}_at_{WORKERS}"] = more[name] + max(0.0, slope) * (WORKERS - MORE)
    return found


def order_of_a_step() -> dict[str, float]:
    """Each rank asks for its own slots; `all` is the whole global batch, as one process would."""
    order = Order(SAMPLES, BATCH, 0, 64, 8)
    slots = slots_of(WORKERS // 2, WORKERS, BATCH)
    alone = min(timed(lambda: order.batch(3, 10, slots)) for _ in range(5))
    whole = min(timed(lambda: order.batch(3, 10, range(BATCH))) for _ in range(5))
    return {"order_ms_a_step_of_a_rank": 1e3 * alone, "order_ms_a_step_of_all": 1e3 * whole}


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def recorder(folder: Path) -> dict[str, float]:
    """CPU of reporter, recorder, /metrics and MLflow on sqlite, for a step every 0.2 s."""
    uri = f"sqlite:///{folder}/control.db"
    (folder / "control").mkdir()
    made = RunRecorder(
        RecorderSettings(str(folder / "control"), "control", TrackingConfig(), uri, {})
    )
    while made.run_id() is None:
        time.sleep(0.05)
    reporter = Reporter(made, Outbox(), TrackingConfig().every_steps, MetricsReport(restart=1))
    before, steps = time.process_time(), 2000
    for step in range(1, steps + 1):
        reporter.step(report_of(step))
        if step % int(SEND_SECONDS / 0.2) == 0:
            reporter._sent = 0.0  # As if two seconds had passed.
    assert made.flush(120) == []
    cpu = time.process_time() - before
    made.finish("FINISHED")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"recorder_cpu_share": cpu / (steps * 0.2), "recorder_process_mib": memory}


def report_of(step: int) -> StepReport:
    """A step's report, as rank 0 of 256 makes it."""
    return StepReport(
        step=step, epoch=0, images=BATCH, bad_images=0, images_seen=BATCH * step,
        terms={"elbo": -1.0, "log_likelihood": -1.0, "kl": -1.0}, objective=-1.0, beta=1.0,
        gradient_norm=1.0, learning_rate=1e-3, skipped=False, stop_requested=False,
        seconds=0.2, data_wait_seconds=0.0, rank_seconds=(0.1,) * WORKERS,
        run_seconds={"productive": 0.2 * step},
    )  # fmt: skip


def ray_train(workers: int, seconds: float, folder: Path) -> dict[str, float]:
    """Of a process of its own: the driver, and the controller's actor below it."""
    folder.mkdir()
    words = ("-m", "tests.benchmarks.training_control", str(workers), str(folder))
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, cwd=ROOT)
    try:
        deadline = time.monotonic() + 180
        while len(list(folder.glob("worker-*"))) < workers:
            assert process.poll() is None, "the driver has died"
            assert time.monotonic() < deadline, "the workers have not begun"
            time.sleep(0.1)
        below = descendants(process.pid).items()
        (controller,) = (pid for pid, line in below if "TrainController" in line)
        watched = {"driver": process.pid, "controller": controller}
        before = {name: cpu_seconds(pid) for name, pid in watched.items()}
        time.sleep(seconds)
        found = {}
        for name, pid in watched.items():
            found[f"{name}_cpu_share"] = (cpu_seconds(pid) - before[name]) / seconds
            pages = int((Path("/proc") / str(pid) / "statm").read_text().split()[1])
            found[f"{name}_mib"] = pages * resource.getpagesize() / 2**20
        return found
    finally:
        (folder / "end").touch()
        process.wait(timeout=300)


def cpu_seconds(pid: int) -> float:
    """User's and system's."""
    fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def drive(workers: int, folder: str) -> None:
    """The driver: Ray Train over workers without a core or torch, which sleep."""
    with ray_cluster(1):
        from ray.train import RunConfig, ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        DataParallelTrainer(
            worker,
            train_loop_config={"folder": folder},
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.001}),
            run_config=RunConfig(storage_path=f"{folder}/ray", name="sleeping"),
        ).fit()


def worker(config: dict[str, str]) -> None:
    """Says that it has begun, and sleeps to the end."""
    folder = Path(config["folder"])
    (folder / f"worker-{os.getpid()}").touch()
    while not (folder / "end").exists():
        time.sleep(1.0)


if __name__ == "__main__":
    drive(int(sys.argv[1]), sys.argv[2])
