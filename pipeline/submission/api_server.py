"""Kubernetes' API server through its official client: credentials, and what a refusal means."""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import ClusterError, ConfigError, NotNowError, UnreachableError
from pipeline.submission.objects import Kind

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, ApiException

Object = TypeVar("Object")

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token, the API server's CA and its own namespace."""
DEFAULT_NAMESPACE = "vae"


def is_named(context: str | None) -> bool:
    """Whether a context, a pod's account or a kubeconfig says which API server is meant."""
    said = os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = [Path(each).expanduser() for each in said.split(os.pathsep)]
    return context is not None or _is_pod() or any(map(Path.is_file, files))


def _is_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and (ACCOUNT / "token").exists()


class ApiServer:
    """One namespace, as the kubeconfig's user sees it, or a pod with a service account.

    The client brings exec plugins, OIDC, proxies and renewed tokens; its connection is kept. All
    methods raise `UnreachableError` for no answer, `NotNowError` for a refusal that passes by
    itself, `ConfigError` for credentials that don't do, `ClusterError` for any other refusal.
    """

    def __init__(self, context: str | None, namespace: str | None, seconds: float) -> None:
        self._context, self._seconds = context, seconds
        self._in_pod = context is None and _is_pod()
        own = (ACCOUNT / "namespace").read_text(encoding="utf-8") if self._in_pod else ""
        self.namespace = namespace or own.strip() or DEFAULT_NAMESPACE
        self._client: ApiClient | None = None

    def get(self, kind: Kind[Object], name: str) -> Object | None:
        """An object of a custom kind; None if there is none of that name."""
        try:
            found: Object = self._ask(
                lambda api: _custom(api).get_namespaced_custom_object(
                    kind.group, kind.version, self.namespace, kind.plural, name,
                    _request_timeout=self._seconds,
                )
            )  # fmt: skip
        except _Refused as refused:
            # Of a kind that is not installed it knows no reason.
            if refused.reason == "NotFound":
                return None
            raise self._explained(refused) from None
        return found

    def objects(self, kind: Kind[Object], labels: str = "") -> list[Object]:
        """The objects of a custom kind that have these labels."""
        return self._items(
            lambda api: _custom(api).list_namespaced_custom_object(
                kind.group, kind.version, self.namespace, kind.plural, label_selector=labels,
                _request_timeout=self._seconds,
            )
        )  # fmt: skip

    def everywhere(self, kind: Kind[Object]) -> list[Object]:
        """The objects of a kind that belongs to no namespace."""
        return self._items(
            lambda api: _custom(api).list_cluster_custom_object(
                kind.group, kind.version, kind.plural, _request_timeout=self._seconds
            )
        )

    def create(self, kind: Kind[Object], body: Object, *, dry_run: bool = False) -> bool:
        """False if there is one of that name. Unknown fields are refused, not dropped."""
        try:
            self._ask(
                lambda api: _custom(api).create_namespaced_custom_object(
                    kind.group, kind.version, self.namespace, kind.plural, body,
                    field_validation="Strict", _request_timeout=self._seconds,
                    **({"dry_run": "All"} if dry_run else {}),
                )
            )  # fmt: skip
        except _Refused as refused:
            if refused.reason == "AlreadyExists":
                return False
            raise self._explained(refused) from None
        return True

    def delete(self, kind: Kind[Object], name: str, uid: str) -> None:
        """Removes this very object, with what it owns; not one that took its name meanwhile."""
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            self._ask(
                lambda api: _custom(api).delete_namespaced_custom_object(
                    kind.group, kind.version, self.namespace, kind.plural, name, body=options,
                    _request_timeout=self._seconds,
                )
            )  # fmt: skip
        except _Refused as refused:
            if refused.reason not in ("NotFound", "Conflict"):
                raise self._explained(refused) from None

    def pods(self, labels: str) -> list[Any]:
        """The client's `V1Pod`s that have these labels."""
        return self._items(
            lambda api: _core(api).list_namespaced_pod(
                self.namespace, label_selector=labels, _request_timeout=self._seconds
            )
        )

    def warnings(self) -> list[Any]:
        """The client's `CoreV1Event`s of type Warning, which the server keeps for an hour."""
        return self._items(
            lambda api: _core(api).list_namespaced_event(
                self.namespace, field_selector="type=Warning", _request_timeout=self._seconds
            )
        )

    def _items(self, ask: Callable[["ApiClient"], Any]) -> list[Any]:
        try:
            found = self._ask(ask)
        except _Refused as refused:
            raise self._explained(refused) from None
        items: list[Any] = found["items"] if isinstance(found, dict) else found.items
        return items

    def _ask(self, ask: Callable[["ApiClient"], Any]) -> Any:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError, SSLError

        again = self._client is not None
        while True:
            client = self._client = self._client or self._connected()
            try:
                return ask(client)
            except ApiException as error:
                if error.status == 401 and again:
                    # Tokens and certificates are renewed under a follower of weeks.
                    self._client, again = None, False
                    continue
                if not error.status:  # The client's word for a TLS connection that it broke off.
                    raise self._untrusted(error.reason) from None
                raise _Refused.of(error) from None
            except HTTPError as error:
                cause = getattr(error, "reason", None) or error
                if isinstance(cause, SSLError) and "certificate" in str(cause):
                    raise self._untrusted(cause) from None
                raise UnreachableError(f"Kubernetes does not answer: {cause}") from None

    def _connected(self) -> "ApiClient":
        from kubernetes import client, config
        from kubernetes.config.incluster_config import InClusterConfigLoader

        settings = client.Configuration()
        # Who asks waits and asks again himself, and says so.
        settings.retries = 0
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        try:
            if self._in_pod:
                files = [str(ACCOUNT / name) for name in ("token", "ca.crt")]
                InClusterConfigLoader(*files).load_and_set(settings)
            else:
                config.load_kube_config(
                    os.environ.get("KUBECONFIG") or "~/.kube/config",
                    context=self._context,
                    client_configuration=settings,
                )
        except config.ConfigException as error:
            raise ConfigError(
                f"--kubernetes needs a kubeconfig, or to run in a pod with a service account: "
                f"{error}. Give the file by `export KUBECONFIG=PATH`, and, where it has several "
                "contexts, `--context NAME`."
            ) from None
        return client.ApiClient(settings)

    def _is_ready(self) -> bool:
        """False where the server says itself that it has not begun: it then refuses everything."""
        assert self._client is not None, "it has just refused something"
        answer = self._client.call_api(
            "GET", f"{self._client.configuration.host}/readyz", _request_timeout=self._seconds
        )
        return int(answer.status) < 500

    def _untrusted(self, said: object) -> ConfigError:
        return ConfigError(
            f"Kubernetes: the API server's certificate is not trusted: {said}. The kubeconfig's "
            "`certificate-authority` must be the cluster's own."
        )

    def _explained(self, refused: "_Refused") -> Exception:
        said = f"Kubernetes, namespace {self.namespace}: {refused}"
        if refused.status == 401:
            return ConfigError(
                f"{said}. The credentials are wrong, or ran out: log in again; `kubectl config "
                "view --minify` shows which ones are used, and what an exec plugin said stands "
                "above."
            )
        # "exceeded quota: jobs", or "status unknown for quota: jobs" of one that is new.
        if refused.status == 403 and re.search("(exceeded|for) quota: ", refused.message):
            return NotNowError(said)
        if refused.status == 403 and " cannot " in refused.message:
            if not self._is_ready():
                return NotNowError(f"{said} (the API server has only just started)")
            return ConfigError(
                f"{said}. Is `--namespace NAME` right? The Role `submitter` of "
                "k8s/base/accounts.yaml suffices, in the namespace that it was applied to."
            )
        if refused.status == 404:
            return ClusterError(
                f"{said}. Are KubeRay and k8s/templates.yaml installed, and the overlay applied?"
            )
        # 409 is another one's change at the same moment; 5xx a server or a webhook that is away.
        if refused.status in (409, 429) or refused.status >= 500:
            return NotNowError(said)
        return ClusterError(said)


class _Refused(Exception):  # noqa: N818 - it never leaves this module
    """The API server said no; `reason` is its own word, such as NotFound, "" for none."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{reason or status}: {message}")
        self.status, self.reason, self.message = status, reason, message

    @staticmethod
    def of(error: "ApiException") -> "_Refused":
        """From the client's exception, whose body is a `Status` where Kubernetes itself spoke."""
        status = int(error.status or 0)
        try:
            said = json.loads(error.body or "")
            return _Refused(status, said.get("reason") or "", said.get("message") or "")
        except (ValueError, AttributeError):
            return _Refused(status, "", str(error.body or error.reason or "")[:500].strip())


def _custom(api: "ApiClient") -> Any:
    from kubernetes.client import CustomObjectsApi

    return CustomObjectsApi(api)


def _core(api: "ApiClient") -> Any:
    from kubernetes.client import CoreV1Api

    return CoreV1Api(api)
