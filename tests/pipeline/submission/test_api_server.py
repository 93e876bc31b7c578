"""The API server is asked alike with a kubeconfig and with a pod's own token."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ClusterError, ConfigError, NotNowError, UnreachableError
from pipeline.submission import api_server
from pipeline.submission.api_server import ApiServer
from pipeline.submission.objects import RAYJOBS, TEMPLATES
from pipeline.submission.rayjob import Wishes, base_template, render_rayjob
from tests.k8s.schemas import CRDS, crd_validator
from tests.servers.api_server import TOKEN, submitters_rights
from tests.servers.api_server import ApiServer as StandIn

JOB = render_rayjob(("python", "-m", "jobs.encode"), name="first", wishes=Wishes(namespace="vae"))

Way = Callable[..., ApiServer]


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with StandIn(tmp_path).running() as server:
        yield server


@pytest.fixture(params=["kubeconfig", "pod"])
def way(request: pytest.FixtureRequest, server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a client of the server, by one way or the other."""

    def connected(token: str = TOKEN) -> ApiServer:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(token)))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        if request.param == "pod":
            in_pod(server, monkeypatch, token)
            monkeypatch.setenv("KUBECONFIG", "/nowhere")
        return ApiServer(None, None, 10)

    return connected


def in_pod(server: StandIn, monkeypatch: pytest.MonkeyPatch, token: str = TOKEN) -> None:
    monkeypatch.setattr(api_server, "ACCOUNT", server.account(token))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))


def test_an_object_is_created_once_and_then_there(way: Way) -> None:
    client = way()
    assert client.get(RAYJOBS, "first") is None
    assert client.create(RAYJOBS, JOB) is True
    assert client.create(RAYJOBS, JOB) is False
    found = client.get(RAYJOBS, "first")
    assert found is not None
    assert found["spec"] == JOB["spec"]
    assert client.objects(RAYJOBS) == [found]


def test_a_dry_run_creates_nothing(way: Way, server: Any) -> None:
    assert way().create(RAYJOBS, JOB, dry_run=True) is True
    assert server.objects == {}


@pytest.mark.skipif(not CRDS.exists(), reason=f"{CRDS} is not there")
def test_a_field_that_kuberay_does_not_know_is_refused_and_named(way: Way, server: Any) -> None:
    server.validator = crd_validator("RayJob")
    wrong: Any = {**JOB, "spec": {**JOB["spec"], "ttlSecondsAfterFinish": 1}}
    with pytest.raises(ClusterError, match="ttlSecondsAfterFinish"):
        way().create(RAYJOBS, wrong)
    assert way().create(RAYJOBS, JOB) is True


def test_a_deletion_spares_another_one_that_took_the_name(way: Way, server: Any) -> None:
    client = way()
    client.create(RAYJOBS, JOB)
    old = server.objects["first"]["metadata"]["uid"]
    server.objects.clear()
    client.create(RAYJOBS, JOB)
    client.delete(RAYJOBS, "first", old)
    assert "first" in server.objects
    client.delete(RAYJOBS, "first", server.objects["first"]["metadata"]["uid"])
    assert server.objects == {}
    client.delete(RAYJOBS, "first", old)  # What is gone is gone.


def test_credentials_that_do_not_do_are_the_users_error_and_say_what_to_look_at(way: Way) -> None:
    with pytest.raises(ConfigError, match="log in again") as error:
        way("another token").objects(RAYJOBS)
    assert "another token" not in str(error.value)


def test_a_right_that_is_missing_is_named_with_its_cure(way: Way, server: Any) -> None:
    server.rights["rayjobs"] = ["get", "list"]
    with pytest.raises(ConfigError, match=r"cannot create.*--namespace.*accounts\.yaml"):
        way().create(RAYJOBS, JOB)


def test_a_server_that_has_only_just_started_refuses_for_now(way: Way, server: Any) -> None:
    # Before it has read who may do what, it says 403 to everyone, and 500 to /readyz.
    server.is_ready = False
    with pytest.raises(NotNowError, match="only just started"):
        way().create(RAYJOBS, JOB)


@pytest.mark.parametrize("reason", ["ServiceUnavailable", "TooManyRequests", "InternalError"])
def test_a_server_that_is_busy_or_starting_refuses_for_now(
    way: Way, server: Any, reason: str
) -> None:
    client = way()
    server.refuse_with = reason
    with pytest.raises(NotNowError, match=reason):
        client.get(RAYJOBS, "first")


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        ((403, "Forbidden", 'rayjobs "first" is forbidden: exceeded quota: jobs, used: 5'),
         NotNowError),
        ((500, "InternalError", 'failed calling webhook "kueue": connection refused'), NotNowError),
        ((409, "Conflict", 'Operation cannot be fulfilled on resourcequotas "jobs"'), NotNowError),
        ((403, "Forbidden", 'admission webhook "kueue" denied the request: no such queue'),
         ClusterError),
        ((422, "Invalid", 'RayJob "first" is invalid: spec'), ClusterError),
    ],
)  # fmt: skip
def test_a_full_quota_passes_and_a_webhooks_verdict_stays(
    way: Way, server: Any, refusal: tuple[int, str, str], error: type[Any]
) -> None:
    server.refuse_creation = refusal
    with pytest.raises(error, match=refusal[2][:20]) as raised:
        way().create(RAYJOBS, JOB)
    assert "accounts.yaml" not in str(raised.value)


def test_a_kind_that_is_not_installed_is_no_missing_object(
    way: Way, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "answer", lambda *_: (404, "404 page not found"))
    with pytest.raises(ClusterError, match=r"KubeRay and k8s/templates\.yaml"):
        way().get(TEMPLATES, "train")


def test_a_server_that_is_gone_is_unreachable_not_a_missing_object(way: Way, server: Any) -> None:
    client = way()
    assert client.get(RAYJOBS, "first") is None
    server.stop()
    with pytest.raises(UnreachableError):
        client.get(RAYJOBS, "first")


def test_a_server_of_another_ca_is_not_trusted(
    way: Way, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = way()
    other = tmp_path / "other"
    other.mkdir()
    with StandIn(other).running():
        (tmp_path / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    with pytest.raises(ConfigError, match="certificate"):
        client.get(RAYJOBS, "first")


def test_a_token_that_was_replaced_under_a_follower_is_read_again(way: Way, server: Any) -> None:
    client = way()
    assert client.get(RAYJOBS, "first") is None
    server.tokens = {"the next one"}
    server.kubeconfig("the next one")
    server.account("the next one")
    assert client.get(RAYJOBS, "first") is None


def test_an_exec_plugin_is_asked_once_and_may_talk_on_stderr(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {"token": TOKEN},
    }  # fmt: skip
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import sys; print('WARNING: old', file=sys.stderr)\n"
        f"open({str(asked)!r}, 'a').write('x')\n"
        f"print({json.dumps(credential)!r})"
    )
    user = {"apiVersion": "client.authentication.k8s.io/v1", "command": sys.executable,
            "args": [str(plugin)]}  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(exec=user)))
    client = ApiServer(None, None, 10)
    assert client.create(RAYJOBS, JOB) is True
    assert client.create(RAYJOBS, JOB) is False
    for _ in range(5):
        assert client.get(RAYJOBS, "first") is not None
    assert asked.read_text() == "x"


def test_without_any_credentials_it_is_said_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="KUBECONFIG"):
        ApiServer(None, None, 10).objects(RAYJOBS)


def test_a_pod_uses_its_own_namespace_unless_told_otherwise(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_pod(server, monkeypatch)
    (server.folder / "namespace").write_text("team-b\n")
    assert ApiServer(None, None, 10).namespace == "team-b"
    assert ApiServer(None, "other", 10).namespace == "other"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert ApiServer(None, None, 10).namespace == api_server.DEFAULT_NAMESPACE


def test_the_submitters_role_gives_what_is_asked_and_no_more() -> None:
    assert submitters_rights() == {
        "rayjobs": ["get", "list", "create", "delete"],
        "rayjobtemplates": ["get", "list"],
        "pods": ["list"],
        "events": ["list"],
        "workloads": ["list"],
        "localqueues": ["list"],
    }


def test_a_template_is_of_a_kind_that_neither_kuberay_nor_a_queue_knows() -> None:
    for name in ("train", "encode"):
        template: Any = base_template(name)
        assert template["apiVersion"].partition("/")[0] == TEMPLATES.group
        assert not TEMPLATES.group.endswith(("ray.io", "k8s.io"))
