"""Three walks as scripts: what README and docs show, by people who know nothing else.

Photographs are crops of those that come with scikit-image and scikit-learn.
"""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from PIL import Image
from skimage import data as pictures
from sklearn.datasets import load_sample_images

from jobs.completion import jobs_and_flags
from tests.docs.blocks import DOCUMENTS
from tests.servers.prometheus import PrometheusServer
from tests.servers.ray_head import RayHead
from tests.servers.rgw import S3Server
from tests.support.warm import run

HERE = Path(__file__).parent
SCRIPTS = sorted(HERE.glob("*.sh"))
SHORT = {
    "train": (
        "--steps", "2", "--workers", "0", "--global-batch-size", "8", "--image-size", "32",
        "--model.width", "8",
    ),
    "evaluate": ("--importance-samples", "2", "--bound-images", "0"),
    "explain": ("--importance-samples", "2"),
    "encode": ("--actors", "0"),
    "submit": (
        "--steps", "2", "--global-batch-size", "8", "--image-size", "16", "--model.width", "8",
    ),
}  # fmt: skip
"""What makes a job of a walk short; all else is as written."""


def lines(script: Path) -> list[list[str]]:
    text = script.read_text().splitlines()
    return [shlex.split(line) for line in text if not line.startswith("#")]


def job_of(words: list[str]) -> tuple[str, list[str]]:
    """`vae NAME ...` or `python -m jobs.NAME ...` as NAME and what follows; "" for the list."""
    if words[0] == "vae":
        return (words[1], words[2:]) if words[1:] else ("", [])
    return words[2].removeprefix("jobs."), words[3:]


class Walk:
    """Runs commands in a folder, and keeps what each printed."""

    def __init__(self, folder: Path, **environment: str) -> None:
        # A new user has no MLflow server, whatever other tests talk to.
        self.folder, self.environment = folder, {"MLFLOW_TRACKING_URI": "", **environment}
        self.there: dict[str, str] = {}
        """Where the documents say `localhost`."""
        self.said: list[tuple[str, str]] = []

    def go(self, script: Path) -> "Walk":
        for words in lines(script):
            done = self._start(words)
            assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
            assert "Traceback" not in done.stderr
            self.said.append((shlex.join(words), done.stdout))
        return self

    def _start(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        if words[:2] == ["python", "train.py"]:
            return run(self.folder, "tests.walks.train", **self.environment)
        name, flags = job_of([self.there.get(word, word) for word in words])
        is_whole = "--help" in flags or (name == "submit" and "--" not in flags)
        short = () if is_whole else SHORT.get(name, ())
        return run(self.folder, f"jobs.{name}" if name else "jobs", *flags, *short,
                   **self.environment)  # fmt: skip

    def after(self, start: str) -> str:
        """What the last command that begins so printed."""
        return next(said for words, said in reversed(self.said) if words.startswith(start))


def crop(folder: Path, count: int = 12) -> None:
    """`FOLDER/cats/001.jpg` and on of one photograph, `dogs` of others: crops of 96 pixels."""
    whole = {
        "cats": [pictures.chelsea(), pictures.astronaut()],
        "dogs": [pictures.coffee(), *load_sample_images().images],
    }
    for label, images in whole.items():
        (folder / label).mkdir(parents=True)
        for number in range(count):
            image = images[number % len(images)]
            y, x = 37 * number % (image.shape[0] - 96), 53 * number % (image.shape[1] - 96)
            cut = Image.fromarray(image[y : y + 96, x : x + 96])
            cut.save(folder / label / f"{number + 1:03d}.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    crop(tmp_path / "photos")
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_walk_has_only_commands_whose_flags_the_documents_show(script: Path) -> None:
    shown = "\n".join(page.read_text() for page in DOCUMENTS if "tests/" not in str(page))
    known = dict(jobs_and_flags())
    for words in lines(script):
        if words == ["python", "train.py"]:
            continue
        name, flags = job_of(words)
        assert re.search(rf"(vae|jobs\.) ?{name}", shown), words
        for flag in (each for each in flags if each.startswith("--") and each != "--"):
            assert flag == "--help" or flag in known[name] or "--" in flags, words
            assert re.search(rf"{flag}(?![\w-])", shown), words


def test_a_researcher_goes_from_photographs_to_a_champion(folder: Path) -> None:
    walk = Walk(folder).go(HERE / "researcher.sh")
    packed = walk.after("vae pack")
    assert "24 seen = 24 packed" in packed
    assert "held out." in packed
    assert "jobs.train --data runs/photos/train --run NAME`" in packed.replace("vae ", "jobs.")
    assert "held-out ELBO" in walk.after("vae train --data runs/photos/train --run first")
    assert "beta 0.5" in walk.after("vae train --data runs/photos/train --run betas")
    assert {p.suffix for p in (folder / "runs/explained").iterdir()} >= {".md", ".html", ".png"}
    assert (folder / "runs/pulled/bundle.json").exists()


def test_a_trainer_of_diffusion_models_gets_latents_and_tomorrows_only_once(folder: Path) -> None:
    crop(folder / "tomorrow/new", 3)
    walk = Walk(folder).go(HERE / "diffusion.sh")
    encodings = [said for words, said in walk.said if words.startswith("vae encode")]
    results = [json.loads(said.splitlines()[-1]) for said in encodings[1:]]
    assert [result["encoded"] for result in results] == [24, 6]
    assert "24 latents, loss" in walk.after("python train.py")
    assert "whole" in walk.after("vae verify")
    assert len(list((folder / "runs/tars").glob("*.tar"))) == 2


@pytest.fixture
def buckets(s3_server: S3Server, folder: Path) -> Iterator[Mapping[str, str]]:
    client = s3_server.client()
    for name in ("archive", "datasets", "runs", "latents"):
        client.create_bucket(Bucket=name)
    for path in (folder / "photos").rglob("*.jpg"):
        client.upload_file(str(path), "archive", str(path.relative_to(folder)))
    yield s3_server.environment
    for name in ("archive", "datasets", "runs", "latents"):
        for each in client.list_objects_v2(Bucket=name).get("Contents", ()):
            client.delete_object(Bucket=name, Key=each["Key"])
        client.delete_bucket(Bucket=name)


@pytest.fixture
def head(
    buckets: Mapping[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RayHead]:
    """A Ray head whose jobs see what the operator exported."""
    for name, value in {**buckets, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}.items():
        monkeypatch.setenv(name, value)
    found = RayHead()
    found.start()
    yield found
    found.stop()


def test_an_operator_packs_submits_encodes_and_watches(
    folder: Path, head: RayHead, prometheus: PrometheusServer
) -> None:
    walk = Walk(folder, MLFLOW_TRACKING_URI=os.environ["MLFLOW_TRACKING_URI"], **head.environment)
    walk.there = {
        "http://localhost:9090": prometheus.url, "http://localhost:9091": prometheus.pushgateway,
    }  # fmt: skip
    walk.go(HERE / "operator.sh")
    assert "24 seen = 24 packed" in walk.after("python -m jobs.pack")
    assert "train-v1-1" in walk.after("python -m jobs.submit --list")
    assert "held-out" in walk.after("python -m jobs.submit --logs") or "ELBO" in walk.after(
        "python -m jobs.submit --logs"
    )
    assert "s3://latents/photos" in walk.after("python -m jobs.watch")
    assert "whole" in walk.after("python -m jobs.verify --store")
