"""A database as an older MLflow made it, with a run and a model in it: URI MIGRATIONS_AGO.

Made by MLflow's own migrations, in a process of its own: its modules warn when they are imported.
"""

import sys

import sqlalchemy
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base as Initial


def older_schema(uri: str, revisions: int) -> str:
    """Makes it in an empty database; the revision that its tables are of."""
    engine, config = sqlalchemy.create_engine(uri), _get_alembic_config(uri)
    Initial.metadata.create_all(engine)
    history = list(ScriptDirectory.from_config(config).walk_revisions())
    old = history[revisions].revision
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, old)
    with engine.begin() as connection:
        for row in (
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
            "VALUES (7, 'old', 'mlflow-artifacts:/7', 'active')",
            "INSERT INTO runs (run_uuid, name, user_id, status, start_time, end_time, "
            "lifecycle_stage, artifact_uri, experiment_id, source_type, source_name, "
            "entry_point_name, source_version) VALUES ('a1b2', 'r', 'u', 'FINISHED', 1, 2, "
            "'active', 'mlflow-artifacts:/7/a1b2/artifacts', 7, 'LOCAL', 's', '', '')",
            "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) "
            "VALUES ('train/elbo', -336.75, 1, 'a1b2', 400, false)",
            "INSERT INTO registered_models (name, creation_time, last_updated_time, description) "
            "VALUES ('vae', 1, 1, '')",
            "INSERT INTO registered_model_aliases (name, alias, version) "
            "VALUES ('vae', 'champion', 1)",
            "INSERT INTO model_versions (name, version, creation_time, last_updated_time, "
            "current_stage, source, run_id, status) "
            "VALUES ('vae', 1, 1, 1, 'None', 'mlflow-artifacts:/7/a1b2/artifacts/bundle', "
            "'a1b2', 'READY')",
        ):
            connection.execute(sqlalchemy.text(row))
    engine.dispose()
    return str(old)


if __name__ == "__main__":
    print(older_schema(sys.argv[1], int(sys.argv[2])))
