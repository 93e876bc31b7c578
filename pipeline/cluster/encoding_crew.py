"""Ray actors that encode shards; retries belong to the driver, never to Ray.

Every task queued on an actor fails when it dies (seen with Ray 2.60), so a death charges no shard
unless it was the only one there; `ShardSchedule` tries the suspects alone.
"""

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import NodeDiedError, RayError, RayTaskError

from pipeline.cluster.worker_warnings import KeptWarnings
from pipeline.encoding.driver import Event, ShardFailed, WorkerLost, attempt
from pipeline.encoding.under_way import UnderWay
from pipeline.errors import StoreError
from pipeline.latents.receipt import Receipt

_LOG = logging.getLogger(__name__)
_WAIT_SECONDS = 1.0
"""One wait at most: while no worker has started there is no event, and it is to be said."""
_SAY_SECONDS = 30.0
"""As often it is said that no actor has started: a node takes minutes to come."""
_ASK_SECONDS = 3.0
"""As often actors are asked how far they are, and what they warn of."""
_WORDS = "words"
"""The thread of an actor that answers while all others encode, or wait for storage."""
_STILLBORN = 5
"""Actors in a row that die before they begin: chance takes one or two, a cause takes all."""

EncodeOne = Callable[[int], Receipt]
MakeEncoder = Callable[[UnderWay], EncodeOne]


class Words(NamedTuple):
    """What an actor says while it works: images by shard, and warnings such as a full storage."""

    images: dict[int, float]
    warnings: list[str]


class EncodeActor:
    """Holds one model on one device and encodes shards in as many threads as Ray lends it."""

    def __init__(self, make: MakeEncoder) -> None:
        self._warnings, self._under_way = KeptWarnings(), UnderWay()
        self._encode = make(self._under_way)

    def ready(self) -> None:
        """Returns when the model is on its device."""

    def encode(self, worker: str, shard: int) -> Event:
        """One try at one shard; expected failures come back as data."""
        return attempt(self._encode, worker, shard)

    def words(self) -> Words:
        """How far its shards are, and what it has warned of since it was last asked."""
        return Words(self._under_way.images(), self._warnings.take())


@dataclass(frozen=True)
class ActorResources:
    """What one actor asks of the cluster; `threads` is how many shards it works on at a time."""

    cpus: float = 1
    gpus: float = 0
    threads: int = 2


@dataclass
class RayCrew:
    """Up to `count` actors; one that dies is replaced as soon as its death is known.

    An actor gets shards only once it runs: the cluster may have room for fewer than `count`, and a
    shard that waits for an actor that waits for a CPU would never end.
    """

    make: MakeEncoder
    count: int
    resources: ActorResources
    stillborn: int = 0
    _actors: dict[str, ActorHandle] = field(default_factory=dict)
    _starting: dict[Any, str] = field(default_factory=dict)
    _running: dict[Any, tuple[str, int]] = field(default_factory=dict)
    _asked: dict[Any, str] = field(default_factory=dict)
    _images: dict[tuple[str, int], float] = field(default_factory=dict)
    """Of each actor and shard, as it was last told."""

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._said = self._asked_at = time.monotonic()
        self._class = ray.remote(concurrency_groups={_WORDS: 1})(EncodeActor)
        # One copy in the object store for all actors: no node needs to reach the model's files.
        self._shared = ray.put(self.make)
        for _ in range(self.count):
            self._hire()

    def workers(self) -> Sequence[str]:
        """See `Crew`."""
        starting = set(self._starting.values())
        return tuple(name for name in self._actors if name not in starting)

    def start(self, worker: str, shard: int) -> None:
        """See `Crew`."""
        reference = self._actors[worker].encode.remote(worker, shard)
        self._running[reference] = (worker, shard)

    def wait(self) -> Sequence[Event]:
        """See `Crew`."""
        self._ask()
        pending = [*self._running, *self._starting, *self._asked]
        ready, _ = ray.wait(pending, num_returns=1, timeout=_WAIT_SECONDS)
        if not self.workers() and not ready:
            self._say_waiting()
        return [event for reference in ready for event in self._event(reference)]

    def under_way(self) -> float:
        """See `Crew`."""
        return sum(self._images.get(held, 0) for held in self._running.values())

    def close(self) -> None:
        """Ends the actors; shards in flight are dropped."""
        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)
        self._actors.clear()

    def _hire(self) -> None:
        name = f"actor-{next(self._numbers)}"
        actor = self._class.options(
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus,
            max_concurrency=self.resources.threads,
            # The schedule charges a death to its shard, and hires anew: Ray would hide it.
            max_restarts=0,
            max_task_retries=0,
        ).remote(self._shared)
        self._actors[name] = actor
        self._starting[actor.ready.remote()] = name

    def _event(self, reference: Any) -> Sequence[Event]:
        if reference in self._starting:
            return self._started(reference)
        if reference in self._asked:
            return self._tell(reference)
        if reference not in self._running:
            return ()
        worker, shard = self._running.pop(reference)
        try:
            return (ray.get(reference),)
        except RayTaskError as error:
            # A bug in our code or out of memory: the actor lives.
            return (ShardFailed(worker, shard, _one_line(error)),)
        except RayError as error:
            return (self._bury(worker, error),)

    def _started(self, reference: Any) -> Sequence[Event]:
        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            self.stillborn += 1
            if self.stillborn >= _STILLBORN:
                raise StoreError(
                    f"{self.stillborn} encoding actors in a row died before they began, the last "
                    f"with: {_one_line(error)}. Is there enough memory for the model, and does "
                    "every node run the same version of this package?"
                ) from error
            return (self._bury(worker, error),)
        self.stillborn = 0
        return ()

    def _ask(self) -> None:
        """How far the actors are, and what they warn of, whose log lies on their own nodes."""
        now = time.monotonic()
        if self._asked or now - self._asked_at < _ASK_SECONDS:
            return
        self._asked_at = now
        for name in self.workers():
            asked = self._actors[name].words.options(concurrency_group=_WORDS).remote()
            self._asked[asked] = name

    def _tell(self, reference: Any) -> Sequence[Event]:
        name = self._asked.pop(reference)
        try:
            told = ray.get(reference)
        except RayError:  # Its death is told by what it held.
            return ()
        self._images |= {(name, shard): images for shard, images in told.images.items()}
        for said in told.warnings:
            _LOG.warning("%s: %s", name, said)
        return ()

    def _say_waiting(self) -> None:
        now = time.monotonic()
        if now - self._said >= _SAY_SECONDS:
            self._said = now
            _LOG.warning(
                "no actor has started yet: the cluster has no room for one that needs %s CPUs and "
                "%s GPUs, or is starting a node.",
                self.resources.cpus,
                self.resources.gpus,
            )

    def _bury(self, worker: str, error: RayError) -> WorkerLost:
        """Forgets a dead actor with all it held, and hires another."""
        self._running = {r: held for r, held in self._running.items() if held[0] != worker}
        actor = self._actors.pop(worker)
        ray.kill(actor, no_restart=True)
        self._hire()
        node_gone = isinstance(error, NodeDiedError) or "node has died" in str(error)
        reason = f"its worker died: {_one_line(error)}"
        _LOG.warning("%s; a new worker takes its place.", reason)
        return WorkerLost(worker, reason, blameless=node_gone)


def _one_line(error: BaseException) -> str:
    """The line that says it: a traceback's last one, else the first."""
    text = str(error).strip()
    return (
        text.splitlines()[-1] if isinstance(error, RayTaskError) and text else text.split("\n")[0]
    )
