"""Checkpoints: data first, receipt last; the newest whole one wins.

    checkpoints/step-00000500-1f6c2a.pt    tensors and plain data, read with `weights_only=True`
    checkpoints/step-00000500.json         the receipt: which file, how long, its sha256

The file's name holds its content's hash, so a writer that is no longer wanted can't spoil the file
of the one that is. All files of a run: docs/formats.md.
"""

import hashlib
import io
import logging
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pickle import UnpicklingError  # torch's refusal of `weights_only`; nothing is unpickled here
from typing import Any, TypeAlias

import torch

from pipeline import storage
from pipeline.errors import (
    AccessDeniedError,
    ObjectNotFoundError,
    RunError,
    ShortageError,
    StorageError,
    without_advice,
)
from pipeline.json_value import Json
from pipeline.runs.history import Validation, no_course
from pipeline.runs.outbox import Point
from pipeline.runs.run import Run, Start
from pipeline.vae import ObjectiveState

logger = logging.getLogger(__name__)

VERSION = 2
RECEIPT = storage.DocumentKind(
    "vae-pipeline/checkpoint", VERSION, RunError, "Restore it from a copy."
)
NEWEST = storage.DocumentKind(
    "vae-pipeline/newest-checkpoint", VERSION, RunError, "Delete it: checkpoints are found without."
)
REMOVED = storage.DocumentKind(
    "vae-pipeline/removed-checkpoints", VERSION, RunError, "Delete it, if the run may go on."
)

MOST_FAILURES = 3
"""Checkpoints in a row that storage may refuse before the run fails."""


Plain: TypeAlias = (
    "torch.Tensor | bool | int | float | str | Sequence[Plain] | Mapping[str, Plain] "
    "| Mapping[int, Plain] | None"
)
State: TypeAlias = dict[str, Plain]
"""What `state_dict` gives of a module or an optimiser."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on as if it had never stopped."""

    step: int
    images_seen: int
    bad_images: int
    model: State
    ema: State
    optimizer: State
    objective: ObjectiveState
    order: Json
    points: tuple[Point, ...]
    validations: tuple[Validation, ...]
    course: torch.Tensor = field(default_factory=no_course)
    """Training steps since the last validation, as the next one keeps them: rank 0's, `[T, 6]`."""
    scaler: State = field(default_factory=dict)
    skipped_in_a_row: int = 0
    terms: dict[str, float] = field(default_factory=dict)
    """The last step's, in nats per image: a start with no step left ends with them."""

    def to_plain(self) -> State:
        """Tensors and plain data alone, as torch reads them with `weights_only`."""
        return {
            **vars(self),
            "objective": self.objective.to_json(),
            "points": [asdict(point) for point in self.points],
            "validations": [asdict(validation) for validation in self.validations],
        }


@dataclass(frozen=True)
class CheckpointStats:
    """What a writer has done so far; `step` and `bytes` are the last one's."""

    written: int = 0
    failures: int = 0
    seconds: float = 0.0
    step: int | None = None
    bytes: int | None = None


KEPT = 3
"""Newest checkpoints that stay: one that readers may hold, one below it should the newest be
damaged, and the newest. The best one's weights are kept apart."""


FIRST_SECONDS = 60.0
"""After so long a start leaves its first checkpoint: storage that takes none is found out at once,
and what a death costs is not the start alone."""

EVERY_SECONDS = 600.0
"""The most that a death costs on top of the start, however long a step is: a checkpoint of 10^9
weights (12 GB) stops the loop for about 5 s of copying, 1% of that."""


class Cadence:
    """When a checkpoint is due: every `steps` steps, and by the clock whatever a step takes."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._due_at = time.monotonic() + FIRST_SECONDS

    def is_due(self, step: int) -> bool:
        """Whether one is written after this step; by the clock once only."""
        now = time.monotonic()
        if step % self._steps and now < self._due_at:
            return False
        self._due_at = now + EVERY_SECONDS
        return True


class CheckpointWriter:
    """Writes checkpoints of one run in the background, one at a time, and removes old ones."""

    def __init__(self, run: Run, start: Start, keep: int = KEPT, *, saved: int = 0) -> None:
        """`saved`: the step that the start went on from."""
        self._saved = saved
        self._run, self._start, self._keep = run, start, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._failures = 0
        self.stats = CheckpointStats()

    def save(self, checkpoint: Checkpoint) -> None:
        """Copies the state now and returns; serialising and sending happen in the background.

        A write that storage refuses is a warning, for the next one may succeed; raises the third
        `StorageError` in a row.
        """
        self._settle(patience=MOST_FAILURES)
        copy = replace(
            checkpoint,
            model=_copied(checkpoint.model),
            ema=_copied(checkpoint.ema),
            optimizer=_copied(checkpoint.optimizer),
        )
        self._writing = self._thread.submit(self._write, copy)

    def finish(self) -> None:
        """Returns when the last checkpoint is durable; raises what kept it from that."""
        self._settle(patience=1)

    def _settle(self, patience: int) -> None:
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
            self._failures = 0
        except StorageError as error:
            self._failures += 1
            self.stats = replace(self.stats, failures=self.stats.failures + 1)
            if patience == MOST_FAILURES <= self._failures:
                raise self._given_up(error) from None
            if self._failures >= patience:
                raise
            logger.warning(
                "a checkpoint was not written (%d in a row; %d end the run), the next one is "
                "tried: %s", self._failures, MOST_FAILURES, without_advice(error),
            )  # fmt: skip

    def _given_up(self, error: StorageError) -> StorageError:
        """Of the same kind, so that whoever repeats jobs sees whether it may pass."""
        saved = self.stats.step or self._saved
        left = f"saved is step {saved}" if saved else "nothing is saved yet"
        begins = "goes on from there" if saved else "begins it"
        return type(error)(
            f"{without_advice(error).rstrip('.')}. So {MOST_FAILURES} checkpoints in a row were "
            f"not written, and the run ends: {left}. Once one can be written, the same command "
            f"{begins}."
        )

    def close(self) -> None:
        """Ends the thread; a write that is under way is finished first."""
        self._thread.shutdown(wait=True)

    def _write(self, checkpoint: Checkpoint) -> None:
        if self._run.newest_start() > self._start:
            return  # The loop stops at its next look; nothing of ours may count any more.
        started = time.perf_counter()
        buffer = io.BytesIO()
        torch.save({"version": VERSION, **checkpoint.to_plain()}, buffer)
        step, data = checkpoint.step, buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        name = f"step-{step:08d}-{digest[:12]}.pt"
        # Data first: a receipt only ever names what is whole.
        storage.publish(self._run.path("checkpoints", name), data)
        receipt: Json = {"step": step, "file": name, "bytes": len(data), "sha256": digest}
        storage.publish(
            self._run.path("checkpoints", f"step-{step:08d}.json"), RECEIPT.encode(receipt)
        )
        # Last: it only ever names what is there, and so what must not be missing later. Each start
        # has its own: one that slept in the middle of this would else set back a newer one's.
        name = f"newest-{self._start.name}.json"
        storage.publish(self._run.path("checkpoints", name), NEWEST.encode({"step": step}))
        self.stats = replace(
            self.stats,
            written=self.stats.written + 1,
            seconds=self.stats.seconds + time.perf_counter() - started,
            step=step,
            bytes=len(data),
        )
        try:
            self._remove_old()
        except StorageError as error:
            logger.warning(
                "the run goes on, but checkpoints are kept that could go: %s", without_advice(error)
            )

    def _remove_old(self) -> None:
        storage.refuse_links(self._run.url, "checkpoints")
        receipts = _receipts(self._run)
        # What is newer is no rubbish: a start that took the run over may be about to receipt it.
        oldest = receipts[-self._keep :][0].rsplit("/", 1)[-1].removesuffix(".json")
        # Receipts first: one whose file is gone would be a checkpoint that was damaged.
        for url in receipts[: -self._keep]:
            storage.delete(url)
        for item in storage.list_objects(self._run.path("checkpoints")):
            name = item.url.rsplit("/", 1)[-1]
            if name.endswith(".pt") and name.rsplit("-", 1)[0] < oldest:
                storage.delete(item.url)


def newest_checkpoint(run: Run, step: int | None = None) -> Checkpoint | None:
    """The newest checkpoint whose bytes are what its receipt says; None when there is none.

    With `step` only the one of that step counts. A broken one is skipped with a warning. Raises
    `RunError` if checkpoints exist and all of them are broken: starting anew would silently throw
    the run away.
    """
    receipts = _receipts(run)
    if step is not None:
        receipts = [url for url in receipts if url.endswith(f"step-{step:08d}.json")]
    for url in reversed(receipts):
        try:
            return _load(run, url)
        except (ShortageError, AccessDeniedError):
            raise  # It may be whole: an older one in its place would throw steps away.
        except (StorageError, RunError) as error:
            logger.warning("checkpoint %s is skipped: %s", url, error)
    if receipts:
        raise RunError(
            f"{run.path('checkpoints')}: none of its {len(receipts)} checkpoints is whole. "
            "Restore one of them, or start under another `--run NAME`."
        )
    return None


def newest_step(run: Run) -> int:
    """The step of the newest receipt, 0 where there is none; reads no checkpoint."""
    receipts = _receipts(run)
    name = receipts[-1].rsplit("/", 1)[-1] if receipts else "step-0.json"
    return int(name.removeprefix("step-").removesuffix(".json"))


def _copied(value: Any) -> Any:
    """The same nest of plain data with tensors of its own on the CPU: training goes on changing."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value


def _receipts(run: Run) -> list[str]:
    return _listed(run, r"/step-\d{8,}\.json$")


def _listed(run: Run, pattern: str) -> list[str]:
    try:
        urls = [item.url for item in storage.list_objects(run.path("checkpoints"))]
    except ObjectNotFoundError:
        return []
    return [url for url in urls if re.search(pattern, url)]


@dataclass(frozen=True)
class _Receipt:
    """checkpoints/step-N.json."""

    step: int
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Newest:
    """checkpoints/newest-START.json."""

    step: int


def refuse_lost(run: Run, reached: int) -> None:
    """Raises `RunError` where the run's newest checkpoint is gone.

    `reached`: a step whose checkpoint was there for sure, by what else the run has left; 0 where
    nothing says so. Nothing falls back to an older one, or to the beginning, in silence.
    """
    newest = newest_step(run)
    found = max(map(_newest_of, _listed(run, r"/newest-[\d.]+\.json$")), default=0)
    if max(found, reached) > newest:
        raise RunError(
            f"{run.path('checkpoints')}: the checkpoint of step {max(found, reached)} is gone; "
            + (f"the newest there is of step {newest}. " if newest else "there is none. ")
            + "Restore it, or begin anew on purpose: `--begin-anew`."
        )


def refuse_other_format(run: Run) -> None:
    """Raises `RunError` where another program version wrote the newest checkpoint.

    A damaged one is skipped for the one before it; one that this program can't read is not.
    """
    for url in _receipts(run)[-1:]:
        RECEIPT.refuse_other_version(storage.read(url), url)


def note_removed(run: Run, step: int) -> None:
    """Says that the checkpoints of a finished run were removed on purpose, up to this step."""
    storage.publish(_removed(run), REMOVED.encode({"step": step}))


def removed_up_to(run: Run) -> int | None:
    """The step whose checkpoint somebody removed on purpose, where none has been written since."""
    url = _removed(run)
    if newest_step(run) or not storage.exists(url):
        return None
    return REMOVED.typed(_Newest, storage.read_document(REMOVED, url), url).step


def _removed(run: Run) -> str:
    return run.path("checkpoints", "removed.json")


def _newest_of(url: str) -> int:
    try:
        return NEWEST.typed(_Newest, storage.read_document(NEWEST, url), url).step
    except (ShortageError, AccessDeniedError):
        raise
    except (RunError, StorageError) as error:
        logger.warning("%s", error)
        return 0


def _load(run: Run, receipt_url: str) -> Checkpoint:
    receipt = RECEIPT.typed(_Receipt, storage.read_document(RECEIPT, receipt_url), receipt_url)
    if not receipt_url.endswith(f"step-{receipt.step:08d}.json"):
        raise RECEIPT.damaged(receipt_url, f"it is the receipt of step {receipt.step}")
    url = storage.below(run.path("checkpoints"), receipt.file)
    data = storage.read(url)
    digest = hashlib.sha256(data).hexdigest()
    if digest != receipt.sha256:
        raise RunError(
            f"{url}: its {len(data)} bytes have sha256 {digest[:12]}, "
            f"its receipt says {receipt.bytes} bytes and {receipt.sha256[:12]}"
        )
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise RunError(f"{url}: holds more than tensors and plain data: {error}") from None
    version = content.pop("version")
    if version != VERSION:
        raise RunError(f"{url}: is version {version}, this program reads version {VERSION}")
    records = {
        "objective": ObjectiveState.from_json(content["objective"]),
        "points": tuple(Point(**each) for each in content["points"]),
        "validations": tuple(Validation(**each) for each in content["validations"]),
    }
    return Checkpoint(**{**content, **records})
