"""Which shard is tried next and by whom: retries, suspects and quarantine, without any I/O.

A worker holds at most `window` shards. When a worker dies, all shards it held are suspects; a
suspect is tried alone, so that only the guilty one is charged. A shard that failed `attempts`
times is quarantined, and the rest goes on, until `failures_in_a_row` say that it isn't the shards'
fault.

A worker that raises says what is wrong with its shard. One that dies does not: the shard may have
killed it, or a scheduler, an operator, another process's hunger for memory. SIGKILL looks the same
from all of them, so a death while alone is counted apart, and `deaths` of them are needed.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

_FAILURES_IN_A_ROW = 20
"""So many shards, one after another, do not fail by their own fault: the cause is one for all."""


@dataclass
class ShardSchedule:
    """The state of one run over `shards` (numbers in the dataset)."""

    shards: Sequence[int]
    attempts: int = 3
    deaths: int = 10
    window: int = 2
    failures_in_a_row: int = _FAILURES_IN_A_ROW
    retries: int = 0
    quarantined: dict[int, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._waiting = deque(self.shards)
        self._suspects: deque[int] = deque()
        self._reasons: dict[int, list[str]] = {}
        self._deaths: dict[int, list[str]] = {}
        self._held: dict[str, list[int]] = {}
        self._alone: set[str] = set()
        self._row = 0

    @property
    def finished(self) -> bool:
        """Whether no shard is waiting or being worked on."""
        return not (self._waiting or self._suspects or any(self._held.values()))

    def take(self, worker: str) -> int | None:
        """A shard for this worker to start now, None when it should first finish what it has."""
        held = self._held.setdefault(worker, [])
        if worker in self._alone or len(held) >= self.window:
            return None
        if self._suspects and not held:
            self._alone.add(worker)
            held.append(self._suspects.popleft())
            return held[0]
        # A free worker takes the suspects first; one that is busy goes on with the others.
        if not self._waiting:
            return None
        shard = self._waiting.popleft()
        held.append(shard)
        return shard

    def succeeded(self, worker: str, shard: int) -> None:
        """The worker finished the shard."""
        self._release(worker, shard)
        self._row = 0

    def failed(self, worker: str, shard: int, reason: str) -> None:
        """The worker lives, the shard failed: it is charged an attempt."""
        self._release(worker, shard)
        self._charge(shard, reason, self._reasons, self.attempts)

    def lost_worker(self, worker: str, reason: str, *, blameless: bool = False) -> None:
        """The worker died. `blameless`: its machine went away, which is no shard's fault."""
        held = self._held.pop(worker, [])
        self._alone.discard(worker)
        if len(held) == 1 and not blameless:
            self._charge(held[0], reason, self._deaths, self.deaths)
        else:
            self._suspects.extend(held)
            self.retries += len(held)

    def give_up(self, reason: str) -> None:
        """Quarantines everything that waits."""
        for shard in (*self._suspects, *self._waiting):
            known = (*self._deaths.get(shard, []), *self._reasons.get(shard, []))
            self.quarantined[shard] = [*known, reason]
        self._suspects.clear()
        self._waiting.clear()

    def _release(self, worker: str, shard: int) -> None:
        self._held[worker].remove(shard)
        self._alone.discard(worker)

    def _charge(self, shard: int, reason: str, account: dict[int, list[str]], budget: int) -> None:
        reasons = account.setdefault(shard, [])
        reasons.append(reason)
        self._row += 1
        if len(reasons) >= budget:
            self.quarantined[shard] = reasons
        else:
            self.retries += 1
            self._suspects.append(shard)
        if self._row >= self.failures_in_a_row:
            self.give_up(f"not tried again: {self._row} failures in a row, the last: {reason}")
