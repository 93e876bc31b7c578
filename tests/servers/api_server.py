"""A stand-in for Kubernetes' API server: RayJobs over HTTPS, with tokens, rights and strictness.

No real one can be installed where the tests run. It knows what the submission rests on: names that
only one object has, unknown fields refused, preconditions of a deletion, and the verbs that a Role
allows. What KubeRay would do is told by `script`.
"""

import copy
import datetime
import ipaddress
import json
import ssl
import threading
import uuid
from collections.abc import Iterator, Sequence
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
VERBS = ("get", "list", "create", "delete")
_PREFIX = "/apis/ray.io/v1/namespaces/vae/rayjobs"


@dataclass
class ApiServer:
    """Serves `objects` below one namespace; `script` is what each look at a RayJob finds next.

    Each creation takes the first of `lives` as its script, if any is left.
    """

    folder: Path
    verbs: Sequence[str] = VERBS
    validator: Any = None
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    script: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    lives: list[list[dict[str, str]]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    refuse_with: str | None = None
    refused: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, item: dict[str, Any]) -> None:
        """Creates an object behind everyone's back."""
        with self._lock:
            self._add(copy.deepcopy(item))

    def kubeconfig(self, token: str = TOKEN) -> Path:
        """A file for kubectl."""
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "ca.crt")}
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
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
        query, name = parse_qs(asked.query), asked.path.removeprefix(_PREFIX).strip("/")
        if token != f"Bearer {TOKEN}":
            return _refusal(401, "Unauthorized", "no such token")
        verb = {"GET": "get" if name else "list", "POST": "create", "DELETE": "delete"}[method]
        if not asked.path.startswith(_PREFIX) or verb not in self.verbs:
            return _refusal(403, "Forbidden", f"you may not {verb} {asked.path}")
        if self.refuse_with is not None:
            self.refused += 1
            return _refusal(503, self.refuse_with, "try again later")
        with self._lock:
            self.requests.append((method, path))
            return getattr(self, f"_{verb}")(name, query, body)

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
                return _refusal(400, "BadRequest", f"strict decoding error: {error.message}")
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
            return _refusal(409, "Conflict", "the UID in the precondition differs")
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


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            data = self.sent()
            body = json.loads(data) if data else None
            token = self.headers.get("Authorization", "")
            code, answer = server.answer(self.command, self.path, body, token)
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def sent(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []  # kubectl's way
            while length := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

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
