"""MLflow on PostgreSQL goes away under Ray Train, with the time-outs that users have."""

from pathlib import Path

import pytest

from tests.integration.test_outage import check, train_through_an_outage
from tests.servers.mlflow import MlflowServer

pytestmark = pytest.mark.chaos


def test_under_ray_no_step_waits_for_mlflow_and_in_the_end_each_point_is_there_once(
    mlflow_on_postgres: MlflowServer, tmp_path: Path
) -> None:
    check(mlflow_on_postgres, train_through_an_outage(mlflow_on_postgres, tmp_path, 2), 10)
