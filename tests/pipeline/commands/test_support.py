"""The file for support has what helps, and none of the secrets that lie everywhere around it."""

import io
import random
import zipfile
from pathlib import Path

import pytest

from jobs.doctor import main
from pipeline.commands.support import MOST_BYTES, cleaned, support_file
from pipeline.config import DoctorConfig
from pipeline.runs.run import Run

# In the environment, by name: whatever they look like.
VARIABLES = {
    "AWS_SECRET_ACCESS_KEY": "plain/planted+one01", "AWS_SESSION_TOKEN": "IQoJplanted02//////",
    "MLFLOW_TRACKING_PASSWORD": "planted-03", "MLFLOW_TRACKING_TOKEN": "planted.04.token",
    "RAY_AUTH_TOKEN": "planted05" * 4, "PGPASSWORD": "planted 06 with spaces",
    "HF_TOKEN": "hf_planted07abcdefgh", "GITHUB_PAT": "planted08planted08",
    "MY_API_KEY": "planted-09",
    "SENTRY_DSN": "https://planted10@sentry.example/1", "DB_PWD": "planted-11!?",
    "AZURE_CREDENTIALS": '{"clientSecret": "planted-12"}', "COOKIE_SECRET": "planted-13",
}  # fmt: skip
# In logs and documents, by form: no variable says that they are secrets.
LINES = [
    "postgresql://mlflow:planted-14@postgres/mlflow", "https://user:planted-15@host/path",
    "s3://AKIAPLANTED16:planted-16b@bucket/key", "AKIAPLANTED17PLANTED",
    "https://bucket.example/key?X-Amz-Signature=planted18&X-Amz-Credential=planted18b",
    "Authorization: Bearer planted-19.abc", "authorization: Basic cGxhbnRlZC0yMDpwbGFudGVk",
    "eyJhbGciOiJIUzI1NiJ9.planted21.planted21", "password=planted-22", "'password': 'planted-23'",
    '{"password": "planted-24"}', "token: planted-25", '"refresh_token":"planted-26"',
    "client_secret = planted-27", "AWS_SECRET_ACCESS_KEY=planted-28", "api-key: planted-29",
    "-----BEGIN RSA PRIVATE KEY-----\nplanted30planted30\n-----END RSA PRIVATE KEY-----",
    "ghp_planted31planted31planted31", "glpat-planted32planted32", "xoxb-planted33-planted33",
    "MLFLOW_TRACKING_PASSWORD: planted-34", "form-key: planted-35", "RAY_AUTH_TOKEN=planted-36",
    'headers={"Cookie": "session=planted-37"}', "https://host/x?sig=planted38%2Fplanted38",
    "passwd: planted-39", "sk-planted40planted40planted40",
    "started: python t.py --password planted-41 --steps 5", "['--hf-token', 'planted-42', 'x']",
    "  - --db-password\n  - planted-43", "the password is planted-44", "TOKEN planted-45",
    "http://me:it's planted-46@host/x", "curl -u me:planted-47 http://host",
]  # fmt: skip


def planted_in(line: str) -> bool:
    return "planted" in line.lower() or "cGxhbnRlZC0" in line


def texts(data: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = Run(str(tmp_path / "runs/first"))
    logs = tmp_path / "runs/first/logs"
    logs.mkdir(parents=True)
    (tmp_path / "runs/first/run.json").write_text('{"steps": 100, "note": "' + LINES[0] + '"}')
    (logs / "000001-driver.0001.log").write_text(
        "\n".join(["RunError: the reason of it all", *LINES, *VARIABLES.values()])
    )
    assert run.path("logs")
    return tmp_path / "runs"


def test_of_all_these_secrets_none_is_found(runs: Path, tmp_path: Path) -> None:
    assert len(VARIABLES) + len(LINES) == 47
    assert all(map(planted_in, [*VARIABLES.values(), *LINES]))
    out = tmp_path / "support.zip"
    main(DoctorConfig(storage=str(runs), support_file=str(out)))
    found = texts(out.read_bytes())
    leaks = [line for text in found.values() for line in text.splitlines() if planted_in(line)]
    assert leaks == []
    assert "RunError: the reason of it all" in found["runs/first/000001-driver.0001.log"]
    assert '"steps": 100' in found["runs/first/run.json"]
    assert "PGPASSWORD is set" in found["environment.txt"]
    assert "torch" in found["versions.txt"]
    assert "storage: create once" in found["doctor.txt"]
    assert "kubeconfig" in found["kubernetes.txt"]


def test_however_much_there_is_the_file_stays_small_and_says_what_it_left_out(runs: Path) -> None:
    source = random.Random(0)
    for number in range(60):
        folder = runs / f"run-{number:03d}/logs"
        folder.mkdir(parents=True)
        (folder.parent / "run.json").write_text("{}")
        for start in range(4):
            noise = "\n".join(f"{source.getrandbits(900):x}" for _ in range(1000))
            (folder / f"00000{start}-driver.0001.log").write_text(noise)
    data = support_file(["ok"], str(runs))
    assert len(data) <= MOST_BYTES
    assert "driver.0001.log" in texts(data)["left_out.txt"]


def test_what_is_no_secret_stays_as_it_is() -> None:
    said = (
        "12:00:01 INFO step 100, elbo -336.75: s3://datasets/photos/train, 4 workers\n"
        "the token is wrong, and no password was given: HF_TOKEN is set\n"
    )
    assert cleaned(said, []) == said
