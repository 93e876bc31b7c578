"""What a job is to the place that it runs at: one protocol for Ray's job API and Kubernetes."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.runs.run import Run
from pipeline.submission.kept_log import KeptLog


@dataclass(frozen=True)
class Served:
    """What a job's `/metrics` is about: a run by its name, or a store by its URL."""

    label: Literal["run", "store"]
    name: str


@dataclass(frozen=True)
class Request:
    """Which job is meant, and what it runs.

    `id` is what --id says; without one, ids begin with `base`. `run` is a training's folder, where
    it can be seen from here. `workers` are its ranks or actors, of which the `fewest` will do for a
    beginning; None: it was not asked for any.
    `serves` is None where nobody else can reach its `/metrics`.
    """

    command: tuple[str, ...]
    base: str
    run: Run | None = None
    workers: int | None = None
    fewest: int | None = None
    id: str | None = None
    serves: Served | None = None

    @property
    def entrypoint(self) -> str:
        """As a shell splits it."""
        return shlex.join(self.command)


@dataclass(frozen=True)
class Job:
    """What a place says of a job now.

    `uid` tells it from a later job of the same id. `status` is Ray's word where Ray has one, else
    that of the cluster around it. `message` is the place's sentence, `output_end` the end of what
    the job has printed, where the place keeps that beside it. `log` is where storage has all of it,
    its last lines within `log_due_seconds`. `exit_code` is the driver's.
    Of the `tries` that the place makes by itself, `failed_tries` have failed.
    """

    id: str
    uid: str
    status: str
    entrypoint: str
    has_ended: bool
    was_lost: bool = False
    exit_code: int | None = None
    message: str = ""
    output_end: str = ""
    log: KeptLog | None = None
    log_due_seconds: float = 0.0
    tries: int = 1
    failed_tries: int = 0


@dataclass(frozen=True)
class Output:
    """What a job has printed; not `whole` where the place keeps the end of it alone.

    Another `source` is another try, which prints from the beginning. `before` characters were in
    an earlier answer, and are left out of this one.
    """

    text: str
    whole: bool
    source: str = ""
    before: int = 0


class Place(Protocol):
    """Where jobs run. Names are locks: two jobs of one id never run at once.

    All methods raise `UnreachableError` for no answer, `NotNowError` for a refusal that passes by
    itself, `ConfigError` for credentials that don't do, `ClusterError` for any other refusal.
    """

    address: str
    """As messages name it."""
    gone: Literal["LOST", "STOPPED"]
    """What has become of a job that this place no longer knows."""
    elsewhere: str
    """What to do where nothing answers: how another place is named."""

    def find(self, request: Request) -> Job | None:
        """The newest job that is meant; None: there is none."""
        ...

    def job(self, name: str) -> Job | None:
        """One job; None where this place knows none of that id."""
        ...

    def jobs(self) -> list[Job]:
        """All that this place remembers."""
        ...

    def free_id(self, request: Request, newest: Job | None) -> str:
        """The id of a new start; that of an ended job, if that has to make room."""
        ...

    def advice(self, request: Request) -> Sequence[str]:
        """What is rarely meant at this place."""
        ...

    def start(self, request: Request, name: str) -> bool:
        """False if there is a job of this id already."""
        ...

    def end(self, job: Job) -> None:
        """Asks for the end of this very job; one that has ended makes room, where it has to."""
        ...

    def output(self, job: Job) -> Output:
        """What the job has printed so far."""
        ...

    def earlier_tries(self, job: Job) -> Sequence[str]:
        """What those of its tries that failed have printed, oldest first, as far as it is kept."""
        ...

    def kept_output(self, request: Request) -> Output:
        """What is kept of the newest job that was meant, though this place knows it no more."""
        ...

    def why_waiting(self, job: Job) -> str:
        """What a job that does not run yet waits for; "" where that can't be told."""
        ...
