"""Packing on a Ray cluster: each unit of a plan is a task, on any node that has a core to spare."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, TypeVar

from pipeline import storage
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.config import PackConfig
from pipeline.errors import ConfigError, DatasetError, PipelineError
from pipeline.packing.commit import PackResult
from pipeline.packing.pack import pack

Result = TypeVar("Result")
_RETRIES = 5
"""Of a unit whose worker or node died: it starts anew, and ends in the same bytes."""


class RayExecutor(Executor):
    """`submit` starts a Ray task of one core; a future's error is the task's own."""

    def __init__(self) -> None:
        import ray

        self._call = ray.remote(num_cpus=1, max_retries=_RETRIES)(_call)

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> "Future[Result]":
        """As `Executor.submit`."""
        found: Future[Result] = self._call.remote(partial(fn, *args, **kwargs)).future()
        return found


def pack_on_ray(config: PackConfig) -> PackResult:
    """`pack`, with its units as tasks of the cluster at RAY_ADDRESS.

    Raises `ConfigError` for local files where the cluster has several nodes: others would not see
    them.
    """
    with ray_cluster(1):
        import ray  # not before the cluster's environment is set
        from ray.exceptions import RayError, RayTaskError

        nodes = sum(node["Alive"] for node in ray.nodes())
        local = [url for url in (*config.source, config.output) if storage.local_path(url)]
        if nodes > 1 and local:
            raise ConfigError(
                f"{local[0]}: is a local path, and the cluster at RAY_ADDRESS has {nodes} nodes, "
                "which do not share it. Give URLs such as s3://, or unset RAY_ADDRESS."
            )
        try:
            return pack(config, RayExecutor())
        except RayTaskError as error:
            if isinstance(error.cause, PipelineError):
                raise error.cause from None
            raise
        except RayError as error:
            raise DatasetError(
                f"a packing task died {_RETRIES + 1} times: {str(error).splitlines()[0]} Run the "
                "same command again: finished shards are kept."
            ) from error


def _call(work: Callable[[], Result]) -> Result:
    return work()
