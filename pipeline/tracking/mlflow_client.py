"""MLflow's client, quiet, with time-outs that a training run can live with."""

import fcntl
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import SplitResult, urlsplit

from pipeline import storage
from pipeline.errors import PipelineError, TrackingError, first_line
from pipeline.masking import masked, safe_line, shell_word
from pipeline.web import ask

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = "runs"
_SILENT_SECONDS = 5.0
"""A healthy server answers within one."""
_QUIET_SECONDS = 60.0
"""Between two words on a server that is down."""
_SERVED = ("mlflow-artifacts", "http", "https", "ftp", "sftp")
"""Schemes of artifacts that somebody's server is asked for, with what opens MLflow's."""

# A refused connection blocks a call for 4 minutes with MLflow's own numbers, a black hole for 20.
_OPTIONS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # Otherwise a server that passes artifacts on sends us past itself, to storage that we may not
    # reach and have no keys for: a download from a cluster's inside tried that for minutes.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


class _Told:
    at: ClassVar[float] = -math.inf


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else sqlite under ./runs (made if missing)."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        Path(DEFAULT_FOLDER).mkdir(exist_ok=True)
    return asked_uri()


def asked_uri() -> str:
    """As `tracking_uri`, and makes nothing: for who only reads."""
    default = f"sqlite:///{Path(DEFAULT_FOLDER).absolute() / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


def holds_nothing(uri: str) -> bool:
    """Whether `uri` is a sqlite file that nobody has made yet; opening it would make it."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


def mlflow_client(uri: str) -> Any:
    """An `MlflowClient` for tracking and registry; needs no server for `sqlite:` URIs."""
    for name, value in _OPTIONS.items():
        os.environ.setdefault(name, value)
    import mlflow

    # Tables, look-ups, retries: nothing to act on; what fails in the end is raised.
    for name in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Not `set_tracking_uri`: it writes into the environment of whoever imports us, for good.
    with tracking_errors(uri), _alone(uri):
        try:
            _ = urlsplit(uri).port  # Raises for an address that is none, which MLflow does later.
            return mlflow.MlflowClient(uri, uri)
        except _faults() as error:
            raise TrackingError(
                f"MLflow at {storage.shown(uri)} can't be opened: "
                f"{safe_line(first_line(error)).rstrip(' .')}. {_cure(error)}name another by "
                "`export MLFLOW_TRACKING_URI=URI`."
            ) from None


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time makes or upgrades a sqlite file's tables; two of them fail halfway."""
    lock = Path(uri.removeprefix("sqlite:///") + ".lock")
    if not uri.startswith("sqlite:///") or not lock.parent.is_dir():
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def artifact_location(uri: str) -> str | None:
    """Where a new experiment's artifacts go: beside a sqlite file, else the server decides."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).parent.absolute() / "artifacts").as_uri()


def check_artifacts_root(root: str, uri: str) -> None:
    """Raises `TrackingError` where MLflow's client would ask another server than the one at `uri`.

    It sends the user's password or token to whatever host an experiment's artifact location names,
    and whoever made the experiment chose that.
    """
    try:
        place, server = urlsplit(root), urlsplit(uri)
        asks = place.scheme in _SERVED
        is_own = place.scheme == "mlflow-artifacts" and (
            not place.netloc or ("@" not in place.netloc and _host(place, server) == _host(server))
        )
    except ValueError:  # A port that is no number.
        asks, is_own = True, False
    if asks and not is_own:
        raise TrackingError(
            f"MLflow at {storage.shown(uri)} keeps these artifacts at {storage.shown(root)}, which "
            "is another server: it would get the password or token that is meant for this one. It "
            "was not asked. Use an experiment of this server's own: `--tracking.experiment NAME`."
        )


def _host(place: SplitResult, server: SplitResult | None = None) -> tuple[str | None, int | None]:
    """Host and port; the scheme's own port where none is named, and the server's scheme counts."""
    ports = {"http": 80, "https": 443}
    return place.hostname, place.port or ports.get((server or place).scheme)


def name_is(name: str) -> str:
    """MLflow's filter for what is called so; it knows two kinds of quotes, and no escapes.

    Raises `TrackingError` for a name that holds both, or a backslash: it might be read as more of
    the filter.
    """
    quote = '"' if "'" in name else "'"
    if quote in name or "\\" in name:
        raise TrackingError(
            f"the name {name!r} can't be looked up in MLflow: it holds both kinds of quotes, or a "
            "backslash. Give a name without."
        )
    return f"name = {quote}{name}{quote}"


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Turns MLflow's own failures into one `TrackingError` that says what to look at."""
    from mlflow.exceptions import MlflowException

    try:
        with _told_of_silence(uri):
            yield
    except MlflowException as error:
        where = storage.shown(uri)
        # MLflow names its server with user and password.
        said = masked(first_line(error))
        raise TrackingError(
            f"MLflow at {where} failed: {said.rstrip(' .')}. {_advice(str(error), where)}"
        ) from None


def _faults() -> tuple[type[Exception], ...]:
    """What is raised for an address that is none, or whose database has no driver here."""
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return ImportError, ValueError
    return ImportError, ValueError, SQLAlchemyError


def _cure(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return f"Install the driver `{shell_word(error.name or 'of that database')}`, or "
    return "Give an address such as https://HOST or sqlite:///FILE, or "


@contextmanager
def _told_of_silence(uri: str) -> Iterator[None]:
    """Says within seconds that a server is down: MLflow's client tries on unheard."""
    if not uri.startswith(("http://", "https://")):
        yield
        return
    timer = threading.Timer(_SILENT_SECONDS, _tell_if_down, [uri])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tell_if_down(uri: str) -> None:
    try:
        ask("GET", f"{uri.rstrip('/')}/health", seconds=_SILENT_SECONDS)
    except PipelineError as error:
        now = time.monotonic()
        if now - _Told.at > _QUIET_SECONDS:
            _Told.at = now
            logger.warning("MLflow is waited for, and tried again: %s", error)


def _advice(said: str, where: str) -> str:
    """What to look at: a server that refuses is there, and one that is not can't refuse."""
    another = "name another by `export MLFLOW_TRACKING_URI=URI`"
    if re.search(r"\b40[13]\b|PERMISSION_DENIED|UNAUTHENTICATED", said):
        return (
            "It answers and refuses: give `export MLFLOW_TRACKING_USERNAME=NAME "
            "MLFLOW_TRACKING_PASSWORD=PASSWORD`, or start it with --allowed-hosts for this host "
            f"name; or {another}."
        )
    if re.search(r"[Mm]ax retries|[Cc]onnection|timed out|resolve", said):
        return f"Nothing answers at {where}: start it, or {another}."
    if "://" not in where:
        return f"{where} is no MLflow's address, as https://HOST or sqlite:///FILE: {another}."
    return f"If this is not the MLflow that you mean, {another}."
