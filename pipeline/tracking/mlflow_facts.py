"""What MLflow's users look for in a run: what it read, who and what ran, what came out."""

import getpass
import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline import storage
from pipeline.json_value import Json
from pipeline.tracking.mlflow_client import mlflow_client, tracking_errors, tracking_uri
from pipeline.tracking.version import git_revision

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's pages without a switch go by it; those of 3.17 go by their address: see `run_page`."""
CONFIG_FILE = "config.json"
"""Its parameters are those that somebody chose; this artifact holds every other one, too."""
_DIGEST_LETTERS = 36
"""Of a dataset's digest, MLflow's own limit."""


@dataclass(frozen=True)
class ReadDataset:
    """A dataset that a run read: `context` is `training` or `evaluation`, samples are counted."""

    context: str
    url: str
    digest: str
    samples: int


@dataclass(frozen=True)
class About:
    """What a finished run is, in words, and its whole configuration, defaults too."""

    text: str
    config: Json


def source_tags() -> dict[str, str]:
    """Who started the run, and the code that ran; MLflow shows these in its list of runs."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a pod's user has no name
        user = "unknown"
    return {
        "mlflow.user": user,
        "mlflow.source.name": "jobs.train",
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": git_revision(),
    }


def run_page(run_id: str) -> str:
    """The address of a run's page, in the view for model training.

    MLflow 3.17 shows its view of traces and judges unless the address, or the browser's memory of
    its switch, says otherwise, whatever kind an experiment has. Of a file: where `mlflow ui` serves
    it. Raises `TrackingError` if MLflow can't be reached.
    """
    where = tracking_uri()
    with tracking_errors(where):
        experiment = mlflow_client(where).get_run(run_id).info.experiment_id
    server = where.rstrip("/") if where.startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def describe(run_id: str, about: About, chosen_step: int, datasets: Sequence[ReadDataset]) -> None:
    """Adds a finished run's description, its configuration, the step of its model, what it read.

    Doing it again changes nothing. Raises `TrackingError` if MLflow can't be reached.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    where = tracking_uri()
    inputs = [
        DatasetInput(
            Dataset(
                name="/".join(storage.shown(read.url).split("/")[-2:]),
                digest=read.digest[:_DIGEST_LETTERS],
                source_type=urlsplit(read.url).scheme or "local",
                source=json.dumps({"uri": storage.shown(read.url)}),
                profile=json.dumps({"num_rows": read.samples, "digest": read.digest}),
            ),
            [InputTag("mlflow.data.context", read.context)],
        )
        for read in datasets
    ]
    with tracking_errors(where):
        client = mlflow_client(where)
        client.set_tag(run_id, "vae.chosen_step", str(chosen_step))
        client.set_tag(run_id, "mlflow.note.content", about.text)
        client.log_dict(run_id, about.config, CONFIG_FILE)
        client.log_inputs(run_id, datasets=inputs)
