"""A run's folder: its identity, who may write to it, and whether it is finished.

RUN/run.json              what the run is: config and datasets' digests, written once
RUN/attempts/000002.000.json  one per start; the highest number owns the run
RUN/attempts/000002.001.json  one per group of workers within that start
RUN/STOP                  whoever leaves it ends the start that runs; the next one removes it
RUN/checkpoints/          see checkpoint.py
RUN/points.json           metric points that MLflow has not got yet
RUN/metrics.json          where /metrics is served, for Prometheus's file discovery
RUN/time/                 where its seconds went, see goodput.py
RUN/logs/                 what the driver and each rank logged, a set of files per start
RUN/history/              the hold-out's numbers and some images at each validation
RUN/init/                 the bundle that it began with, where --init named one
RUN/best/                 the weights of the best validation so far
RUN/bad_samples/, skipped/  see incidents.py
RUN/bundles/              checkpoints that were registered on the way, see checkpoint_versions.py
RUN/profile/              traces of steps, where --profile asked for them
RUN/ray/                  Ray Train's own notes of a start, on local storage only
RUN/sweep.json, rate_distortion.png  of a sweep: its runs side by side (they have folders beside it)
RUN/bundle/               the finished model
RUN/ended.json            how the newest start that came to an end did: its number and result
RUN/result.json           written last: the run is finished
"""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from pipeline import storage
from pipeline.config import TrainConfig
from pipeline.errors import ConfigError, ObjectNotFoundError, RunError
from pipeline.json_value import Json, flat
from pipeline.masking import shell_word
from pipeline.runs.outbox import Point
from pipeline.runs.result import TrainingResult, Unsent
from pipeline.runs.versions import versions_here
from pipeline.storage import checksum_of

logger = logging.getLogger(__name__)

_LOST = "Restore it, or begin anew on purpose: `--begin-anew`."
RUN = storage.DocumentKind("vae-pipeline/run", 3, RunError, _LOST)
RESULT = storage.DocumentKind("vae-pipeline/result", 2, RunError, _LOST)
ENDED = storage.DocumentKind("vae-pipeline/ended", 2, RunError, "Delete it.")
CLAIM = storage.DocumentKind("vae-pipeline/claim", 2, RunError, "Delete it.")
POINTS = storage.DocumentKind(
    "vae-pipeline/points", 2, RunError, "Delete it: MLflow then lacks these points."
)

_TRACES = ("checkpoints", "history", "best", "bundle", "result.json", "ended.json", "time")
"""What a run leaves behind that has begun; what `--begin-anew` removes."""

# What may differ when a run is continued; anything else would be another run.
CHANGEABLE = frozenset(
    {
        "workers", "steps", "checkpoint_every", "evaluate_every", "loader",
        "tracking", "storage", "max_failures", "stall_seconds", "data", "holdout", "patience",
        "dry_run", "profile", "cpus_per_worker", "shards_below", "begin_anew", "no_register",
    }
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Start:
    """One start of a run (`number`), and the restarts of its workers within it (`restart`)."""

    number: int
    restart: int = 0

    @property
    def name(self) -> str:
        """The name of its claim: sorts like the starts themselves."""
        return f"{self.number:06d}.{self.restart:03d}"


@dataclass(frozen=True)
class Pins:
    """Digests of the generations that a run reads to its end, however much the datasets grow."""

    dataset: str
    holdout: str | None


@dataclass(frozen=True)
class Run:
    """The folder of one run at `url`."""

    url: str

    @staticmethod
    def at(config: TrainConfig) -> "Run":
        """The run that a config names."""
        return Run(storage.join(config.storage, config.run))

    def path(self, *parts: str) -> str:
        """The URL of something inside the run's folder."""
        return storage.join(self.url, *parts)

    def pins(self) -> Pins | None:
        """What the run reads to its end; None before its first start."""
        found = _read_or_none(RUN, self.path("run.json"))
        if found is None:
            return None
        stored = RUN.typed(_Stored, found, self.path("run.json"))
        return Pins(stored.dataset_digest, stored.holdout_digest)

    def config(self) -> TrainConfig:
        """What the run was asked for; raises `ObjectNotFoundError` where there is no run."""
        url = self.path("run.json")
        return RUN.typed(_Stored, storage.read_document(RUN, url), url).config

    def begin_anew(self) -> None:
        """Removes what is left of a run that lost something or made no step; its claims stay."""
        storage.refuse_links(self.url, *_TRACES, "init")
        for name in (*_TRACES, "run.json", "points.json", "init"):
            for url in self._below(name):
                storage.delete(url)

    def _below(self, name: str) -> list[str]:
        url = self.path(name)
        if name.endswith(".json"):
            return [url] if storage.exists(url) else []
        try:
            return [item.url for item in storage.list_objects(url)]
        except ObjectNotFoundError:
            return []

    def refuse_lost_identity(self) -> None:
        """A folder with a run's work and without its run.json: nobody knows what made that."""
        if storage.exists(self.path("run.json")):
            return
        left = [name for name in _TRACES if self._below(name)]
        if left and not storage.exists(self.path("run.json")):  # nobody began it just now
            raise RunError(
                f"{self.path('run.json')}: is gone, and {', '.join(left)} of that run are there "
                f"still: with which data and configuration they were made is not known. {_LOST}"
            )

    def open(self, config: TrainConfig, pins: Pins) -> None:
        """Creates the run, or checks that `config` continues the one that is there.

        Raises `ConfigError` listing each difference that is not allowed.
        """
        identity: Json = {
            "dataset_digest": pins.dataset,
            "holdout_digest": pins.holdout,
            "config": config.model_dump(mode="json"),
        }
        if storage.create_if_absent(self.path("run.json"), RUN.encode(identity)):
            return
        differences = self.differences(config, pins)
        if differences:
            raise ConfigError(
                f"{self.url}: this run was started with another configuration. Only "
                f"{', '.join(sorted(CHANGEABLE))} may change on continuing. Give the old values, "
                "or another `--run NAME`:",
                below=differences,
            )

    def differences(self, config: TrainConfig, pins: Pins) -> list[str]:
        """What keeps `config` from continuing the run that is there; nothing where there is none.

        Raises `RunError` where what is there is no run of this program.
        """
        found = _read_or_none(RUN, self.path("run.json"))
        if found is None:
            return []
        stored = RUN.typed(_Stored, found, self.path("run.json"))
        return _differences(stored, _Stored(pins.dataset, pins.holdout, config))

    def claim(self) -> Start:
        """Takes the run over from any earlier start, which stops when it notices.

        A `STOP` object that ended the start before has done its work, and is removed.
        """
        storage.delete(self.path("STOP"))
        number = max((start.number for start in self._starts()), default=0)
        while True:
            number += 1
            start = Start(number)
            if self._create(start):
                return start

    def claim_restart(self, start: Start) -> Start:
        """The claim of a worker group that replaces a dead one within the same start."""
        same_start = [a.restart for a in self._starts() if a.number == start.number]
        restart = max(same_start, default=0)
        while True:
            restart += 1
            claim = Start(start.number, restart)
            if self._create(claim):
                return claim

    def newest_start(self) -> Start:
        """The claim that owns the run now."""
        return max(self._starts(), default=Start(0))

    def claim_before(self, start: Start) -> Start | None:
        """The last claim of workers before `start`, whose tally is to be gone on with."""
        return max((a for a in self._starts() if a < start and a.restart), default=None)

    def claimed_at(self, start: Start) -> float | None:
        """When the driver of a start claimed it, in seconds since 1970, if that is known."""
        url = self.path("attempts", f"{Start(start.number).name}.json")
        claim = _read_or_none(CLAIM, url)
        return CLAIM.typed(_Claim, claim, url).began if claim else None

    def refuse_other_claims(self) -> None:
        """Raises `RunError` where another program version claimed the run last."""
        newest = self.newest_start().number
        for start in (each for each in self._starts() if each.number == newest):
            url = self.path("attempts", f"{start.name}.json")
            CLAIM.refuse_other_version(storage.read(url), url)

    def versions_before(self, start: Start) -> dict[str, str]:
        """With what the last driver before this start ran, as far as that is known."""
        for number in range(start.number - 1, 0, -1):
            url = self.path("attempts", f"{Start(number).name}.json")
            claim = _read_or_none(CLAIM, url)
            if claim is not None:
                return CLAIM.typed(_Claim, claim, url).versions
        return {}

    def result(self) -> TrainingResult | None:
        """What the finished run ended with; None while it is not finished."""
        url = self.path("result.json")
        found = _read_or_none(RESULT, url)
        return None if found is None else RESULT.typed(TrainingResult, found, url)

    def finish(self, result: TrainingResult) -> None:
        """Marks the run as finished."""
        storage.publish(self.path("result.json"), RESULT.encode(result.to_json()))

    def end(self, start: Start, result: TrainingResult) -> None:
        """Says how a start ended, finished or not: who waits for it elsewhere reads it here."""
        ended: Json = {"start": start.number, "result": result.to_json()}
        storage.publish(self.path("ended.json"), ENDED.encode(ended))

    def ended(self) -> TrainingResult | None:
        """How the newest start ended; None while it goes on, or if it died."""
        url = self.path("ended.json")
        found = _read_or_none(ENDED, url)
        if found is None:
            return self.result()
        ended = ENDED.typed(_Ended, found, url)
        if ended.start != self.newest_start().number:
            return None
        result = ended.result
        return self.result() if result.reason == "done" else result

    def keep_points(self, points: Sequence[Point]) -> Unsent | None:
        """Stores the points that could not be delivered; none deletes the file."""
        url = self.path("points.json")
        if not points:
            storage.delete(url)
            return None
        document = POINTS.encode({"points": [asdict(point) for point in points]})
        storage.publish(url, document)
        return Unsent(len(points), checksum_of(document))

    def kept_points(self, unsent: Unsent | None) -> list[Point]:
        """The points that an earlier start could not deliver; `unsent`: what its result says.

        Raises `RunError` for another file of points than that.
        """
        return _points_at(self.path("points.json"), unsent)

    def _starts(self) -> list[Start]:
        try:
            names = [item.url for item in storage.list_objects(self.path("attempts"))]
        except ObjectNotFoundError:
            return []
        # Somebody may have put another file there: a claim is known by its name.
        found = (re.search(r"/(\d{6,})\.(\d{3,})\.json$", name) for name in names)
        return [Start(int(each[1]), int(each[2])) for each in found if each]

    def _create(self, start: Start) -> bool:
        claim = CLAIM.encode({"began": time.time(), "versions": dict(versions_here())})
        return storage.create_if_absent(self.path("attempts", f"{start.name}.json"), claim)


def _points_at(url: str, unsent: Unsent | None) -> list[Point]:
    found = _read_or_none(POINTS, url)
    if found is None and unsent is not None:
        logger.warning("%s: is gone, so MLflow lacks %d points of this run", url, unsent.points)
    if found is None:
        return []
    if unsent is not None and checksum_of(storage.read(url)) != unsent.checksum:
        raise RunError(
            f"{url}: does not hold the {unsent.points} points that the run's result tells of. "
            f"Restore it, or delete it (`rm {shell_word(url)}`): MLflow then lacks them."
        )
    return list(POINTS.typed(_Points, found, url).points)


@dataclass(frozen=True)
class _Stored:
    """run.json. A knob that the run is older than was as it is by default."""

    dataset_digest: str
    holdout_digest: str | None
    config: TrainConfig


@dataclass(frozen=True)
class _Claim:
    """attempts/NAME.json."""

    began: float
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Ended:
    """ended.json."""

    start: int
    result: TrainingResult


@dataclass(frozen=True)
class _Points:
    """points.json."""

    points: tuple[Point, ...]


def _read_or_none(kind: storage.DocumentKind, url: str) -> Json | None:
    try:
        return storage.read_document(kind, url)
    except ObjectNotFoundError:
        return None


def _differences(found: _Stored, now: _Stored) -> list[str]:
    lines = []
    if found.dataset_digest != now.dataset_digest:
        lines.append(f"dataset: was {found.dataset_digest}, is {now.dataset_digest}")
    old, new = (flat(each.config.model_dump(mode="json")) for each in (found, now))
    lines += [
        f"{key}: was {old[key]!r}, is {new[key]!r}"
        for key in sorted(new)
        if key.split(".", 1)[0] not in CHANGEABLE and old[key] != new[key]
    ]
    was, asked = found.config.steps, now.config.steps
    if asked < was:
        lines.append(f"steps: was {was}, is {asked}: they may only grow")
    return lines
