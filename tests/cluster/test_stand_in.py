"""The stand-in API server answers as the real one does, as far as the submission looks.

Each request goes to both. Codes and reasons must be equal; of messages, what the product reads.
"""

import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from pipeline.submission.rayjob import base_template, render_rayjob
from tests.cluster.conftest import K8S
from tests.k8s.schemas import crd_validator
from tests.servers.api_server import TOKEN
from tests.servers.api_server import ApiServer as StandIn
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import Cluster, cluster
from tests.servers.cluster.operators import add_kind, add_kuberays_kinds

pytestmark = pytest.mark.cluster
JOBS = "/apis/ray.io/v1/namespaces/vae/rayjobs"
STRICT = "fieldValidation=Strict"
READ = (
    " cannot ", "exceeded quota", "already exists", "not found", "unknown field", "precondition",
)  # fmt: skip
"""Of messages, what api_server.py looks for and what users are shown."""


class Answer(NamedTuple):
    """What a server said, without what is its own: addresses, uids, times."""

    code: int
    reason: str
    said: tuple[str, ...]
    kind: str


class Server:
    """One of the two, asked as somebody with a token."""

    def __init__(self, url: str, authority: Path, token: str) -> None:
        self._url, self._token = url, token
        self._context = ssl.create_default_context(cafile=str(authority))

    def ask(
        self, method: str, path: str, body: Any = None, token: str | None = None
    ) -> tuple[Answer, Any]:
        """What it answers, as far as it is compared, and all of it."""
        asked = urllib.request.Request(
            f"{self._url}{path}", method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token or self._token}",
                     "Content-Type": "application/json", "Accept": "application/json"},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(asked, context=self._context, timeout=30) as answer:
                code, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            code, text = error.code, error.read().decode()
        try:
            found = json.loads(text)
        except ValueError:
            return Answer(code, "", (), text.strip()), text
        message = found.get("message", "")
        said = tuple(word for word in READ if word in message)
        kind = "" if found["kind"].endswith("List") else found["kind"]
        return Answer(code, found.get("reason", ""), said, kind), found


class Both(NamedTuple):
    """The same namespace twice: once real."""

    real: Server
    stand_in: Server
    cluster: Cluster
    imitation: StandIn

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> Answer:
        """What both answer, which is the same."""
        real, _ = self.real.ask(method, path, body, token)
        assert self.stand_in.ask(method, path, body, token)[0] == real
        return real


@pytest.fixture(scope="module")
def both(can_start: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("stand-in")
    with cluster(nodes=0) as found, StandIn(folder).running() as imitation:
        add_kuberays_kinds(found)
        add_kind(found, K8S / "templates.yaml", "rayjobtemplates")
        found.kubectl("apply", "-k", str(K8S / "overlays/dev"))
        imitation.validator = crd_validator("RayJob")
        for name in ("train", "encode", "cpu"):
            template: Any = base_template(name)
            imitation.put(template)
        token = found.kubectl("-n", "vae", "create", "token", "submitter").strip()
        real = Server(found.control.url, found.authority.folder / "ca.crt", token)
        copy = Server(imitation.url, folder / "ca.crt", TOKEN)
        yield Both(real, copy, found, imitation)


def rayjob(name: str) -> Any:
    return render_rayjob(("python", "-c", "1"), name=name)


def test_a_job_is_made_once_seen_listed_and_ended_once(both: Both) -> None:
    assert both.ask("POST", f"{JOBS}?{STRICT}", rayjob("first")) == (201, "", (), "RayJob")
    twice = both.ask("POST", f"{JOBS}?{STRICT}", rayjob("first"))
    assert twice == (409, "AlreadyExists", ("already exists",), "Status")
    assert both.ask("GET", f"{JOBS}/first").code == 200
    assert both.ask("GET", JOBS).code == 200
    for server in (both.real, both.stand_in):
        items = server.ask("GET", JOBS)[1]["items"]
        assert [item["metadata"]["name"] for item in items] == ["first"]
    other = {"preconditions": {"uid": "0000"}, "propagationPolicy": "Background"}
    refused = both.ask("DELETE", f"{JOBS}/first", other)
    assert (refused.code, refused.reason) == (409, "Conflict")
    for server in (both.real, both.stand_in):
        uid = server.ask("GET", f"{JOBS}/first")[1]["metadata"]["uid"]
        assert re.fullmatch(r"[0-9a-f-]{36}", uid)
        assert server.ask("DELETE", f"{JOBS}/first", {"preconditions": {"uid": uid}})[0].code == 200
    assert both.ask("GET", f"{JOBS}/first") == (404, "NotFound", ("not found",), "Status")
    assert both.ask("DELETE", f"{JOBS}/first", other).reason == "NotFound"


def test_a_dry_run_makes_nothing_and_is_refused_as_a_creation_is(both: Both) -> None:
    dry = f"{JOBS}?{STRICT}&dryRun=All"
    assert both.ask("POST", dry, rayjob("first")).code == 201
    assert both.ask("GET", f"{JOBS}/first").code == 404
    assert both.ask("POST", JOBS, rayjob("first")).code == 201
    assert both.ask("POST", dry, rayjob("first")).reason == "AlreadyExists"
    wrong = rayjob("first")
    wrong["spec"]["backofLimit"] = 1
    # What is misspelt is said before that the name is taken.
    assert both.ask("POST", dry, wrong).code == 400
    for server in (both.real, both.stand_in):
        assert server.ask("DELETE", f"{JOBS}/first")[0].code == 200


def test_a_field_that_no_rayjob_has_is_refused_and_named(both: Both) -> None:
    job = rayjob("first")
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParam"] = {}
    place = "spec.rayClusterSpec.headGroupSpec.rayStartParam"
    for server in (both.real, both.stand_in):
        answer, said = server.ask("POST", f"{JOBS}?{STRICT}", job)
        assert (answer.code, answer.reason) == (400, "BadRequest")
        assert f'strict decoding error: unknown field "{place}"' in said["message"]


def test_a_value_of_another_type_is_refused_and_named(both: Both) -> None:
    job = rayjob("first")
    job["spec"]["backoffLimit"] = "3"
    for server in (both.real, both.stand_in):
        answer, said = server.ask("POST", f"{JOBS}?{STRICT}", job)
        assert (answer.code, answer.reason) == (422, "Invalid")
        assert "spec.backoffLimit: Invalid value" in said["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/namespaces/vae/secrets"),
        ("GET", "/api/v1/namespaces/vae/pods/any"),
        ("GET", "/api/v1/namespaces/default/pods"),
        ("GET", "/apis/ray.io/v1/namespaces/default/rayjobs"),
        ("POST", "/apis/ray.io/v1/namespaces/team-b/rayjobs"),
        ("GET", "/apis/ray.io/v1/namespaces/vae/rayclusters"),
        ("DELETE", "/apis/vae-pipeline.internal/v1/namespaces/vae/rayjobtemplates/train"),
        ("GET", "/apis/scheduling.k8s.io/v1/priorityclasses"),
    ],
)
def test_what_the_role_does_not_give_is_refused_alike(both: Both, method: str, path: str) -> None:
    answer = both.ask(method, path, rayjob("first") if method == "POST" else None)
    assert answer == (403, "Forbidden", (" cannot ",), "Status")


@pytest.mark.parametrize(
    "path",
    [
        "/apis/vae-pipeline.internal/v1/namespaces/vae/rayjobtemplates",
        "/apis/vae-pipeline.internal/v1/namespaces/vae/rayjobtemplates/train",
        "/apis/vae-pipeline.internal/v1/namespaces/vae/rayjobtemplates/nope",
        "/api/v1/namespaces/vae/pods?labelSelector=ray.io/cluster%3Dc",
        "/api/v1/namespaces/vae/events?fieldSelector=type%3DWarning",
        "/apis/kueue.x-k8s.io/v1beta2/namespaces/vae/localqueues",
        "/apis/kueue.x-k8s.io/v1beta2/namespaces/vae/workloads",
        "/readyz",
    ],
)
def test_what_the_role_gives_is_answered_alike(both: Both, path: str) -> None:
    answer = both.ask("GET", path)
    assert answer.code == (404 if "kueue" in path or "nope" in path else 200)


def test_a_token_that_is_none_is_refused_alike(both: Both) -> None:
    for path in (JOBS, f"{JOBS}/first", "/api/v1/namespaces/vae/secrets"):
        assert both.ask("GET", path, token="wrong") == (401, "Unauthorized", (), "Status")


def test_a_quota_and_a_webhook_that_is_away_refuse_alike(both: Both) -> None:
    quota = """
apiVersion: v1
kind: ResourceQuota
metadata: {name: jobs, namespace: vae}
spec: {hard: {count/rayjobs.ray.io: "0"}}
"""
    webhook = """
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: away}
webhooks:
  - name: away.example.internal
    clientConfig: {url: "https://127.0.0.1:9/"}
    rules: [{apiGroups: [ray.io], apiVersions: [v1], operations: [CREATE], resources: [rayjobs]}]
    admissionReviewVersions: [v1]
    sideEffects: None
"""
    imitated = (403, "Forbidden", 'rayjobs "first" is forbidden: exceeded quota: jobs')
    dry = f"{JOBS}?dryRun=All"
    with applied(both, quota), refusing(both, imitated):
        # Until it has counted what is there, it refuses for not knowing ("status unknown").
        until(
            lambda: "exceeded quota" in both.real.ask("POST", dry, rayjob("first"))[0].said,
            "the quota", 30,
        )  # fmt: skip
        answer = both.ask("POST", f"{JOBS}?{STRICT}", rayjob("first"))
        assert answer == (403, "Forbidden", ("exceeded quota",), "Status")
    imitated = (500, "InternalError", "failed calling webhook")
    with applied(both, webhook), refusing(both, imitated):
        until(lambda: both.real.ask("POST", dry, rayjob("first"))[0].code != 201, "the webhook", 30)
        answer = both.ask("POST", f"{JOBS}?{STRICT}", rayjob("first"))
        assert answer == (500, "InternalError", (), "Status")


@contextmanager
def applied(both: Both, text: str) -> Iterator[None]:
    item = yaml.safe_load(text)
    both.cluster.apply([item])
    yield
    both.cluster.kubectl("-n", "vae", "delete", item["kind"], item["metadata"]["name"])


@contextmanager
def refusing(both: Both, refusal: tuple[int, str, str]) -> Iterator[None]:
    both.imitation.refuse_creation = refusal
    yield
    both.imitation.refuse_creation = None
