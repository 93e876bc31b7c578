"""`jobs.doctor`: each probe says what was found, why it matters, and the command that mends it."""

import email.utils
import importlib.util
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline import storage
from pipeline.config import DoctorConfig
from pipeline.errors import (
    BucketNotFoundError,
    PipelineError,
    StorageShortageError,
    TrackingError,
    UnreachableError,
)
from pipeline.machine import cores_here, memory_limit_bytes
from pipeline.masking import shell_word
from pipeline.tracking.mlflow_client import tracking_uri
from pipeline.tracking.mlflow_closing import close_dead_runs
from pipeline.tracking.mlflow_probe import probe_mlflow
from pipeline.web import ask, ray_token

GIB = 2**30
_PROBE_BYTES = 8 * 2**20
"""Enough to tell MB/s from a request's own time; 8 s on a line of 1 MB/s."""
_ANSWER_SECONDS = 10.0
"""A healthy server answers within one; one that scales up from nothing within a few."""
SKEW_SECONDS = 60.0
"""S3 refuses requests that are 15 minutes off; logs and alerts mislead long before."""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's."""

    name: str
    level: Literal["ok", "warning", "failed", "skipped"]
    found: str
    why: str = ""
    mend: str = ""

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{self.level:<8} {self.name:<22} {self.found}"]
        if self.level in ("warning", "failed"):
            lines += [f"{'':<32}why:  {self.why}", f"{'':<32}mend: {self.mend}"]
        return lines


def examine(config: DoctorConfig) -> Iterator[Check]:
    """Every check, one after the other; all that stays is MLflow's experiment `doctor`,
    and what it ends there: runs that died and say RUNNING still."""
    yield _versions()
    yield from _storage(config)
    yield from _mlflow(config)
    yield from _ray()
    yield _gpu()
    # A volume of 1 GiB, as the manifests give a head, has a little less free.
    yield _room("shared memory", Path("/dev/shm"), 0.9, *_SHARED_MEMORY)  # noqa: S108
    yield _room("disk", Path(tempfile.gettempdir()), 5.0, *_DISK)
    yield _memory()
    yield _clock(config)


_SHARED_MEMORY = (
    "Ray's objects and NCCL live in /dev/shm; Ray is slow without it, and NCCL fails.",
    "docker run --shm-size=8g, or in Kubernetes an emptyDir with medium: Memory at /dev/shm",
)
_DISK = (
    "Ray's logs, spilled objects and images on the way to storage lie in the temporary folder.",
    "export TMPDIR=/a/larger/disk",
)


def _versions() -> Check:
    found = []
    for name in ("vae-pipeline", "torch", "ray", "mlflow"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {name}")
    missing = any(each.startswith("no ") for each in found)
    return Check(
        "versions", "warning" if missing else "ok", ", ".join(found),
        "Ray and MLflow are needed by all jobs but jobs.pull and those of one process.",
        "pip install 'vae-pipeline[cluster]' --constraint constraints.txt",
    )  # fmt: skip


def _storage(config: DoctorConfig) -> Iterator[Check]:
    url = storage.absolute(config.storage)
    folder = storage.join(url, f".doctor-{uuid.uuid4().hex[:12]}")
    place, lock = storage.join(folder, "bytes"), storage.join(folder, "lock")
    mend = _storage_advice(url)
    data = os.urandom(_PROBE_BYTES)
    size = _PROBE_BYTES / 2**20
    written = False
    # Jobs are patient with a storage that restarts; who asks what is wrong wants to hear it.
    before = storage.set_retry_policy(storage.RetryPolicy(deadline_seconds=_ANSWER_SECONDS))
    try:
        started = time.perf_counter()
        storage.publish(place, data)
        wrote = size / (time.perf_counter() - started)
        written = True
        started = time.perf_counter()
        whole = storage.read(place)
        read = size / (time.perf_counter() - started)
        yield Check(
            "storage", "ok" if whole == data else "failed",
            f"{storage.shown(url)}: wrote {wrote:,.0f} MiB/s, read {read:,.0f} MiB/s in one stream",
            "What is read must be what was written.", mend,
        )  # fmt: skip
        part = storage.read(place, 1000, 2000) == data[1000:2000]
        yield Check(
            "storage: ranged read", "ok" if part else "failed",
            "a part is read alone" if part else "a part that is asked for comes back wrong",
            "Shards are read in parts of a few MB.", mend,
        )  # fmt: skip
        listed = [item.size for item in storage.list_objects(folder)]
        yield Check(
            "storage: list", "ok" if listed == [len(data)] else "failed",
            f"{len(listed)} object of {sum(listed):,} bytes listed",
            "Checkpoints and receipts are found by listing.", mend,
        )  # fmt: skip
        won = [storage.create_if_absent(lock, name) for name in (b"first", b"second")]
        once = won == [True, False] and storage.read(lock) == b"first"
        yield Check(
            "storage: create once", "ok" if once else "failed",
            "a second writer is refused" if once else "a second writer may overwrite the first",
            "Two starts of one run tell by this who owns it (S3's If-None-Match: *).",
            "Use a store that knows conditional writes: AWS S3, Ceph 16 or later, MinIO.",
        )  # fmt: skip
    except PipelineError as error:
        why = "Datasets, runs and latent stores live there."
        if isinstance(error, BucketNotFoundError):
            bucket = shell_word("/".join(storage.shown(url).split("/")[:3]))
            mend = f"aws s3 mb {bucket}, or give --storage with a bucket that there is"
        elif isinstance(error, StorageShortageError):
            mend = (
                f"start {_endpoint()}, or make room there, or set AWS_ENDPOINT_URL to where it is"
            )
        yield Check("storage", "failed", str(error), why, mend)
    finally:
        for each in (place, lock) if written else ():
            with suppress(PipelineError):
                storage.delete(each)
        storage.set_retry_policy(before)
        if (path := storage.local_path(folder)) is not None:
            shutil.rmtree(path, ignore_errors=True)


def _endpoint() -> str:
    return storage.shown(os.environ.get("AWS_ENDPOINT_URL", "AWS"))


def _storage_advice(url: str) -> str:
    if storage.local_path(url) is not None:
        return f"mkdir -p {shell_word(url)} && chown $(id -u) {shell_word(url)}"
    return (
        f"the endpoint is {_endpoint()} (AWS_ENDPOINT_URL); set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, and allow GetObject, PutObject, DeleteObject and ListBucket"
    )


def _mlflow(config: DoctorConfig) -> Iterator[Check]:
    why = "Runs are tracked there and models registered; training goes on without, unregistered."
    uri = tracking_uri()
    shown = storage.shown(uri) if "@" in uri else uri
    if uri.startswith(("http://", "https://")):
        try:
            ask("GET", f"{uri.rstrip('/')}/health", seconds=_ANSWER_SECONDS)
            asked = "/api/2.0/mlflow/experiments/search?max_results=1"
            answer = ask("GET", uri.rstrip("/") + asked, seconds=_ANSWER_SECONDS)
        except UnreachableError as error:
            mend = "start it, or set MLFLOW_TRACKING_URI to where it is"
            yield Check("mlflow", "failed", str(error), why, mend)
            return
        known = bool(os.environ.get("MLFLOW_TRACKING_USERNAME", "")) or bool(
            os.environ.get("MLFLOW_TRACKING_TOKEN", "")
        )
        if answer.status == 403 and "host" in answer.text.lower():
            yield Check(
                "mlflow", "failed", f"{shown} refuses this host name: {answer.text}",
                "MLflow answers only to names it knows; /health answers to any.",
                "start the server with --allowed-hosts 'mlflow,mlflow:*,*.svc.cluster.local:*'",
            )  # fmt: skip
            return
        if answer.status in (401, 403) and not known:
            yield Check(
                "mlflow", "failed", f"{shown} wants a user: {answer.status}", why,
                "export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=...",
            )  # fmt: skip
            return
    wrong = probe_mlflow(uri)
    yield Check(
        "mlflow", "failed" if wrong else "ok",
        f"{shown}: {wrong or 'a run and an artifact came back'}", why,
        "check the user's rights, and the server's --artifacts-destination and its credentials",
    )  # fmt: skip
    if not wrong:
        yield _dead_runs(uri)


def _dead_runs(uri: str) -> Check:
    try:
        closed = close_dead_runs(uri)
    except TrackingError as error:
        return Check("mlflow: dead runs", "warning", str(error), "They say RUNNING.", "try again")
    told = [
        f"{len(names)} said RUNNING that {what}: {', '.join(names[:20])}"
        for names, what in (
            (closed.died, "had died, and KILLED now"),
            (closed.finished, "had finished, and FINISHED now"),
        )
        if names
    ]
    said = "; ".join(told) or "none says RUNNING that has died or finished"
    return Check("mlflow: dead runs", "ok", said)


def _ray() -> Iterator[Check]:
    address = os.environ.get("RAY_API_SERVER_ADDRESS") or _dashboard_here()
    if not address:
        said = f"no dashboard is named: jobs start Ray here ({cores_here():g} cores)"
        yield Check("ray", "skipped", said)
        return
    why = "jobs.submit talks to the cluster there."
    token = ray_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url, seconds = address.rstrip("/"), _ANSWER_SECONDS
    try:
        open_to_all = ask("GET", f"{url}/api/jobs/", seconds=seconds).status == 200
        version = ask("GET", f"{url}/api/version", headers=headers, seconds=seconds)
        nodes = ask("GET", f"{url}/nodes?view=summary", headers=headers, seconds=seconds)
    except UnreachableError as error:
        mend = "kubectl port-forward service/HEAD 8265, or set RAY_API_SERVER_ADDRESS"
        yield Check("ray", "failed", str(error), why, mend)
        return
    if version.status in (401, 403):
        yield Check(
            "ray", "failed", f"{storage.shown(url)} refuses the token: {version.text}", why,
            "export RAY_AUTH_TOKEN=... (the cluster's own; `ray get-auth-token` on its head)",
        )  # fmt: skip
        return
    try:
        theirs = version.read(lambda found: str(found["ray_version"]), "Ray dashboard")
        alive = nodes.read(_alive, "Ray dashboard")
    except UnreachableError as error:
        yield Check("ray", "failed", f"{storage.shown(url)}: {error}", why, "name Ray's dashboard")
        return
    ours = metadata.version("ray")
    yield Check(
        "ray", "ok" if theirs == ours else "failed", f"cluster has Ray {theirs}, here is {ours}",
        "Drivers join only clusters of their own version.",
        f"pip install {shell_word(f'ray=={theirs}')}",
    )  # fmt: skip
    yield Check(
        "ray: authentication", "failed" if open_to_all else "ok",
        "anybody may submit jobs" if open_to_all else "only who has the token may submit jobs",
        "Whoever submits a job runs any program on the cluster (CVE-2023-48022).",
        "start every node with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH",
    )  # fmt: skip
    totals: dict[str, float] = {}
    for node in alive:
        for name, amount in node.items():
            totals[name] = totals.get(name, 0.0) + amount
    found = f"{len(alive)} nodes, {totals.get('CPU', 0):g} CPUs, {totals.get('GPU', 0):g} GPUs now"
    if len(alive) == 1:
        found += "; where an autoscaler is, workers come while there is work"
    yield Check("ray: resources", "ok" if alive else "failed", found, why, "start workers")


def _alive(found: Any) -> list[dict[str, float]]:
    """What each node that lives has of each resource, by the dashboard's answer."""
    nodes = [node["raylet"] for node in found["data"]["summary"]]
    return [
        {str(name): float(n) for name, n in (node.get("resourcesTotal") or {}).items()}
        for node in nodes
        if node.get("state") == "ALIVE"
    ]


def _dashboard_here() -> str | None:
    """Of the cluster that this process is part of: a head serves it where it takes drivers."""
    address = os.environ.get("RAY_ADDRESS", "")
    if not address or address == "local":
        return None
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    return f"http://{'127.0.0.1' if host in (None, 'auto') else host}:8265"


def _gpu() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check(
            "gpu", "skipped", "no torch is installed here: jobs that run a model can't run"
        )
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        each = ", ".join(f"{p.name} {p.total_memory / GIB:.0f} GiB" for p in names)
        return Check("gpu", "ok", f"{each}; CUDA {torch.version.cuda}")
    if any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi"):
        return Check(
            "gpu", "failed", f"there is a GPU, but torch {torch.__version__} can't use it",
            "Training and encoding would run on the CPU.",
            "install a torch built for this driver's CUDA, and look at nvidia-smi",
        )  # fmt: skip
    return Check("gpu", "skipped", "none here: the CPU is used")


def _room(name: str, folder: Path, gib: float, why: str, mend: str) -> Check:
    if not folder.is_dir():
        return Check(name, "warning", f"there is no {folder}", why, mend)
    usage = shutil.disk_usage(folder)
    found = f"{folder}: {usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f}"
    return Check(name, "ok" if usage.free >= gib * GIB else "warning", found, why, mend)


def _memory() -> Check:
    memory, cores = memory_limit_bytes() / GIB, cores_here()
    return Check(
        "memory", "ok" if memory >= 2 else "warning", f"{memory:.1f} GiB for {cores:g} cores",
        "One worker needs about 1 GiB, and 0.5 GiB for its loader.", "ask for more memory",
    )  # fmt: skip


def _seconds_of(date: str) -> float | None:
    """An HTTP date since 1970; None for anything else."""
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def _clock(config: DoctorConfig) -> Check:
    uri = tracking_uri()
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint is None and not storage.local_path(config.storage):
        endpoint = "https://s3.amazonaws.com"
    servers = [each for each in (endpoint, uri) if each and each.startswith("http")]
    for server in servers:
        with suppress(UnreachableError):
            before = time.time()
            headers = ask("HEAD", server, seconds=_ANSWER_SECONDS).headers
            date = _seconds_of(headers.get("Date", ""))
            if date is not None:
                # The header has whole seconds.
                skew = max(0.0, abs((before + time.time()) / 2 - date - 0.5) - 0.5)
                return Check(
                    "clock", "ok" if skew < SKEW_SECONDS else "failed",
                    f"{skew:.0f} s from {storage.shown(server)}",
                    "S3 refuses requests that are 15 minutes off; alerts compare clocks.",
                    "timedatectl set-ntp true",
                )  # fmt: skip
    return Check("clock", "skipped", "no server to compare with")
