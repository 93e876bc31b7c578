"""The night's own submission, with the arguments of the manifest, makes a RayJob that fits."""

import shlex
from pathlib import Path

import pytest

from jobs.submit import main
from pipeline.config import SubmitConfig
from pipeline.submission.rayjob import render_rayjob
from tests.k8s import schemas
from tests.k8s.commands import parsed
from tests.k8s.manifests import OVERLAYS, build, find, of_kind
from tests.k8s.test_manifests import CHECKS
from tests.servers.api_server import ApiServer


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_nights_submission_creates_a_rayjob_that_fits_the_cluster(
    overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = build(overlay)
    pod = find(objects, "CronJob", "nightly")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (step,) = [each for each in pod["initContainers"] if each["name"] == "encode"]
    config = parsed(["python", "-m", "jobs.submit", *step["args"][1:]])
    assert isinstance(config, SubmitConfig)
    with ApiServer(tmp_path, validator=schemas.crd_validator("RayJob")).running() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig()))
        for template in of_kind(objects, "RayJobTemplate"):
            server.put(template)
        main(config.model_copy(update={"detach": True}))
        created = server.objects["nightly"]
    assert tuple(shlex.split(created["spec"]["entrypoint"])) == config.command
    assert list(schemas.problems([created])) == []
    for check in CHECKS:
        assert list(check([*objects, created])) == []


@pytest.mark.parametrize(("overlay", "workers"), [("dev", 1), ("dev", 5), ("gpu", 8), ("gpu", 16)])
def test_a_training_of_any_size_becomes_a_rayjob_that_fits_the_cluster(
    overlay: str, workers: int
) -> None:
    objects = build(overlay)
    command = (
        "python", "-m", "jobs.train", "--data", "s3://datasets/photos/train", "--run", "photos",
        "--storage", "s3://runs/train", "--workers", str(workers),
        "--tracking.metrics", "0.0.0.0:9464",
    )  # fmt: skip
    template = find(objects, "RayJobTemplate", "train")
    made = render_rayjob(
        command, name="photos", template=template, workers=workers, namespace="vae"
    )
    assert list(schemas.problems([made])) == []
    for check in CHECKS:
        assert list(check([*objects, made])) == []
