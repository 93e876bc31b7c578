"""A real PostgreSQL server for tests, on loopback, in a process group of its own."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from tests.servers.rgw import free_ports

NAME, PASSWORD = "mlflow", "test"
PROGRAMS = Path("/usr/lib/postgresql")


@dataclass
class PostgresServer:
    """One empty database, owned by its only user."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def uri(self) -> str:
        """As SQLAlchemy wants it."""
        return f"postgresql+psycopg2://{NAME}:{PASSWORD}@127.0.0.1:{self.port}/{NAME}"

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def missing_programs() -> list[str]:
    return [] if _program("postgres") else ["postgresql"]


def start(folder: Path) -> PostgresServer:
    """Makes a database below `folder`, and returns when it answers."""
    (folder / "password").write_text(PASSWORD)
    # PostgreSQL refuses to run as root; Debian's package made this user.
    user: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    if user:
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")
    port, data = free_ports(1)[0], str(folder / "data")
    programs = (_program("initdb") or "initdb", _program("postgres") or "postgres")
    initdb = (
        programs[0], "-D", data, "-U", NAME, "--auth=scram-sha-256", "-E", "UTF8",
        "--pwfile", str(folder / "password"),
    )  # fmt: skip
    subprocess.run(initdb, cwd=folder, check=True, capture_output=True, timeout=120, **user)
    server = (
        programs[1], "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", str(folder),
        "-c", "fsync=off",
    )  # fmt: skip
    with (folder / "postgres.log").open("w") as log:
        process = subprocess.Popen(
            server, cwd=folder, stdout=log, stderr=log, start_new_session=True, **user
        )
    started = PostgresServer(folder, port, process)
    deadline = time.monotonic() + 600
    while True:
        try:
            _create_database(port)
        except psycopg2.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                log_text = (folder / "postgres.log").read_text()
                started.stop()
                raise AssertionError(log_text) from None
            time.sleep(0.1)
        else:
            return started


def _create_database(port: int) -> None:
    connection = psycopg2.connect(
        host="127.0.0.1", port=port, user=NAME, password=PASSWORD, dbname="postgres"
    )
    connection.autocommit = True
    try:
        connection.cursor().execute(f"CREATE DATABASE {NAME}")
    finally:
        connection.close()


def _program(name: str) -> str | None:
    found = sorted(PROGRAMS.glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)
