"""Day 2 for real: a dump and copies of the buckets bring everything back; MLflow's upgrade."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import psycopg2
import pytest
import sqlalchemy

from jobs.models import main as models
from jobs.verify import main as verify
from pipeline.commands.train import run_training
from pipeline.config import ModelConfig, ModelsConfig, TrainConfig, VerifyConfig
from pipeline.registry.named_models import load_named
from tests.docs.blocks import ROOT, blocks
from tests.servers import postgres as postgresql
from tests.servers.mlflow import MlflowServer
from tests.servers.postgres import NAME, PASSWORD
from tests.support.digit_models import pack_digits

pytestmark = pytest.mark.chaos


def program(name: str) -> str:
    found = postgresql._program(name)
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not installed: `make servers` installs it")
    return found


def database(server: postgresql.PostgresServer, name: str) -> str:
    """A new, empty database of that name; its URI."""
    connection = psycopg2.connect(
        host="127.0.0.1", port=server.port, user=NAME, password=PASSWORD, dbname="postgres"
    )
    connection.autocommit = True
    connection.cursor().execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"{server.uri.rpartition('/')[0]}/{name}"


def on_database(server: postgresql.PostgresServer, *command: str) -> None:
    """One of PostgreSQL's own commands, with its connection in the environment as in the docs."""
    environment = {
        **os.environ, "PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": NAME,
        "PGPASSWORD": PASSWORD,
    }  # fmt: skip
    done = subprocess.run(
        [program(command[0]), *command[1:]], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def servers() -> Iterator[list[MlflowServer]]:
    started: list[MlflowServer] = []
    yield started
    for server in started:
        server.stop()


def tracked_run(server: MlflowServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The version that a first run in SITE ends with, registered at a server that is started."""
    pack_digits(folder / "site")
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return train(folder / "site", 3)


def train(folder: Path, steps: int) -> int:
    """The registered version that a run in this folder ends with."""
    done = run_training(TrainConfig(
        data=str(folder / "data"), holdout=str(folder / "data"), run="kept",
        storage=str(folder / "runs"), steps=steps, global_batch_size=20, image_size=8, channels=1,
        workers=0, model=ModelConfig(kind="mlp", latent_channels=2, width=8),
    ))  # fmt: skip
    assert done.steps == steps
    assert done.model_version is not None
    return done.model_version


def test_a_dump_and_copies_of_the_buckets_bring_back_models_runs_and_datasets(
    postgres: postgresql.PostgresServer,
    servers: list[MlflowServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mlflow").mkdir()
    servers.append(MlflowServer(tmp_path / "mlflow", database(postgres, "before")))
    first = tracked_run(servers[0], tmp_path, monkeypatch)
    digest = load_named(f"models:/kept/{first}", "", ())[0].digest

    dump = str(tmp_path / "mlflow.dump")
    on_database(postgres, "pg_dump", "--format=custom", "--file", dump, "before")
    shutil.copytree(tmp_path / "mlflow/artifacts", tmp_path / "backup/artifacts")
    shutil.copytree(tmp_path / "site", tmp_path / "backup/site")

    train(tmp_path / "site", 4)  # what comes after the backup is lost
    servers[0].stop()
    for folder in ("mlflow", "site"):
        shutil.rmtree(tmp_path / folder)
    database(postgres, "before")

    (tmp_path / "again").mkdir()
    uri = database(postgres, "restored")
    on_database(
        postgres, "pg_restore", "--no-owner", "--exit-on-error", "--dbname", "restored", dump
    )
    shutil.copytree(tmp_path / "backup/artifacts", tmp_path / "again/artifacts")
    shutil.copytree(tmp_path / "backup/site", tmp_path / "site")
    servers.append(MlflowServer(tmp_path / "again", uri, servers[0].port))
    servers[1].start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers[1].uri)

    assert load_named("models:/kept@candidate", "", ())[0].digest == digest
    every: Any = models(ModelsConfig()).result["models"]
    (listed,) = [model for model in every if model["name"] == "kept"]
    assert [row["digest"] for row in listed["versions"]] == [digest]
    assert verify(VerifyConfig(dataset=str(tmp_path / "site/data"))).exit_code == 0
    client = mlflow.MlflowClient(servers[1].uri)
    (run,) = client.search_runs([client.get_experiment_by_name("vae").experiment_id])
    points = [
        point.step
        for name in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, name)
    ]
    assert 0 <= max(points, default=-1) <= 3, "what the dump had"
    assert train(tmp_path / "site", 6) == first + 1, "the run goes on, and is registered anew"


def test_a_run_that_ended_after_the_dump_is_registered_again_by_its_own_command(
    postgres: postgresql.PostgresServer,
    servers: list[MlflowServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its folder, copied later than the database, says that it is registered."""
    (tmp_path / "mlflow").mkdir()
    servers.append(MlflowServer(tmp_path / "mlflow", database(postgres, "older")))
    first = tracked_run(servers[0], tmp_path, monkeypatch)
    dump = str(tmp_path / "mlflow.dump")
    on_database(postgres, "pg_dump", "--format=custom", "--file", dump, "older")
    second = train(tmp_path / "site", 4)
    servers[0].stop()
    uri = database(postgres, "older_again")
    on_database(
        postgres, "pg_restore", "--no-owner", "--exit-on-error", "--dbname", "older_again", dump
    )
    servers.append(MlflowServer(tmp_path / "mlflow", uri, servers[0].port))
    servers[1].start()
    client = mlflow.MlflowClient(servers[1].uri)
    versions = [each.version for each in client.search_model_versions("name = 'kept'")]
    assert [int(version) for version in versions] == [first]
    assert train(tmp_path / "site", 4) == second
    assert "as after a restore from an older copy" in caplog.text
    again = client.get_model_version("kept", str(second))
    assert "holdout_elbo" in again.tags
    assert load_named(f"models:/kept/{second}", "", ())[0].digest == again.tags["digest"]


@pytest.fixture
def database_of_its_own() -> Iterator[postgresql.PostgresServer]:
    program("pg_dump")
    # A short path, which the server's own user can enter.
    server = postgresql.start(Path(tempfile.mkdtemp(prefix="pg-")))
    yield server
    server.stop()


def test_the_dump_and_the_restore_of_a_cluster_bring_the_database_back_as_they_are_written(
    database_of_its_own: postgresql.PostgresServer, tmp_path: Path
) -> None:
    """What docs/operations.md has `kubectl exec` run in the pod of PostgreSQL."""
    server, page = database_of_its_own, "\n".join(blocks(ROOT / "docs/operations.md", "bash"))
    dump, *restore = re.findall(r"^kubectl -n vae exec .*statefulset/postgres -- (.*)$", page, re.M)
    environment = {
        **os.environ, "PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGPASSWORD": PASSWORD,
        "PATH": f"{Path(program('pg_dump')).parent}:{os.environ['PATH']}",
    }  # fmt: skip

    def run(line: str) -> None:
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    with contextlib.closing(psycopg2.connect(server.uri.replace("+psycopg2", ""))) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE kept AS SELECT 7 AS number")
        connection.commit()
        run(dump)
        cursor.execute("UPDATE kept SET number = 8")
        connection.commit()
        # This session is still there, as one of a server that has not ended may be.
        for line in restore:
            run(line)
    with contextlib.closing(psycopg2.connect(server.uri.replace("+psycopg2", ""))) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT number FROM kept")
        assert cursor.fetchall() == [(7,)]


def answer_of(*arguments: str) -> str:
    """What a program of Python prints, which ends well."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def version_of(uri: str) -> str:
    """The revision of MLflow's tables in a database."""
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        found = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version"))
        revision = str(found.scalar())
    engine.dispose()
    return revision


@pytest.mark.parametrize("revisions", [1, 26, 44])
def test_mlflow_db_upgrade_keeps_runs_numbers_and_aliases_of_an_older_schema(
    postgres: postgresql.PostgresServer,
    servers: list[MlflowServer],
    tmp_path: Path,
    revisions: int,
) -> None:
    uri = database(postgres, "older")
    old = answer_of("-m", "tests.servers.older_mlflow", uri, str(revisions)).split()[-1]
    assert version_of(uri) == old
    answer_of("-m", "mlflow", "db", "upgrade", uri)
    assert version_of(uri) != old
    servers.append(MlflowServer(tmp_path, uri))
    servers[0].start()
    client = mlflow.MlflowClient(servers[0].uri)
    assert client.get_experiment_by_name("old").experiment_id == "7"
    assert [p.value for p in client.get_metric_history("a1b2", "train/elbo")] == [-336.75]
    assert client.get_model_version_by_alias("vae", "champion").run_id == "a1b2"
