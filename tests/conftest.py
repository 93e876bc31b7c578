"""Real servers for tests, started once a session; what is not installed skips its tests by name."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import rgw

_USERS_OWN = ("AWS_", "MLFLOW_", "RAY_ADDRESS", "WORLD_SIZE", "RANK")


@pytest.fixture(scope="session", autouse=True)
def _no_environment_of_the_users() -> Iterator[None]:
    """Tests must not reach the user's buckets, MLflow or cluster."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_USERS_OWN)}
    yield
    os.environ.update(kept)


@pytest.fixture(scope="session")
def _s3_process() -> Iterator[rgw.S3Server]:
    _need("Ceph's S3 gateway", rgw.missing_programs())
    # A short path: the daemons' sockets may not exceed 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="rgw-"))
    server = rgw.start(folder)
    yield server
    server.stop()


@pytest.fixture
def s3_server(_s3_process, monkeypatch) -> rgw.S3Server:
    """A real S3 server, to which this test's environment points."""
    for name, value in _s3_process.environment.items():
        monkeypatch.setenv(name, value)
    return _s3_process


def _need(server: str, missing: list[str]) -> None:
    """Skips for want of a server; fails where all of them must be there."""
    if not missing:
        return
    message = f"{server} is not installed ({', '.join(missing)}): `make servers` installs it"
    if os.environ.get("REQUIRE_SERVERS"):
        pytest.fail(message)
    pytest.skip(message)
