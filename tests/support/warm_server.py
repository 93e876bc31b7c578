"""A process that has imported what jobs import, and forks once for each job that it is asked for.

Where a job starts Ray, its workers are such forks as well (`warm_workers.py`).

`python -m tests.support.warm_server FD`: FD is a socket. A message is a JSON object (`arguments`,
`folder`, `environment`, `new_session`) with the file descriptors of the job's stdout and stderr;
the answer is the job's process id. It ends when its socket is closed.
"""

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support import warm_workers

# What costs seconds to import. Not the modules of `jobs`, which run as `__main__` below; not Ray,
# whose C++ half reads the environment at its import: each job has its own.
IMPORTED = (
    "aiohttp", "fsspec.implementations.local", "google.protobuf", "grpc", "matplotlib.pyplot",
    "mlflow", "mlflow.pyfunc", "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store", "pandas", "pyarrow.pandas_compat", "s3fs",
    "torch._dynamo", "torch.distributed", "jobs.command", "pipeline.commands.decode",
    "pipeline.commands.doctor", "pipeline.commands.encode", "pipeline.commands.evaluate",
    "pipeline.commands.explain", "pipeline.commands.sweep", "pipeline.commands.train",
    "pipeline.packing.pack", "pipeline.registry.models", "pipeline.submission.follower",
)  # fmt: skip


def serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Returns in each job's process with its message, in this one with None at the end."""
    while True:
        data, files, _, _ = socket.recv_fds(connection, 2**20, 2)
        if not data:
            return None
        if (pid := _fork_an_orphan()) == 0:
            connection.close()
            return json.loads(data), files
        for file in files:
            os.close(file)
        connection.send(str(pid).encode())


def _fork_an_orphan() -> int:
    """0 in the job's process, its id here. Its parent ends at once: who adopts it waits for it."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            os.close(writing)
            return 0
        os.write(writing, array.array("i", [pid]).tobytes())
        os._exit(0)
    os.close(writing)
    (pid,) = array.array("i", os.read(reading, 4))
    os.close(reading)
    os.waitpid(between, 0)
    return pid


def become(asked: Mapping[str, Any], files: list[int], set_by_imports: Mapping[str, str]) -> None:
    """Makes this process what `python -m ARGUMENTS` would be, runs it as `__main__`, ends."""
    if asked["new_session"]:
        os.setsid()
    place = warm_workers.wait_below()
    if isinstance(place, str):
        asked["environment"].setdefault("WARM_WORKERS", place)
    else:
        asked, files = place
        warm_workers.take_place(asked)
    for file, number in zip(files, (1, 2), strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update({**set_by_imports, **asked["environment"]})
    os.chdir(asked["folder"])
    tempfile.tempdir = None
    program, *arguments = asked["arguments"]
    first = Path(program).parent if program.endswith(".py") else Path.cwd()
    sys.path[:0] = [str(first), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [program, *arguments]
    _leave(_run(program))


def _run(program: str) -> Any:
    """Runs a module, or a file of Ray's, as `__main__`; returns its exit code."""
    try:
        if program.endswith(".py"):
            warm_workers.count_threads_as_ray_says()
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code or 0
    except BaseException:  # noqa: BLE001 - told as the interpreter tells it, with its exit code
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _leave(code: Any) -> None:
    """As the interpreter ends, but for the taking down of every module, which costs a second."""
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


def main() -> None:
    """Imports, then serves; in a job's process, runs the job."""
    # As `run_job` and `mlflow_client` do, before the import of torch and of mlflow.
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "MLFLOW_DISABLE_TELEMETRY": "true"}
    before = dict(os.environ)
    for name in IMPORTED:
        importlib.import_module(name)
    assert "ray" not in sys.modules
    set_by_imports = {name: os.environ[name] for name in os.environ.keys() - before.keys()}
    # What is frozen is not walked by a job's collections, nor copied for them page by page.
    gc.collect()
    gc.freeze()
    connection = socket.socket(fileno=int(sys.argv[1]))
    set_by_imports |= {"WARM_PYTHON": sys.executable}
    sys.executable = str(warm_workers.PYTHON)
    with contextlib.suppress(ConnectionResetError):
        message = serve(connection)
        if message is not None:
            become(*message, set_by_imports)


if __name__ == "__main__":
    main()
