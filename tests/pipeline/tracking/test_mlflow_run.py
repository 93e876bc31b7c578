import hashlib

from mlflow import MlflowClient

from pipeline.tracking.mlflow_run import DIGEST_TAG, RUN_TAG, TrackedRun


def test_a_run_that_a_killed_start_left_without_params_gets_them_from_the_next(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("vae")
    url = f"{tmp_path}/run"
    tags = {RUN_TAG: url, DIGEST_TAG: hashlib.sha256(url.encode()).hexdigest()}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    client.log_param(run_id, "steps", "10")
    # What was logged stays as the run began, as MLflow wants it.
    found = TrackedRun(uri, "vae", "r", url, {"steps": "20", "seed": "4"})
    assert found.run_id == run_id
    assert client.get_run(run_id).data.params == {"steps": "10", "seed": "4"}
