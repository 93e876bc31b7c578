"""A run's workers on Ray Train: started, replaced when they die, moved when their node goes."""

import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

from pipeline import storage
from pipeline.cluster.node_drain import node_is_drained
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.cluster.recorder_actor import ActorRecorder, actor_deaths
from pipeline.cluster.room import Wait
from pipeline.cluster.worker_warnings import warnings_told
from pipeline.errors import PipelineError, RunError
from pipeline.rank import RankEnd, RankSettings, RunEnd, run_rank
from pipeline.registry.checkpoint_versions import VersionSettings, registered_on_the_way
from pipeline.runs.run import Start
from pipeline.tracking.logs import stored_log
from pipeline.tracking.progress_line import live_view
from pipeline.tracking.recorder import (
    FLUSH_SECONDS,
    RecorderSettings,
    RunRecorder,
    Settled,
    failing,
    mlflow_status,
)
from pipeline.training.world import current_world

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class FatalError:
    """What a worker returns where one before it met an error that no restart mends."""

    message: str


@dataclass(frozen=True)
class GroupSettings:
    """How many workers there are, what each takes, and how often dead ones are replaced."""

    min_workers: int
    max_workers: int
    cpus_per_worker: int | None
    max_failures: int
    stall_seconds: float


def train_on_ray(
    start: Start,
    group: GroupSettings,
    rank: RankSettings,
    recording: RecorderSettings,
    versions: VersionSettings,
) -> RunEnd:
    """Ray Train workers; the recorder is an actor on the driver's node."""
    run, training = rank.run, rank.training
    with (
        stored_log(run, f"{start.number:06d}-driver"),
        ray_cluster(group.max_workers),
    ):
        import ray

        nodes = sum(node["Alive"] for node in ray.nodes())
        if storage.local_path(run.url) and nodes > 1:
            raise RunError(
                f"--storage: {run.url} is a local path, but the cluster has {nodes} nodes. "
                "Give storage that all nodes share, such as s3://."
            )
        name = f"recorder-{uuid.uuid4().hex}"
        recorder = _recorder_here(name, recording)

        def finish(status: str) -> None:
            with suppress(*actor_deaths(), ray.exceptions.GetTimeoutError):
                ray.get(recorder.finish.remote(status), timeout=FLUSH_SECONDS)

        with (
            failing(finish),
            live_view(
                run,
                training.name,
                training.steps,
                lambda: _ask(recorder.latest),
                waits_for=Wait(run, start, group.min_workers, _each(group)).note,
            ),
            registered_on_the_way(versions, lambda: _ask(recorder.run_id)),
        ):
            end = _until_ended(group, rank, start, name)
        points, report = end.unsettled.points, end.unsettled.report
        status = mlflow_status(end.ended.reason)
        try:
            settling = recorder.settle.remote(points, report, FLUSH_SECONDS)
            left = ray.get(settling, timeout=2 * FLUSH_SECONDS)
            run_id = ray.get(recorder.finish.remote(status), timeout=FLUSH_SECONDS)
        except (*actor_deaths(), ray.exceptions.GetTimeoutError):
            return RunEnd(end.ended, Settled(None, points))
        return RunEnd(end.ended, Settled(run_id, left))


def _recorder_here(name: str, recording: RecorderSettings) -> Any:
    """A recorder actor on this driver's node.

    One that dies, for memory say, comes back, and is given what it had not yet sent.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": name, "num_cpus": 0, "scheduling_strategy": here}
    actor = ray.remote(RunRecorder).options(**options, max_restarts=-1, max_task_retries=-1)
    return actor.remote(recording)


_ASK_SECONDS = 5.0
"""It answers in milliseconds, unless it starts again; who asks, asks again a second later."""


def _ask(method: Any) -> Any:
    """What an actor's method returns; None while the actor can't answer."""
    import ray

    try:
        return ray.get(method.remote(), timeout=_ASK_SECONDS)
    except (*actor_deaths(), ray.exceptions.GetTimeoutError):
        return None


def _until_ended(group: GroupSettings, rank: RankSettings, start: Start, recorder: str) -> RankEnd:
    """Fits again after what is no failure of the training: a drained node, a dead controller."""
    from ray.exceptions import ActorUnschedulableError
    from ray.train import ControllerError

    failures = 0
    while True:
        try:
            end = _fit(group, rank, start, recorder)
        except ActorUnschedulableError as error:
            # Ray Train's own actors belong here, and a node that is drained begins none.
            raise RunError(
                f"run {rank.training.name!r}: this driver's own node is being taken away, and no "
                "worker begins any more. The same command, on another cluster, continues it from "
                "its last checkpoint."
            ) from error
        except (ControllerError, *actor_deaths()) as error:
            # Ray replaces dead workers, not its own actors, which a lack of memory takes as well.
            failures += 1
            if failures > group.max_failures:
                raise _cause(error, rank, group.max_failures) from error
            said = " ".join(str(error).strip().splitlines()[:2])
            logger.warning("Ray Train's own actors died; its workers start again: %s", said)
            _free_reservations()
            continue
        if end.ended.reason != "drained":
            return end
        logger.info(
            "a node is being taken away: the workers left a checkpoint at step %d and start again "
            "where there is room",
            end.ended.step,
        )


def _free_reservations() -> None:
    """Removes the placement groups of this driver: a controller that dies leaves its own reserved.

    Seen with Ray 2.60: the workers of the next one then wait for the same cores for ever.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table

    job = ray.get_runtime_context().get_job_id()
    for name, found in placement_group_table().items():
        # An id ends with that of the job which made it.
        if name.endswith(job) and found["state"] != "REMOVED":
            made = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name)))
            ray.util.remove_placement_group(made)


def _fit(group: GroupSettings, rank: RankSettings, start: Start, recorder: str) -> RankEnd:
    """Runs the Ray Train workers to the end; returns what rank 0's `run_rank` returned."""
    from ray.train import (
        ControllerError,
        FailureConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
    )
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = _uses_gpu(group)
    fewest, most = group.min_workers, group.max_workers
    trainer = TorchTrainer(
        partial(_ray_worker, rank, start, recorder),
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=use_gpu,
            resources_per_worker=_resources(group, use_gpu=use_gpu),
        ),
        torch_config=TorchConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=ceil(group.stall_seconds)
        ),
        run_config=RunConfig(
            name=f"{rank.training.name}-{start.name}-{uuid.uuid4().hex[:8]}",
            # Ray's own bookkeeping of this start only; our checkpoints never go through it.
            storage_path=str(
                storage.local_path(rank.run.path("ray")) or Path(tempfile.gettempdir())
            ),
            failure_config=FailureConfig(max_failures=group.max_failures),
        ),
    )
    try:
        end: RankEnd | FatalError = _in_a_thread(trainer.fit).return_value
    except ControllerError:
        raise
    except TrainingFailedError as error:
        raise _cause(error, rank, group.max_failures) from error
    if isinstance(end, FatalError):
        raise RunError(end.message)
    return end


def _in_a_thread(function: Callable[[], Result]) -> Result:
    """Calls it in a thread of its own.

    In the main one Ray's `fit` puts its own handler of Ctrl-C in place of ours, which aborts the
    workers without a checkpoint.
    """
    done: Future[Result] = Future()

    def call() -> None:
        try:
            done.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            done.set_exception(error)

    # A daemon: a second Ctrl-C ends this process without it.
    threading.Thread(target=call, name="fit", daemon=True).start()
    return done.result()


def _uses_gpu(group: GroupSettings) -> bool:
    import ray

    return bool(ray.cluster_resources().get("GPU", 0) >= group.min_workers)


def _each(group: GroupSettings) -> dict[str, float]:
    """What Ray keeps for one worker, its own defaults too."""
    use_gpu = _uses_gpu(group)
    default = {"GPU": 1.0} if use_gpu else {"CPU": 1.0}
    return _resources(group, use_gpu=use_gpu) or default


def _resources(group: GroupSettings, *, use_gpu: bool) -> dict[str, float] | None:
    """What Ray keeps for each worker; it also sets OMP_NUM_THREADS by it, unless a user has."""
    import ray

    cores = group.cpus_per_worker
    if cores is None and os.environ.get("RAY_ADDRESS"):
        return None
    share = int(ray.cluster_resources()["CPU"]) // group.max_workers
    return {"CPU": cores or max(1, share), **({"GPU": 1} if use_gpu else {})}


def _ray_worker(rank: RankSettings, start: Start, name: str) -> RankEnd | FatalError:
    """What each Ray Train worker runs; an error of ours ends the run instead of a retry.

    `name` is the recorder actor's.
    """
    import ray
    from ray.train.torch import get_device

    world = current_world(get_device())
    recorder = ray.get_actor(name)
    # Ray starts the workers again after any exception: what can't get better is not tried again.
    fatal = ray.get(recorder.fatal_error.remote())
    if fatal:
        return FatalError(fatal)
    try:
        with warnings_told(recorder, world.rank):
            return run_rank(
                rank,
                start,
                world,
                ActorRecorder(recorder) if world.rank == 0 else None,
                node_is_drained,
            )
    except PipelineError as error:
        ray.get(recorder.set_fatal_error.remote(str(error)))
        raise


def _cause(error: Exception, rank: RankSettings, restarts: int) -> PipelineError:
    """Our own error behind Ray's, or one that says which workers failed, and how."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        base = getattr(failure, "_base_exc", failure)
        if isinstance(base, PipelineError):
            return base
    lines = [
        line
        for number, failure in failures.items()
        for line in f"rank {number}: {str(failure).strip()[-2000:]}".splitlines()
    ]
    return RunError(
        f"run {rank.training.name!r} failed after {restarts} restarts of its workers. The same "
        "command continues it from its last checkpoint.",
        below=lines or str(error).splitlines(),
    )
