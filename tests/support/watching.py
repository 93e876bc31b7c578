"""Waiting for what a training does, without looking into its processes."""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pipeline import storage
from pipeline.errors import ObjectNotFoundError
from tests.support.killing import descendants, kill_all, start_job


class Running:
    """A `jobs.train` that runs in `folder`, seen by its run's folder at `url`."""

    def __init__(self, process: subprocess.Popen[str], url: str, folder: Path) -> None:
        self.process, self.url, self.folder = process, url, folder

    @staticmethod
    def start(folder: Path, url: str, *arguments: str) -> "Running":
        """Its log is FOLDER/log; a second start in one folder appends to it."""
        return Running(start_job(folder, "jobs.train", *arguments), url, folder)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 600
        while not condition():
            assert time.monotonic() < deadline, self.log()
            assert self.process.poll() is None, self.log()
            time.sleep(0.05)

    def checkpoints(self) -> list[int]:
        try:
            items = [item.url for item in storage.list_objects(f"{self.url}/checkpoints")]
        except ObjectNotFoundError:
            return []
        found = (re.search(r"/step-(\d+)\.json$", url) for url in items)
        return sorted(int(each[1]) for each in found if each)

    def worker_groups(self) -> int:
        return len(list(storage.list_objects(f"{self.url}/attempts"))) - 1

    def logs(self, word: str) -> list[str]:
        """URLs of the run's stored logs whose name holds `word`."""
        try:
            items = storage.list_objects(f"{self.url}/logs")
            return [item.url for item in items if word in item.url]
        except ObjectNotFoundError:
            return []

    def workers(self) -> list[int]:
        """Process ids of the Ray Train workers of a local cluster."""
        below = descendants(self.process.pid).items()
        return [pid for pid, line in below if "RayTrainWorker" in line]

    def kill(self) -> None:
        """SIGKILL to everything that is left of it."""
        if self.process.poll() is None:
            kill_all(self.process)

    def log(self) -> str:
        return (self.folder / "log").read_text()
