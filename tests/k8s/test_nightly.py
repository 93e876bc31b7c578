"""The night's own submission, with the arguments of the manifest, makes a RayJob that fits."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.submit import main
from pipeline.config import SubmitConfig
from pipeline.submission.rayjob import OURS, Wishes, render_rayjob
from tests.k8s import schemas
from tests.k8s.commands import parsed
from tests.k8s.manifests import BY_SUBMISSION, K8S, OVERLAYS, build, find, of_kind
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
    assert tuple(shlex.split(created["spec"]["entrypoint"])[1:]) == config.command
    head = created["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"]
    assert BY_SUBMISSION.items() <= head["labels"].items()
    assert head["annotations"]["vae-pipeline.internal/store"] == "s3://latents/photos"
    assert list(schemas.problems([created])) == []
    for check in CHECKS:
        assert list(check([*objects, created])) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_elastic_training_becomes_a_rayjob_that_fits_the_cluster(overlay: str) -> None:
    objects = build(overlay)
    command = (
        "python", "-m", "jobs.train", "--data", "s3://datasets/photos/train", "--run", "photos",
        "--storage", "s3://runs/train", "--workers", "8..32",
        "--tracking.metrics", "0.0.0.0:9464",
    )  # fmt: skip
    wishes = Wishes(workers=32, fewest=8, namespace="vae")
    template: Any = find(objects, "RayJobTemplate", "train")
    made: Any = render_rayjob(command, name="photos", template=template, wishes=wishes)
    assert list(schemas.problems([made])) == []
    for check in CHECKS:
        assert list(check([*objects, made])) == []


def test_an_endpoint_that_is_gone_is_named_by_what_its_pod_says() -> None:
    """Prometheus' own `up` has only the labels that the monitor copies from the pod."""
    (endpoint,) = find(build("gpu"), "PodMonitor", "vae-runs")["spec"]["podMetricsEndpoints"]
    copied = {rule["targetLabel"]: rule["sourceLabels"] for rule in endpoint["relabelings"]}
    for label in ("run", "store"):
        # Prometheus writes _ for what its names can't have.
        annotation = re.sub(r"\W", "_", f"{OURS}/{label}")
        assert copied[label] == [f"__meta_kubernetes_pod_annotation_{annotation}"]


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
    template: Any = find(objects, "RayJobTemplate", "train")
    wishes = Wishes(workers=workers, namespace="vae")
    made: Any = render_rayjob(command, name="photos", template=template, wishes=wishes)
    assert list(schemas.problems([made])) == []
    for check in CHECKS:
        assert list(check([*objects, made])) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlays_night_differs_from_the_bases_in_sizes_alone(overlay: str) -> None:
    """Its arguments are a list, which a patch can only write anew."""
    (base,) = yaml.safe_load_all((K8S / "base/nightly.yaml").read_text())
    own, first = (
        parsed(["python", "-m", "jobs.submit", *step["args"][1:]])
        for night in (find(build(overlay), "CronJob", "nightly"), base)
        for step in night["spec"]["jobTemplate"]["spec"]["template"]["spec"]["initContainers"]
        if step["name"] == "encode"
    )
    sizes = {"actors": 1, "gpus": 0, "cores": 1}
    encodes = [parsed(each.command).model_copy(update=sizes) for each in (own, first)]
    assert encodes[0] == encodes[1]
    assert own.model_copy(update={"command": ()}) == first.model_copy(update={"command": ()})
