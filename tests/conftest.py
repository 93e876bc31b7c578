"""Real servers for tests, started once a session; what is not installed skips its tests by name."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from tests.servers import postgres as postgresql
from tests.servers import rgw
from tests.servers.fault_proxy import FaultProxy
from tests.servers.mlflow import MlflowServer
from tests.servers.prometheus import PrometheusServer
from tests.servers.prometheus import missing_programs as prometheus_missing
from tests.support.chromium import Tab, chromium
from tests.support.chromium import missing_programs as chromium_missing

# As the jobs have it: a thread that waits for the next layer sleeps, instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
_SERVERS = {"_s3_process", "_mlflow_process", "postgres", "prometheus", "browser"}
_STARTERS = {
    "multiprocessing", "ray", "subprocess", "torch.multiprocessing", "pipeline.commands.train",
    *(f"tests.support.{name}" for name in ("killing", "submitting", "warm", "watching", "worlds")),
}  # fmt: skip
_LONGEST = (
    "tests/integration/test_interruption", "tests/integration/test_survival", "tests/walks/",
    "tests/integration/", "tests/docs/", "tests/damage/", "tests/jobs/",
    "tests/pipeline/training/", "tests/benchmarks/", "tests/pipeline/commands/",
    "tests/pipeline/cluster/", "tests/failures/", "tests/pipeline/explanation/",
    "tests/pipeline/pace/", "tests/pipeline/packing/",
)  # fmt: skip
"""Two workers take whole files in this order: one waits for the other where a long one is last."""
_USERS_OWN = ("AWS_", "MLFLOW_", "RAY_ADDRESS", "WORLD_SIZE", "RANK")


def pytest_configure() -> None:
    """Of workers side by side (`pytest -n`), each computes with one thread; Ctrl-C is on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A script that starts tests by `&` turns it off for all that they start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `make check` leaves out; puts the longest first."""
    for item in items:
        if _starts_processes(item):
            item.add_marker("process")
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    """The longest come first."""
    starts = (number for number, each in enumerate(_LONGEST) if item.nodeid.startswith(each))
    return next(starts, len(_LONGEST))


def _starts_processes(item: pytest.Item) -> bool:
    """Whether a test takes a server or runs whole jobs, or its file knows what starts processes."""
    jobs = ("tests/benchmarks/", "tests/integration/", "tests/jobs/", "tests/pipeline/commands/")
    if _SERVERS & set(getattr(item, "fixturenames", ())) or item.nodeid.startswith(jobs):
        return True
    known = vars(getattr(item, "module", None) or pytest).values()
    return any(
        getattr(value, "__module__", None) in _STARTERS or value.__name__ in _STARTERS
        for value in known
        if isinstance(value, ModuleType | FunctionType | type)
    )


@pytest.fixture(scope="session", autouse=True)
def _no_environment_of_the_users() -> Iterator[None]:
    """Tests must not reach the user's buckets, MLflow or cluster."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_USERS_OWN)}
    yield
    os.environ.update(kept)


@pytest.fixture(autouse=True)
def _no_server_of_another_test() -> Iterator[None]:
    """MLflow writes the server that it is told of into the environment, for all jobs to come."""
    before = {name: os.environ[name] for name in os.environ if name.startswith("MLFLOW_")}
    yield
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def _s3_process() -> Iterator[rgw.S3Server]:
    _need("Ceph's S3 gateway", rgw.missing_programs())
    # A short path: the daemons' sockets may not exceed 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="rgw-"))
    server = rgw.start(folder)
    yield server
    server.stop()


@pytest.fixture
def s3_server(_s3_process: rgw.S3Server, monkeypatch: pytest.MonkeyPatch) -> rgw.S3Server:
    """A real S3 server, to which this test's environment points."""
    for name, value in _s3_process.environment.items():
        monkeypatch.setenv(name, value)
    return _s3_process


@pytest.fixture(scope="session")
def _mlflow_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow")
    server = MlflowServer(folder, f"sqlite:///{folder}/mlflow.db")
    yield server
    server.stop()


@pytest.fixture
def mlflow_server(_mlflow_process: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    """A real MLflow server on sqlite, running, to which this test's environment points."""
    return _pointed_to(_mlflow_process, monkeypatch)


@pytest.fixture(scope="session")
def _new_mlflow_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.tracking.mlflow_client import mlflow_client

    file = tmp_path_factory.mktemp("mlflow-file") / "mlflow.db"
    mlflow_client(f"sqlite:///{file}")
    return file


@pytest.fixture
def mlflow_file(_new_mlflow_file: Path, tmp_path: Path) -> str:
    """The URI of an MLflow file of this test's own; to make its tables anew takes a second."""
    return f"sqlite:///{shutil.copy(_new_mlflow_file, tmp_path)}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgresql.PostgresServer]:
    """A real PostgreSQL server with an empty database."""
    _need("PostgreSQL", postgresql.missing_programs())
    # A short path, which the server's own user can enter.
    server = postgresql.start(Path(tempfile.mkdtemp(prefix="pg-")))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _mlflow_on_postgres_process(
    postgres: postgresql.PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow-on-postgres"), postgres.uri)
    yield server
    server.stop()


@pytest.fixture
def mlflow_on_postgres(
    _mlflow_on_postgres_process: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> MlflowServer:
    """A real MLflow server on PostgreSQL, running, to which this test's environment points."""
    return _pointed_to(_mlflow_on_postgres_process, monkeypatch)


def _pointed_to(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return server


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """A real Prometheus with a Pushgateway: asks what its `scrape` is told of, every second."""
    _need("Prometheus", prometheus_missing())
    server = PrometheusServer(tmp_path_factory.mktemp("prometheus"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def browser() -> Iterator[Tab]:
    """A page in a real Chromium with a new profile, without a window."""
    _need("Chromium", chromium_missing())
    with chromium() as tab:
        yield tab


@pytest.fixture
def fault_proxy(s3_server: rgw.S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The real S3 server behind a proxy that fails by its `rules`; the environment says so."""
    with FaultProxy(s3_server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def _need(server: str, missing: list[str]) -> None:
    """Skips for want of a server; fails where all of them must be there."""
    if not missing:
        return
    message = f"{server} is not installed ({', '.join(missing)}): `make servers` installs it"
    if os.environ.get("REQUIRE_SERVERS"):
        pytest.fail(message)
    pytest.skip(message)
