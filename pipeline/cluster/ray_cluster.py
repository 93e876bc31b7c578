"""Joining a Ray cluster, or starting a quiet local one that ends with this process."""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline import storage
from pipeline.progress import phase

# Ray reads these when it is imported; what a user has set wins.
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


@contextmanager
def ray_cluster(cpus: int) -> Iterator[None]:
    """A connection to the cluster at RAY_ADDRESS, else to a new local one with at least `cpus`.

    The local cluster listens on loopback behind a random token, keeps its files in a temporary
    folder and ends with the block. A connection that exists already is used and kept.
    """
    remote = bool(os.environ.get("RAY_ADDRESS"))
    for name, value in (_DEFAULTS if remote else _DEFAULTS | _own_token()).items():
        os.environ.setdefault(name, value)
    import ray  # Its C++ half reads the environment at this moment, and only then.

    if ray.is_initialized():
        yield
        return
    if remote:
        with phase(f"joining the Ray cluster at {os.environ['RAY_ADDRESS']}"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()
        return
    # A short path: the sockets inside may not exceed 107 characters.
    with storage.temporary_folder("vae-ray-") as folder:
        try:
            with phase("starting Ray on this machine"):
                ray.init(
                    address="local",
                    num_cpus=max(cpus, os.cpu_count() or 1),
                    include_dashboard=False,
                    object_store_memory=256 * 2**20,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=str(folder),
                )
            yield
        finally:
            ray.shutdown()


def _own_token() -> dict[str, str]:
    """A random token: without one Ray would write its own to the home folder, for all to read."""
    if "RAY_AUTH_TOKEN_PATH" in os.environ:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(24)}


def cluster_resources() -> dict[str, float]:
    """What the joined cluster has in all, by name: `CPU`, `GPU`, ..."""
    import ray

    return dict(ray.cluster_resources())
