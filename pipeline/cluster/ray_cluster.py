"""Joining a Ray cluster, or starting a quiet local one that ends with this process."""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline import storage
from pipeline.config.import_path import imports_from_here
from pipeline.errors import ClusterError
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


_LISTENS_SECONDS = 5.0
"""A head that is only just starting is given that long."""


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
        address = os.environ["RAY_ADDRESS"]
        with phase(f"joining the Ray cluster at {address}"), _told_as_ours(address):
            _refuse_closed(address)
            with _own_handler():
                ray.init(
                    log_to_driver=False, logging_level=logging.ERROR, job_config=_import_paths()
                )
        try:
            yield
        finally:
            ray.shutdown()
        return
    # A short path: the sockets inside may not exceed 107 characters.
    with storage.temporary_folder("vae-ray-") as folder:
        try:
            with phase("starting Ray on this machine"), _told_as_ours(None), _own_handler():
                ray.init(
                    address="local",
                    num_cpus=max(cpus, os.cpu_count() or 1),
                    include_dashboard=False,
                    object_store_memory=256 * 2**20,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    job_config=_import_paths(),
                    _temp_dir=str(folder),
                )
            yield
        finally:
            ray.shutdown()


def _import_paths() -> Any:
    """Ray's settings of a job whose workers import from where this process does.

    Left alone, Ray puts the working folder first for them, whatever lies there.
    """
    from ray.job_config import JobConfig

    class _NotFromHere(JobConfig):  # type: ignore[misc]  # Ray has no types here
        def _runtime_env_has_working_dir(self) -> bool:
            return True  # Where there is one, Ray adds no folder of the driver.

    return JobConfig() if imports_from_here() else _NotFromHere()


@contextmanager
def _own_handler() -> Iterator[None]:
    """SIGTERM goes on to mean what it did: `ray.init` would have it end the process on the spot.

    What Ray starts here ignores that a window is closed, as it does Ctrl-C: it ends with us.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, hung_up or signal.SIG_DFL)


def _refuse_closed(address: str) -> None:
    """Raises `OSError` where nothing listens for some seconds: Ray itself would wait for minutes.

    Of an address without a port (`auto`) nothing is known here.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return
    end = time.monotonic() + _LISTENS_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _LISTENS_SECONDS).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
        else:
            return


@contextmanager
def _told_as_ours(address: str | None) -> Iterator[None]:
    """Turns what Ray raises while it starts (None) or is joined into one `ClusterError`."""
    import ray

    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(
            f"RAY_ADDRESS {address}: the Ray cluster there refused this process's token: "
            f"{_first_line(error)} Give it: `export RAY_AUTH_TOKEN=TOKEN`, or its file by "
            "`export RAY_AUTH_TOKEN_PATH=PATH`."
        ) from error
    except Exception as error:  # Ray raises that very class where its own start takes over 30 s.
        if address is None:
            raise ClusterError(
                f"Ray did not start on this machine: {_first_line(error)} On one that is busy or "
                "short of memory it may with less beside it: run the same command again."
            ) from error
        raise ClusterError(
            f"RAY_ADDRESS {address}: no Ray cluster could be joined there: {_first_line(error)} "
            "Start one there, `export RAY_ADDRESS=ADDRESS` of another, or `unset RAY_ADDRESS`: Ray "
            "then starts on this machine."
        ) from error


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if line.endswith(".") else f"{line}."


def _own_token() -> dict[str, str]:
    """A random token: without one Ray would write its own to the home folder, for all to read."""
    imported = "ray" in sys.modules
    if "RAY_AUTH_TOKEN_PATH" in os.environ or (imported and "RAY_AUTH_MODE" in os.environ):
        # A cluster was started or joined before in this process, which remembers that one's token.
        return {}
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(24)}
    # Where Ray was imported before, its servers would see this mode and its clients would not;
    # unset, ray.init itself asks for the token on both sides.
    return token if imported else {"RAY_AUTH_MODE": "token", **token}


def cluster_resources() -> dict[str, float]:
    """What the joined cluster has in all, by name: `CPU`, `GPU`, ..."""
    import ray

    return dict(ray.cluster_resources())
