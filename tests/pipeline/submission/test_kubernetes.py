"""The API server is asked in the same way through kubectl and with a pod's own token."""

import shutil

import pytest
import yaml

from pipeline.errors import ClusterError, ConfigError, UnreachableError
from pipeline.submission import kubernetes
from pipeline.submission.kubernetes import InCluster, Kubectl, KubernetesJobs
from pipeline.submission.rayjob import base_template, render_rayjob
from tests.k8s.manifests import K8S
from tests.k8s.schemas import CRDS, crd_validator
from tests.servers.api_server import TOKEN, VERBS, ApiServer

JOB = render_rayjob(("python", "-m", "jobs.encode"), name="first", namespace="vae")


@pytest.fixture
def server(tmp_path):
    with ApiServer(tmp_path).running() as server:
        yield server


@pytest.fixture(params=["kubectl", "pod"])
def way(request, server, monkeypatch):
    """Makes the jobs of the server, by one way or the other."""
    if request.param == "kubectl" and shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")

    def connected(token: str = TOKEN) -> KubernetesJobs:
        if request.param == "kubectl":
            monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(token)))
            return KubernetesJobs(Kubectl(None, 10), "vae")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        return KubernetesJobs(InCluster(server.account(token), 10), "vae")

    return connected


def test_a_rayjob_is_created_once_and_then_there(way):
    jobs = way()
    assert jobs.job("first") is None
    assert jobs.create(JOB) is True
    assert jobs.create(JOB) is False
    found = jobs.job("first")
    assert (found.name, found.entrypoint) == ("first", "python -m jobs.encode")
    assert not found.has_ended


def test_the_list_leaves_out_the_templates(way, server):
    server.put(base_template("train"))
    # As Kueue does with what must wait for its turn.
    server.put({**JOB, "spec": {**JOB["spec"], "suspend": True}})
    assert [job.name for job in way().jobs()] == ["first"]


def test_a_dry_run_creates_nothing(way, server):
    assert way().create(JOB, dry_run=True) is True
    assert server.objects == {}


@pytest.mark.skipif(not CRDS.exists(), reason="the CRDs are not there")
def test_a_field_that_kuberay_does_not_know_is_refused_and_named(way, server):
    server.validator = crd_validator("RayJob")
    wrong = {**JOB, "spec": {**JOB["spec"], "ttlSecondsAfterFinish": 1}}
    with pytest.raises(ClusterError, match="ttlSecondsAfterFinish"):
        way().create(wrong)
    assert way().create(JOB) is True


def test_a_deletion_spares_another_one_that_took_the_name(way, server):
    jobs = way()
    jobs.create(JOB)
    old = jobs.job("first")
    server.objects.clear()
    jobs.create(JOB)
    jobs.delete(old)
    assert "first" in server.objects
    jobs.delete(jobs.job("first"))
    assert server.objects == {}
    jobs.delete(old)  # what is gone is gone


def test_credentials_that_do_not_do_are_the_users_error(way):
    with pytest.raises(ConfigError):
        way("another token").jobs()


def test_a_right_that_is_missing_is_named_with_its_cure(way, server):
    server.verbs = ("get", "list")
    with pytest.raises(ConfigError, match=r"may not create.*accounts\.yaml"):
        way().create(JOB)


@pytest.mark.parametrize("reason", ["ServiceUnavailable", "TooManyRequests", "InternalError"])
def test_a_server_that_is_busy_or_starting_is_unreachable_for_now(way, server, reason):
    jobs = way()
    server.refuse_with = reason
    with pytest.raises(UnreachableError, match=reason):
        jobs.job("first")


def test_a_server_that_is_gone_is_unreachable_not_a_missing_job(way, server):
    jobs = way()
    server.stop()
    with pytest.raises(UnreachableError):
        jobs.job("first")


def test_a_pod_uses_its_own_account_and_namespace_unless_told_otherwise(server, monkeypatch):
    monkeypatch.setattr(kubernetes, "ACCOUNT", server.account())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    (server.folder / "namespace").write_text("vae")
    jobs = kubernetes.connect(None, None, 10)
    assert jobs.namespace == "vae"
    assert jobs.create(JOB) is True
    assert kubernetes.connect(None, "other", 10).namespace == "other"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert kubernetes.connect(None, None, 10).namespace == kubernetes.DEFAULT_NAMESPACE


def test_the_submitters_role_allows_what_is_asked_and_no_more():
    roles = yaml.safe_load_all((K8S / "base/accounts.yaml").read_text())
    (role,) = [item for item in roles if item["kind"] == "Role"]
    (rule,) = role["rules"]
    assert (rule["apiGroups"], rule["resources"]) == (["ray.io"], ["rayjobs"])
    assert set(rule["verbs"]) == set(VERBS)
