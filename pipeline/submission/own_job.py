"""A driver's way to end its own job for good: KubeRay repeats what has failed, whatever the reason.

It makes a new cluster for each try, and has no exit code that means "not again". It does not repeat
what was stopped. So a driver that can only fail again has Ray stop it.
"""

import json
import os
import signal
import time
from contextlib import suppress
from urllib.parse import quote, urlsplit

from pipeline.errors import PipelineError
from pipeline.web import ask, ray_token

NOT_REPEATED = "Not repeated, since the same command can only fail again: exit code "
"""The last line of such a driver; who follows the job reads it."""
_STOP_SECONDS = 60.0
"""Ray ends a driver within seconds of being asked to; a busy head takes longer to hear it."""


def end_for_good(exit_code: int) -> str | None:
    """Has Ray stop this very job, where KubeRay started it: does not return if that is done.

    Returns None where nobody would repeat the job, else why it could not be stopped.
    """
    name = _submission()
    if os.environ.get("RAY_USAGE_STATS_KUBERAY_IN_USE") != "1" or name is None:
        return None
    print(f"{NOT_REPEATED}{exit_code}", flush=True)  # noqa: T201 - to whoever reads the job's output
    # What was said last is the error: the stop that is asked for here is nobody's interruption.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    token = ray_token()
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = ask("POST", f"{_dashboard()}/api/jobs/{quote(name)}/stop", b"{}", headers=headers)
    except PipelineError as error:
        return str(error)
    if answer.status != 200:
        return f"Ray says {answer.status}: {answer.text}"
    time.sleep(_STOP_SECONDS)  # Ray's SIGTERM ends it.
    return "Ray did not stop it"


def _submission() -> str | None:
    """This process's submission id, which Ray hands to each driver."""
    with suppress(ValueError, KeyError, TypeError):
        told = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])
        return str(told["metadata"]["job_submission_id"])
    return None


def _dashboard() -> str:
    """Of the head, on which the driver runs: KubeRay's own port, unless another one is named."""
    named = os.environ.get("RAY_API_SERVER_ADDRESS")
    host = urlsplit(f"//{os.environ.get('RAY_ADDRESS', '127.0.0.1')}").hostname
    return named.rstrip("/") if named else f"http://{host}:8265"
