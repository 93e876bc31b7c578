"""What Ray of a warm job takes for its Python, by `python_for_ray.sh`.

Where it starts a worker, that is a fork of the process at WARM_WORKERS, and this one stays for as
long as it lives; all else, and what it refuses, is given to WARM_PYTHON. Only the standard library,
to begin at once.
"""

import json
import os
import re
import signal
import socket
import sys
from pathlib import Path


def worker(arguments: list[str]) -> tuple[list[str], dict[str, str]] | None:
    """A worker's arguments and what is added to its environment; None for any other program.

    `setup_worker.py` puts a runtime environment in place, here only variables, and goes on as the
    worker itself.
    """
    name = Path(arguments[0]).name if arguments else ""
    if name == "default_worker.py":
        return arguments, {}
    if name != "setup_worker.py":
        return None
    given, rest = {}, []
    words = iter(arguments[1:])
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in ("--language", "--serialized-runtime-env-context"):
            given[flag] = value if equals else next(words)
        else:
            rest.append(word)
    context = json.loads(given.get("--serialized-runtime-env-context") or "{}")
    variables = context.pop("env_vars", {})
    context.pop("py_executable", None)
    if any(context.values()) or given.get("--language") != "PYTHON":
        return None
    return rest, {name: _expanded(value) for name, value in variables.items()}


def _expanded(value: str) -> str:
    """As Ray puts a variable in place; one that is not there is empty."""
    return re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))


def main() -> None:
    python, place, arguments = os.environ["WARM_PYTHON"], os.environ["WARM_WORKERS"], sys.argv[1:]
    found = worker(arguments)
    if found is None or not _lived(place, *found):
        os.execv(python, [python, *arguments])


def _lived(place: str, arguments: list[str], variables: dict[str, str]) -> bool:
    """Waits for the end of a worker at `place`; whether there was one."""
    asked = {
        "arguments": arguments,
        "folder": os.getcwd(),
        "environment": {**os.environ, **variables},
        "group": os.getpgid(0) if os.getpgid(0) != os.getpid() else 0,
        "session": os.getsid(0),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "ignored": [n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN],
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(f"\0{place}")
            socket.send_fds(connection, [json.dumps(asked).encode()], [1, 2])
            lived = bool(connection.recv(1))
            connection.recv(1)
        except OSError:  # The job is gone, and Ray with it.
            return False
        return lived


if __name__ == "__main__":
    main()
