"""A stand-in for Kubernetes' API server: one namespace over HTTPS, with tokens, rights, strictness.

A real one takes root, Go and seconds; tests/cluster/test_stand_in.py asks both the same. It knows
what the submission rests on: names that only one object has, unknown fields refused, preconditions
of a deletion, and the rights that the Role `submitter` gives, read from k8s/base. What KubeRay
would do is told by `script`.
"""

import copy
import datetime
import ipaddress
import json
import re
import ssl
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TOKEN = "a-token-of-the-tests"
_OF_NO_NAMESPACE = ("priorityclasses",)
_ACCOUNTS = Path(__file__).parents[2] / "k8s/base/accounts.yaml"
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[a-z0-9.-]+))/(?P<version>v\w+)"
    r"(?:/namespaces/(?P<namespace>[a-z0-9-]+))?/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?"
)


def submitters_rights() -> dict[str, list[str]]:
    """Verbs by resource, of the Role that submitters are given."""
    items = yaml.safe_load_all(_ACCOUNTS.read_text())
    (role,) = [item for item in items if item["kind"] == "Role"]
    return {name: rule["verbs"] for rule in role["rules"] for name in rule["resources"]}


@dataclass
class ApiServer:
    """Serves `objects`, the RayJobs; `script` is what each look at one of them finds next.

    Each creation takes the first of `lives` as its script, if any is left. `others` are the other
    objects, by resource. `refuse_with` answers all with that refusal, `refuse_creation` creations
    with (code, reason, message).
    """

    folder: Path
    rights: dict[str, list[str]] = field(default_factory=submitters_rights)
    validator: Any = None
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    script: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    lives: list[list[dict[str, Any]]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=lambda: {TOKEN})
    refuse_with: str | None = None
    refuse_creation: tuple[int, str, str] | None = None
    is_ready: bool = True
    refused: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, item: dict[str, Any]) -> None:
        """Creates an object behind everyone's back."""
        item, kind = copy.deepcopy(item), item["kind"]
        with self._lock:
            if kind == "RayJob":
                self._add(item)
            else:
                self.others[f"{kind.lower()}s"].append(item)

    def kubeconfig(self, token: str = TOKEN, **user: Any) -> Path:
        """A file for clients; `user` replaces the token, as an exec plugin does."""
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "ca.crt")}
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user or {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }  # fmt: skip
        path = self.folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def account(self, token: str = TOKEN) -> Path:
        """The folder that a pod finds its credentials in."""
        (self.folder / "token").write_text(token)
        (self.folder / "namespace").write_text("vae")
        return self.folder

    def answer(self, method: str, path: str, body: Any, token: str) -> tuple[int, Any]:
        asked = urlsplit(path)
        if asked.path == "/readyz":
            return (200, "ok") if self.is_ready else (500, "[-]poststarthook/rbac/bootstrap-roles")
        query, found = parse_qs(asked.query), _PATH.fullmatch(asked.path)
        if token.partition(" ")[2] not in self.tokens:
            return _refusal(401, "Unauthorized", "Unauthorized")
        if found is None:
            return 404, "404 page not found"
        name, resource = found["name"] or "", found["resource"]
        verb = {"GET": "get" if name else "list", "POST": "create", "DELETE": "delete"}[method]
        here = found["namespace"] == (None if resource in _OF_NO_NAMESPACE else "vae")
        allowed = here and verb in self.rights.get(resource, ())
        if not allowed or not self.is_ready:
            self.refused += 1
            return _refusal(
                403, "Forbidden",
                f'{resource} is forbidden: User "tests" cannot {verb} resource "{resource}" in API '
                f'group "{found["group"] or ""}" in the namespace "{found["namespace"]}"',
            )  # fmt: skip
        if self.refuse_with is not None:
            self.refused += 1
            return _refusal(503, self.refuse_with, "try again later")
        with self._lock:
            self.requests.append((method, path))
            if resource != "rayjobs":
                return self._other(resource, name, query)
            if verb == "create" and self.refuse_creation is not None:
                self.refused += 1
                return _refusal(*self.refuse_creation)
            return getattr(self, f"_{verb}")(name, query, body)

    def _other(self, resource: str, name: str, query: Any) -> tuple[int, Any]:
        if resource in ("workloads", "localqueues") and resource not in self.others:
            return 404, "404 page not found"  # Kueue is not installed.
        items = self.others[resource]
        if name:
            for item in items:
                if item["metadata"]["name"] == name:
                    return 200, item
            return _refusal(404, "NotFound", f'{resource} "{name}" not found')
        for selector in query.get("labelSelector", ()):
            key, _, value = selector.partition("=")
            items = [i for i in items if i["metadata"].get("labels", {}).get(key) == value]
        for selector in query.get("fieldSelector", ()):
            key, _, value = selector.partition("=")
            items = [item for item in items if item.get(key) == value]
        return 200, {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}

    def _get(self, name: str, _query: Any, _body: Any) -> tuple[int, Any]:
        item = self.objects.get(name)
        if item is None:
            return _refusal(404, "NotFound", f'rayjobs.ray.io "{name}" not found')
        states = self.script.get(name)
        if states:
            state = states.pop(0)
            if "gone" in state:
                del self.objects[name]
                return self._get(name, _query, _body)
            item["status"] = state
        return 200, item

    def _list(self, _name: str, _query: Any, _body: Any) -> tuple[int, Any]:
        return 200, {"kind": "RayJobList", "items": list(self.objects.values())}

    def _create(self, _name: str, query: Any, body: Any) -> tuple[int, Any]:
        name = body["metadata"]["name"]
        if query.get("fieldValidation") == ["Strict"] and self.validator is not None:
            for error in self.validator.iter_errors(body):
                return _misfit(error)
        if name in self.objects:
            return _refusal(409, "AlreadyExists", f'rayjobs.ray.io "{name}" already exists')
        if query.get("dryRun") == ["All"]:
            return 201, body
        return 201, self._add(body)

    def _delete(self, name: str, _query: Any, body: Any) -> tuple[int, Any]:
        item = self.objects.get(name)
        if item is None:
            return _refusal(404, "NotFound", f'rayjobs.ray.io "{name}" not found')
        expected = (body or {}).get("preconditions", {}).get("uid")
        if expected not in (None, item["metadata"]["uid"]):
            return _refusal(
                409, "Conflict",
                f'Operation cannot be fulfilled on rayjobs.ray.io "{name}": UID in precondition: '
                f"{expected}, UID in object meta: {item['metadata']['uid']}",
            )  # fmt: skip
        del self.objects[name]
        return 200, {"kind": "Status", "status": "Success"}

    def _add(self, item: dict[str, Any]) -> dict[str, Any]:
        item["metadata"]["uid"] = str(uuid.uuid4())
        name = item["metadata"]["name"]
        self.objects[name] = item
        if self.lives:
            self.script[name] = self.lives.pop(0)
        return item

    @contextmanager
    def running(self, port: int = 0) -> Iterator["ApiServer"]:
        """On loopback, until the block ends; `port` is an earlier one's, to come back at it."""
        certificate = _certificate(self.folder)
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, self.folder / "key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        self.port = server.server_address[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        """Nothing listens afterwards."""
        self._server.shutdown()
        self._server.server_close()


def _refusal(code: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    return code, {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": reason, "message": message,
    }  # fmt: skip


def _misfit(error: Any) -> tuple[int, dict[str, Any]]:
    """A field that there is not, or one of another type, in the server's words."""
    place = ".".join(map(str, error.absolute_path))
    unknown = re.findall(r"'([^']+)'", error.message)
    if error.validator != "additionalProperties":
        said = f"{place}: Invalid value: {error.message}"
        return _refusal(422, "Invalid", f"RayJob.ray.io is invalid: {said}")
    return _refusal(
        400, "BadRequest",
        'RayJob in version "v1" cannot be handled as a RayJob: strict decoding error: unknown '
        f'field "{place}.{unknown[0]}"',
    )  # fmt: skip


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(data) if data else None
            token = self.headers.get("Authorization", "")
            code, answer = server.answer(self.command, self.path, body, token)
            text = isinstance(answer, str)
            data = answer.encode() if text else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if text else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing: the tests look at `requests`."""

    return Handler


def _certificate(folder: Path) -> Path:
    """One that signs itself, for 127.0.0.1; kept, so that a server that comes back has it."""
    path = folder / "ca.crt"
    if path.exists():
        return path
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(addresses, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path
