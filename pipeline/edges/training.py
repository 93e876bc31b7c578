"""`jobs.train`: start or continue a run on Ray, under torchrun or in this process."""

import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.edges.cluster import ray_cluster
from pipeline.edges.outcome import FLUSH_SECONDS, conclude, deliver, recorder_arguments
from pipeline.edges.recorder import RunRecorder
from pipeline.edges.worker import ActorRecorder, LocalRecorder, process_group, run_rank
from pipeline.errors import PipelineError, RunError
from pipeline.progress import Progress
from pipeline.training.run import Attempt, Pins, Run
from pipeline.training.world import current_world

logger = logging.getLogger(__name__)


def run_training(config: TrainConfig) -> dict[str, Any]:
    """Trains to the last step and registers the model; returns the job's result.

    Starting the same run again continues it, or says that it is finished.
    """
    config = _resolve(config)
    run = Run.at(config)
    run.open(config, _pins(config, run))
    finished = run.result()
    done = finished is not None and finished["steps"] >= config.steps
    if config.workers == 0 and int(os.environ.get("RANK", "0")) > 0:
        return finished if done and finished else _follow(config)
    if done and finished:
        logger.info("run %s is finished at step %d", run.url, finished["steps"])
        return deliver(config, run, finished)
    attempt = run.claim()
    ended = (_train_on_ray if config.workers else _train_here)(config, run, attempt)
    return deliver(config, run, conclude(run, attempt, ended))


def _pins(config: TrainConfig, run: Run) -> Pins:
    """The generations that the run began with, or, for a new one, the current ones."""
    current = Dataset.open(config.data)
    pins = run.pins()
    if pins is None:
        holdout = Dataset.open(config.holdout) if config.holdout else None
        return Pins(current.digest, holdout.digest if holdout else None)
    if pins.dataset != current.digest:
        kept = Dataset.open(config.data, pins.dataset)
        logger.info(
            "%s has changed since run %s began: the run stays with its %d samples (the dataset now "
            "has %d). A new --run reads them all.",
            config.data,
            run.url,
            len(kept),
            len(current),
        )
    return pins


def _follow(config: TrainConfig) -> dict[str, Any]:
    """Any rank of torchrun's but the first, which alone claims, tracks and registers."""
    with process_group():
        world = current_world()
        return run_rank(config, Attempt(world.broadcast(0)), world, None)


def _train_here(config: TrainConfig, run: Run, attempt: Attempt) -> dict[str, Any]:
    """This process, alone or as the first rank of torchrun's."""
    with process_group():
        world = current_world()
        world.broadcast(attempt.number)
        recorder = RunRecorder(*recorder_arguments(config, run))
        try:
            with _progress(config, recorder.latest):
                ended = run_rank(config, attempt, world, LocalRecorder(recorder))
        except PipelineError:
            recorder.finish("FAILED")
            raise
        left = [point.to_json() for point in recorder.flush(FLUSH_SECONDS)]
        return {**ended, "points_left": left, "run_id": recorder.finish(_status(ended))}


def _train_on_ray(config: TrainConfig, run: Run, attempt: Attempt) -> dict[str, Any]:
    """Ray Train workers; the recorder is an actor on the driver's node."""
    with ray_cluster(config.workers):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if storage.local_path(run.url) and len(ray.nodes()) > 1:
            raise RunError(
                f"--storage {config.storage} is a local path, but the cluster has "
                f"{len(ray.nodes())} nodes. Give storage that all nodes share, such as s3://."
            )
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        name = f"recorder-{uuid.uuid4().hex}"
        recorder = (
            ray.remote(RunRecorder)
            .options(name=name, num_cpus=0, scheduling_strategy=here)
            .remote(*recorder_arguments(config, run))
        )
        try:
            ended = _fit(config, run, attempt, name, recorder)
        except PipelineError:
            with suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                ray.get(recorder.finish.remote("FAILED"), timeout=FLUSH_SECONDS)
            raise
        try:
            left = ray.get(recorder.flush.remote(FLUSH_SECONDS), timeout=2 * FLUSH_SECONDS)
            run_id = ray.get(recorder.finish.remote(_status(ended)), timeout=FLUSH_SECONDS)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return {**ended, "run_id": None}
        points = ended["points_left"] or [point.to_json() for point in left]
        return {**ended, "points_left": points, "run_id": run_id}


def _fit(
    config: TrainConfig, run: Run, attempt: Attempt, name: str, recorder: Any
) -> dict[str, Any]:
    """Runs the Ray Train workers to the end; returns what rank 0's `run_rank` returned."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = ray.cluster_resources().get("GPU", 0) >= config.workers
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "attempt": attempt.number,
            "recorder": name,
        },
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=600),
        run_config=RunConfig(
            name=f"{config.run}-{attempt.name}",
            # Ray's own bookkeeping of this start only; our checkpoints never go through it.
            storage_path=str(storage.local_path(run.path("ray")) or Path(tempfile.gettempdir())),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    with _progress(config, lambda: ray.get(recorder.latest.remote(), timeout=5)):
        try:
            result: dict[str, Any] = trainer.fit().return_value
        except TrainingFailedError as error:
            raise _cause(error, config) from error
    if "error" in result:
        raise RunError(result["error"])
    return result


def _ray_worker(loop: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs; an error of ours ends the run instead of a retry."""
    import ray
    from ray.train.torch import get_device

    config = TrainConfig.model_validate(loop["config"])
    world = current_world(get_device())
    recorder = ray.get_actor(loop["recorder"])
    # Ray starts the workers again after any exception: what can't get better is not tried again.
    fatal = ray.get(recorder.fatal_error.remote())
    if fatal:
        return {"error": fatal}
    try:
        return run_rank(
            config,
            Attempt(loop["attempt"]),
            world,
            ActorRecorder(recorder) if world.rank == 0 else None,
        )
    except PipelineError as error:
        ray.get(recorder.set_fatal_error.remote(str(error)))
        raise


def _cause(error: Exception, config: TrainConfig) -> PipelineError:
    """Our own error behind Ray's, or one that says which workers failed, and how."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        base = getattr(failure, "_base_exc", failure)
        if isinstance(base, PipelineError):
            return base
    lines = [f"rank {rank}: {str(failure).strip()[-2000:]}" for rank, failure in failures.items()]
    return RunError(
        f"run {config.run!r} failed after {config.max_failures} restarts of its workers:\n"
        + ("\n".join(lines) or str(error))
        + "\nThe same command continues it from its last checkpoint."
    )


def _resolve(config: TrainConfig) -> TrainConfig:
    """The config with absolute URLs, and with the hold-out that lies beside the training data."""
    data = storage.absolute(config.data)
    holdout = config.holdout and storage.absolute(config.holdout)
    parent, _, last = data.rpartition("/")
    if holdout is None and last == "train":
        beside = storage.join(parent, "holdout")
        holdout = beside if storage.exists(storage.join(beside, "manifest.json")) else None
    update = {"data": data, "holdout": holdout, "storage": storage.absolute(config.storage)}
    return config.model_copy(update=update)


def _status(ended: dict[str, Any]) -> str:
    """MLflow's word for how a run ended."""
    return "FINISHED" if ended["reason"] == "done" else "KILLED"


@contextmanager
def _progress(config: TrainConfig, latest: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Shows the recorder's latest snapshot on stderr while the block runs."""
    ended = threading.Event()

    def show() -> None:
        with Progress(config.run, config.steps, "steps") as progress:
            problem, shown, over = None, 0, False
            while not over:
                over = ended.wait(1.0)
                snapshot = latest()
                terms = snapshot.get("terms", {})
                note = " ".join(f"{name}={terms[name]:.2f}" for name in _SHOWN if name in terms)
                step = snapshot.get("step", 0)
                progress.advance(step - shown, note)
                shown = step
                if snapshot.get("problem") != problem:
                    problem = snapshot.get("problem")
                    logger.warning("%s", problem or "MLflow can be reached again.")

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)


_SHOWN = ("elbo", "log_likelihood", "kl")
