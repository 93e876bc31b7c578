"""`jobs.doctor --support-file`: one zip for whoever helps: states, versions, logs, last errors.

It holds no secret: every line is cleaned of what the environment keeps secret and of what looks
like a secret, and of the environment's other values only a few that are known to be none.
"""

import base64
import io
import json
import os
import platform
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.masking import masked, printable
from pipeline.tracking.endpoint import endpoint_of
from pipeline.web import ask, ray_token

MOST_BYTES = 5_000_000
"""What a mail or a ticket takes without asking."""
_PART_BYTES = 200_000
"""Of a longer text the end is kept."""
_RUNS = 20
"""The newest ones: trouble is told of soon after it was met."""
_LOGS = 4
"""Of a run, the newest: 1 MB each at most, of which the ends are kept."""
_OBJECTS = 20_000
"""So many names are looked at to find runs: a bucket may hold millions."""
_SHOWN = re.compile(
    r"AWS_(DEFAULT_REGION|REGION|ENDPOINT_URL)|MLFLOW_TRACKING_URI|RAY_(ADDRESS|API_SERVER_ADDRESS)"
    r"|OMP_\w+|CUDA_VISIBLE_DEVICES|LOG_LEVEL|NCCL_SOCKET_IFNAME|PYTHONVERSION|TZ|LANG"
)
_SECRET_NAME = re.compile(
    r"(?i)secret|token|passw|pwd|credential|auth|private|signature|cookie|(access|api|form)[_-]?key"
    r"|_key$|_pat$|dsn"
)
_SECRETS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*-----|\Z)", re.DOTALL),
    re.compile(r"\A[\w+/=\s]{20,}-----END [A-Z ]*PRIVATE KEY-----"),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.?[\w-]*"),
    re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{12,}"),
    re.compile(r"\b(gh[pousr]|glpat|xox[abprs]|hf|sk|dapi|npm)[-_][\w-]{10,}"),
    re.compile(r"(?i)(?<=bearer |.basic )[\w.~+/=-]{6,}"),
)
_NAMED = re.compile(
    r"(?i)((?:secret|token|passw|pwd|credential|authorization|private|signature|cookie"
    r"|access[_-]?key|api[_-]?key|form[_-]?key|dsn)[\w.-]{0,40}[\"']?\s{0,4}[:=]\s{0,4})"
    r"(\"[^\"]*\"|'[^']*'|(?:bearer |basic )?[^\s,;&}\]]+)"
)
_BARE = re.compile(
    r"((?i:\b[\w-]{0,80}(?:secret|token|passw(?:or)?d|passphrase|credential|(?:api|access)[_-]?key)"
    r"[\w-]{0,80}[\"']?[ \t]+(?:(?:is|was|to)[ \t]+)?))(?=\S{0,200}[^a-z\s.,;:!?()'\"`-])\S+"
    r"|(\b[A-Z0-9_]{0,80}(?:SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|KEY)[A-Z0-9_]{0,80}[ \t]+)"
    r"(?!is set\b)\S+"
)
"""A name, and behind it a word that is none of a sentence's."""


def support_file(checks: Iterable[str], where: str) -> bytes:
    """The zip: what the doctor said in `checks`, and what there is below the storage `where`."""
    secrets = known_secrets(os.environ)
    buffer = io.BytesIO()
    left_out: list[str] = []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in _parts(checks, where):
            if left_out:  # Full: what comes later matters less.
                left_out.append(name)
                continue
            # Cut afterwards: half a secret would not be known for one.
            data = cleaned(text, secrets).encode()[-_PART_BYTES:]
            # What is stored is never larger than it was before, but for a few bytes.
            if buffer.tell() + len(data) > MOST_BYTES - 200_000:
                left_out.append(name)
                continue
            archive.writestr(name, data)
        archive.writestr("left_out.txt", cleaned("\n".join(left_out)[:50_000], secrets))
    return buffer.getvalue()


def known_secrets(environment: Mapping[str, str]) -> list[str]:
    """Values that may stand nowhere, longest first: of secret names, of files, Ray's token."""
    found = {value for name, value in environment.items() if _SECRET_NAME.search(name)}
    file = environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
        found |= set(re.findall(r"=\s*(\S+)\s*$", text, re.MULTILINE))
    except (OSError, ValueError):
        pass  # There is none.
    found.add(ray_token() or "")
    found = {value for value in found if len(value) >= 6}
    written = {quote(value, safe="") for value in found}
    written |= {base64.b64encode(value.encode()).decode() for value in found}
    return sorted(found | written, key=len, reverse=True)


def cleaned(text: str, secrets: Iterable[str]) -> str:
    """The text without the given secrets, and without what looks like one."""
    for secret in secrets:
        text = text.replace(secret, "...")
    for form in _SECRETS:
        text = form.sub("...", text)
    text = masked(_NAMED.sub(r"\1...", text))
    text = _BARE.sub(lambda found: f"{found[1] or found[2]}...", text)
    return "\n".join(map(printable, text.splitlines())) + "\n"


def _parts(checks: Iterable[str], where: str) -> Iterator[tuple[str, str]]:
    yield "doctor.txt", "\n".join(checks)
    yield "versions.txt", _versions()
    yield "environment.txt", _environment()
    yield "ray.txt", _ray()
    yield "kubernetes.txt", _kubernetes()
    yield from _runs(where)


def _versions() -> str:
    lines = [f"Python {sys.version}", platform.platform()]
    found = {f"{each.metadata['Name']} {each.version}" for each in metadata.distributions()}
    return "\n".join([*lines, *sorted(found, key=str.lower)])


def _environment() -> str:
    """Names of all variables; the values of those that are known to hold no secret."""
    return "\n".join(
        f"{name}={value}" if _SHOWN.fullmatch(name) else f"{name} is set"
        for name, value in sorted(os.environ.items())
    )


def _ray() -> str:
    address = os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        return "RAY_API_SERVER_ADDRESS is not set"
    from pipeline.submission.ray_jobs import RayJobs

    try:
        jobs = RayJobs(address, 10).jobs()
    except PipelineError as error:
        return str(error)
    return "\n".join(f"{j.id} {j.status} {j.entrypoint}\n  {j.message}" for j in jobs)


def _kubernetes() -> str:
    from pipeline.submission.api_server import ApiServer
    from pipeline.submission.objects import RAYJOBS

    try:
        server = ApiServer(None, None, 10)
        jobs = [json.dumps(each.get("status", {})) for each in server.objects(RAYJOBS)]
        events = [f"{e.involved_object.name}: {e.message}" for e in server.warnings()]
    except PipelineError as error:
        return str(error)
    return "\n".join(["RayJobs:", *jobs, "warnings:", *events])


def _runs(where: str) -> Iterator[tuple[str, str]]:
    """Of the runs below `where`: what they are, how they ended, their last logs and metrics."""
    try:
        names = [item.url for _, item in zip(range(_OBJECTS), storage.list_objects(where))]  # noqa: B905
    except PipelineError as error:
        yield "runs.txt", str(error)
        return
    runs = [name.removesuffix("/run.json") for name in names if name.endswith("/run.json")]
    yield "runs.txt", "\n".join([f"{len(runs)} runs below {where}", *runs])
    for run in runs[-_RUNS:]:
        inside = [name for name in names if name.startswith(f"{run}/")]
        folder = f"runs/{run.rsplit('/', 1)[-1]}"
        yield f"{folder}/files.txt", "\n".join(inside)
        logs = [name for name in inside if name.startswith(f"{run}/logs/")][-_LOGS:]
        documents = [f"{run}/{name}.json" for name in ("run", "ended", "result", "metrics")]
        for name in (*(each for each in documents if each in inside), *logs):
            yield f"{folder}/{name.rsplit('/', 1)[-1]}", _read(name)
        if f"{run}/metrics.json" in inside:
            yield f"{folder}/metrics.txt", _metrics(f"{run}/metrics.json")


def _read(url: str) -> str:
    try:
        size = storage.stat(url).size
        text = storage.read(url, max(0, size - _PART_BYTES), size).decode(errors="replace")
        return text if size <= _PART_BYTES else text.partition("\n")[2]
    except PipelineError as error:
        return str(error)


def _metrics(url: str) -> str:
    try:
        return ask("GET", endpoint_of(url), seconds=5).body.decode(errors="replace")
    except PipelineError as error:
        return str(error)
