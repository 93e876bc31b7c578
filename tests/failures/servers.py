"""Failures of servers: not there, not ours, not allowed, in the way."""

from pathlib import Path

from tests.failures.flags import NEW
from tests.failures.mending import Failure
from tests.servers.api_server import ApiServer
from tests.servers.ray_head import RayHead
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
    Failure("watch frist", "vae watch --run frist --once"),
)  # fmt: skip


def on_ray(head: RayHead) -> tuple[Failure, ...]:
    """A dashboard that is somewhere else, or lets others in."""
    right = head.environment
    return (
        Failure("no dashboard", SUBMIT, environment=right | {"RAY_API_SERVER_ADDRESS": CLOSED},
                knows={"RAY_API_SERVER_ADDRESS": head.address, "--address": head.address}),
        Failure("no dashboard's address", SUBMIT,
                environment=right | {"RAY_API_SERVER_ADDRESS": "head:8265"},
                knows={"RAY_API_SERVER_ADDRESS": head.address, "--address": head.address}),
        Failure("wrong token", SUBMIT, environment=right | {"RAY_AUTH_TOKEN": "0" * 48},
                knows=right),
        Failure("no such submission", "vae submit --status --id train-r-9",
                plant=lambda home: _done(home, SUBMIT, right), environment=right,
                knows={"--id": "train-r-1"}),
    )  # fmt: skip


def on_kubernetes(server: ApiServer) -> tuple[Failure, ...]:
    """A cluster that nobody named, that is away, or that allows less."""
    right = str(server.kubeconfig())
    other = Path(right).with_name("away")
    other.write_text(Path(right).read_text().replace(server.url, "https://127.0.0.1:9"))
    submit = SUBMIT.replace("--detach", "--kubernetes --detach").replace("d --run r", "d --run k")
    return (
        Failure("kubernetes without a cluster", submit, environment={"KUBECONFIG": "/nowhere"},
                knows={"KUBECONFIG": right}),
        Failure("kubernetes away", submit, environment={"KUBECONFIG": str(other)},
                knows={"KUBECONFIG": right}),
        Failure("another namespace", submit.replace("--detach", "--namespace vea --detach"),
                environment={"KUBECONFIG": right}, knows={"--namespace": "vae"}),
    )  # fmt: skip


def on_s3(server: S3Server) -> tuple[Failure, ...]:
    """What goes wrong with a real object storage."""
    right = server.environment
    bucket = server.bucket()
    pack = f"vae pack --source photos --output {bucket}/photos"
    return (
        Failure("wrong secret", pack, environment=right | {"AWS_SECRET_ACCESS_KEY": "wrong"},
                knows=right),
        Failure("unknown key id", pack, environment=right | {"AWS_ACCESS_KEY_ID": "nobody"},
                knows=right),
        Failure("no credentials", pack, knows=right,
                environment=right | {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}),
        Failure("no such bucket", pack.replace(bucket, f"{bucket}x"), environment=right,
                knows={f"aws s3 mb {bucket}x": lambda _: _make(server, f"{bucket}x")}),
        Failure("another prefix", f"vae verify --dataset {bucket}/phtos", environment=right,
                plant=lambda home: _done(home, pack, right),
                knows={"--dataset": f"{bucket}/photos"}),
    )  # fmt: skip


def _make(server: S3Server, bucket: str) -> None:
    """As `aws s3 mb` does."""
    server.client().create_bucket(Bucket=bucket.removeprefix("s3://"))


def _done(home: Path, command: str, environment: dict[str, str]) -> None:
    from tests.failures.mending import attempt, words_of

    done = attempt(home, words_of(command), environment)
    assert done.code == 0, done.said
