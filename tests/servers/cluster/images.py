"""Images that hold no programs: pods run the host's own, which each container finds mounted.

What stands in for an image keeps its contract: entrypoint, user, environment, ports. Layout of the
archive: OCI image-spec 1.0.
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HOST = "docker.io/local/host:1"
PAUSE = "docker.io/local/pause:1"
_PODS = "/opt/project/tests/servers/cluster/pods"
_FOLDERS = (
    "usr", "proc", "sys", "dev", "run", "etc", "home", "root", "var", "var/lib", "var/run", "opt",
    "opt/bin", "opt/venv", "opt/project", "opt/servers",
)  # fmt: skip
_USERS = (
    "root:x:0:0:root:/root:/bin/bash\nvae:x:10001:10001::/tmp:/bin/bash\n"
    "postgres:x:999:999::/tmp:/bin/bash\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"
)
_FILES = {
    "etc/passwd": _USERS,
    "etc/group": "root:x:0:\nvae:x:10001:\npostgres:x:999:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "hosts: files dns\npasswd: files\n",
    # The scripts of a virtual environment name the folder that it was made in.
    "opt/bin/ray": '#!/bin/sh\nexec /opt/venv/bin/python -m ray.scripts.scripts "$@"\n',
    "opt/bin/mlflow": '#!/bin/sh\nexec /opt/venv/bin/python -m mlflow "$@"\n',
}
_PATH = "/opt/bin:/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Image:
    """What a reference is: by whom, and as what it is started where a pod says nothing."""

    entrypoint: tuple[str, ...] = ()
    user: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


_OURS = Image(
    ("python", "-m", "jobs"), "10001:10001",
    {"HOME": "/tmp", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"},
)  # fmt: skip
IMAGES = {
    HOST: Image(),
    "docker.io/library/vae-pipeline:0.1.0": _OURS,
    "docker.io/library/vae-pipeline:0.1.0-slim": _OURS,
    "docker.io/library/postgres:17.6": Image(("bash", f"{_PODS}/postgres.sh")),
    "docker.io/minio/minio:RELEASE.2025-09-07T16-13-09Z": Image(("python", f"{_PODS}/s3.py")),
    "docker.io/prom/pushgateway:v1.11.1": Image(("prometheus-pushgateway",), "65534:65534"),
}
"""By the names in k8s/overlays/dev."""


def write_archive(path: Path, pause: Path) -> None:
    """Writes all images, and the one of a pod's first process, for `ctr images import`."""
    blobs: dict[str, bytes] = {}
    host, paused = _layer({}), _layer({"pause": pause.read_bytes()})
    found = {PAUSE: (paused, Image(("/pause",), "65535:65535"))}
    found |= {name: (host, image) for name, image in IMAGES.items()}
    index = [_manifest(name, layer, image, blobs) for name, (layer, image) in found.items()]
    members = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": index}),
        **{f"blobs/sha256/{digest}": data for digest, data in blobs.items()},
    }
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            _add(tar, name, data)


def _manifest(name: str, layer: bytes, image: Image, blobs: dict[str, bytes]) -> dict[str, object]:
    def put(kind: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        media = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    environment = {"PATH": _PATH, "PYTHONPATH": "/opt/project", "PYTHONDONTWRITEBYTECODE": "1"}
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": list(image.entrypoint),
            "User": image.user,
            "WorkingDir": "/tmp",
            "Env": [
                f"{key}={value}" for key, value in (environment | dict(image.environment)).items()
            ],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put("config.v1+json", _json(config)),
        "layers": [put("layer.v1.tar+gzip", gzip.compress(layer, mtime=0))],
    }
    return {
        **put("manifest.v1+json", _json(manifest)),
        "annotations": {"io.containerd.image.name": name},
    }


def _layer(more: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in (*_FOLDERS, "tmp", "var/tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name.endswith("tmp") else 0o755
            tar.addfile(entry)
        for name in ("bin", "sbin", "lib", "lib64"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(entry)
        for name, text in _FILES.items():
            _add(tar, name, text.encode())
        for name, data in more.items():
            _add(tar, name, data)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o755
    tar.addfile(entry, io.BytesIO(data))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
