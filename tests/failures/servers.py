"""Failures of servers: not there, not ours, not allowed, in the way."""

from pathlib import Path

from tests.failures.flags import NEW
from tests.failures.mending import Failure
from tests.servers.rgw import S3Server

CLOSED = "http://127.0.0.1:9"
"""No server behind it."""
PULL = "vae pull --model models:/first@candidate --output runs/new"
SUBMIT = "vae submit --detach -- python -m jobs.train --data d --run r"


def _deleted_experiment(home: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/runs/mlflow.db")
    found = client.get_experiment_by_name("vae")
    assert found is not None
    client.delete_experiment(found.experiment_id)


FAILURES = (
    Failure("mlflow gone", PULL, environment={"MLFLOW_TRACKING_URI": CLOSED},
            knows={"MLFLOW_TRACKING_URI": "sqlite:///runs/mlflow.db"}),
    Failure("mlflow of no kind", PULL, environment={"MLFLOW_TRACKING_URI": "mlflow.example:5000"},
            knows={"MLFLOW_TRACKING_URI": "sqlite:///runs/mlflow.db"}),
    Failure("experiment deleted", NEW, _deleted_experiment, {"--tracking.experiment": "mine"}),
    Failure("ray gone", "vae encode --model models:/first@candidate --data runs/photos/train "
            "--output runs/more", environment={"RAY_ADDRESS": "127.0.0.1:9"}),
    Failure("no dashboard", SUBMIT, environment={"RAY_API_SERVER_ADDRESS": CLOSED}),
    Failure("kubernetes without a cluster", SUBMIT.replace("--detach", "--kubernetes --detach")),
    Failure("watch frist", "vae watch --run frist --once"),
)  # fmt: skip


def on_s3(server: S3Server) -> tuple[Failure, ...]:
    """What goes wrong with a real object storage."""
    right = server.environment
    bucket = server.bucket()
    pack = f"vae pack --source photos --output {bucket}/photos"
    return (
        Failure("wrong secret", pack, environment=right | {"AWS_SECRET_ACCESS_KEY": "wrong"},
                knows={"AWS_SECRET_ACCESS_KEY": right["AWS_SECRET_ACCESS_KEY"]}),
        Failure("unknown key id", pack, environment=right | {"AWS_ACCESS_KEY_ID": "nobody"},
                knows={"AWS_ACCESS_KEY_ID": right["AWS_ACCESS_KEY_ID"]}),
        Failure("no credentials", pack, knows=right,
                environment=right | {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}),
        Failure("no such bucket", pack.replace(bucket, f"{bucket}x"), environment=right,
                knows={"--output": f"{bucket}/photos"}),
        Failure("another prefix", f"vae verify --dataset {bucket}/phtos", environment=right,
                plant=lambda home: _packed(home, pack, right),
                knows={"--dataset": f"{bucket}/photos"}),
    )  # fmt: skip


def _packed(home: Path, command: str, environment: dict[str, str]) -> None:
    from tests.failures.mending import attempt, words_of

    done = attempt(home, words_of(command), environment)
    assert done.code == 0, done.said
