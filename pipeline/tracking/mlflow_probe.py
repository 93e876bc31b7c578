"""Whether MLflow takes a run and an artifact, and gives the artifact back."""

import tempfile
import uuid
from pathlib import Path

from pipeline import storage
from pipeline.errors import TrackingError, first_line
from pipeline.masking import masked, shell_word
from pipeline.tracking.mlflow_client import (
    artifact_location,
    check_artifacts_root,
    mlflow_client,
    tracking_uri,
)


def probe_mlflow(uri: str) -> str | None:
    """Writes one run with one artifact into the experiment `doctor`, reads it, deletes the run.

    None if the artifact came back as it was sent, else what failed, on one line.
    """
    client = mlflow_client(uri)
    from mlflow.exceptions import MlflowException

    text = uuid.uuid4().hex
    try:
        found = client.get_experiment_by_name("doctor")
        experiment = (
            found.experiment_id
            if found
            else client.create_experiment("doctor", artifact_location(uri))
        )
        made = client.create_run(experiment).info
        run = made.run_id
        try:
            check_artifacts_root(made.artifact_uri, uri)
            client.log_text(run, text, "doctor.txt")
            with tempfile.TemporaryDirectory() as folder:
                path = client.download_artifacts(run, "doctor.txt", folder)
                same = Path(path).read_text(encoding="utf-8") == text
        finally:
            client.delete_run(run)
    except (MlflowException, OSError, TrackingError) as error:
        return masked(first_line(error))[:300]
    return None if same else "an artifact came back with other bytes than were sent"


def deleted_experiment(name: str) -> list[str]:
    """Why no run is to be logged to experiment `name`: deleted, or its artifacts lie elsewhere.

    Empty where all is well, and where MLflow does not answer.
    """
    uri = tracking_uri()
    try:
        client = mlflow_client(uri)
        from mlflow.exceptions import MlflowException

        try:
            found = client.get_experiment_by_name(name)
        except MlflowException:
            return []
    except OSError:
        return []
    if found is not None:
        try:
            check_artifacts_root(found.artifact_location, uri)
        except TrackingError as error:
            return [str(error)]
    if found is None or found.lifecycle_stage != "deleted":
        return []
    return [
        f"--tracking.experiment {name}: is deleted in MLflow at {storage.shown(uri)}, which takes "
        f"no run into it. Give another `--tracking.experiment NAME`, or restore it: "
        f"`MLFLOW_TRACKING_URI={shell_word(uri)} mlflow experiments restore --experiment-id "
        f"{shell_word(str(found.experiment_id))}`."
    ]
