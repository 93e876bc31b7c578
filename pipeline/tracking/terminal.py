"""A run's or an encoding's numbers for the terminal, from its own endpoint or from Prometheus."""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from prometheus_client.parser import text_string_to_metric_families

from pipeline import storage
from pipeline.config import WatchConfig
from pipeline.errors import ObjectNotFoundError, RunError, UnreachableError
from pipeline.masking import shell_word
from pipeline.nearest import did_you_mean
from pipeline.runs.goodput import STATES, productive_share
from pipeline.runs.result import TrainingResult
from pipeline.runs.run import Run
from pipeline.tracking.endpoint import endpoint_of
from pipeline.tracking.metric_table import ENCODING, OUTCOME, TRAINING
from pipeline.web import ask

_ROOMS = {row.series: "run" for row in TRAINING} | {
    row.series: "store" for row in (*ENCODING, *OUTCOME)
}
_LABELS = {row.series: row.label for row in (*TRAINING, *ENCODING, *OUTCOME)}
_QUERY = {"query": '{__name__=~"vae_(train|holdout|checkpoint|data|storage|tracking|encode)_.*"}'}
_BARS = "▁▂▃▄▅▆▇█"
_KEPT = 40
"""Rates that are drawn as bars: a line of 80 columns has room for so many."""


@dataclass(frozen=True)
class Subject:
    """A run or a store."""

    room: str
    name: str


@dataclass
class Numbers:
    """One subject's series at `seconds` since 1970: by series, then by its own label ("": none)."""

    seconds: float
    series: dict[str, dict[str, float]] = field(default_factory=dict)

    def of(self, series: str, label: str = "") -> float | None:
        """A value, None where there is none yet."""
        return self.series.get(series, {}).get(label)

    def total(self, series: str) -> float:
        """All labels together, 0 where there is none yet."""
        return sum(self.series.get(series, {}).values())

    def put(self, series: str, labels: Mapping[str, str], value: float) -> None:
        """Series of several endpoints of one name, as after a restart: the largest is the last."""
        label = labels.get(_LABELS[series] or "", "")
        values = self.series.setdefault(series, {})
        values[label] = max(value, values.get(label, value))


Picture = dict[Subject, Numbers]

EVERY_SECONDS = 2.0
"""Between two looks: a step's numbers change about as often, and nobody reads faster."""
_ANSWER_SECONDS = 10.0
"""/metrics answers in milliseconds; a Prometheus that evaluates over many series takes seconds."""


def look(config: WatchConfig) -> Picture:
    """All subjects there are now. Raises `UnreachableError` for no answer, `RunError` for none."""
    if config.prometheus is not None:
        return _from_prometheus(config.prometheus.rstrip("/"), _ANSWER_SECONDS)
    return _from_endpoint(_endpoint(config), _ANSWER_SECONDS)


def watch(
    config: WatchConfig, every_seconds: float = EVERY_SECONDS
) -> Iterator[tuple[Picture, list[str]]]:
    """What there is, again and again until it has ended; with `once`, one time.

    The first look of an endpoint is followed by a second: rates need two.
    """
    history: dict[Subject, deque[float]] = {}
    before = look(config)
    while True:
        time.sleep(every_seconds)
        try:
            now = look(config)
        except (RunError, UnreachableError):
            if config.prometheus is not None or not _has_ended(config):
                raise
            return
        yield now, lines_of(now, before, history)
        if config.once:
            return
        before = now


def ended_run(config: WatchConfig) -> TrainingResult | None:
    """How the run that is asked for ended; None while it goes on, or for anything else."""
    if config.run is None or not _has_ended(config):
        return None
    return Run(_folder(config)[0]).ended()


def lines_of(
    now: Picture, before: Picture, history: dict[Subject, deque[float]] | None = None
) -> list[str]:
    """The picture in lines; `history` gains what is drawn as bars."""
    lines: list[str] = []
    for subject, numbers in sorted(now.items(), key=lambda item: (item[0].room, item[0].name)):
        earlier = before.get(subject, numbers)
        rates = None if history is None else history.setdefault(subject, deque(maxlen=_KEPT))
        show = _training if subject.room == "run" else _encoding
        lines += [*show(subject.name, numbers, earlier, rates), ""]
    return lines or ["nothing that is trained or encoded is known here"]


def _training(
    name: str, now: Numbers, before: Numbers, rates: deque[float] | None
) -> Iterator[str]:
    step, target = now.of("vae_train_step") or 0, now.of("vae_train_target_steps")
    share = f" of {target:,.0f} ({step / target:.0%})" if target else ""
    yield f"{name}: step {step:,.0f}{share}, {now.total('vae_train_world_size'):.0f} ranks"
    yield _row("images per second", _rate(now, before, "vae_train_images_total"), ",.0f", rates)
    yield _row("data wait", _share(now, before, "data_wait"), ".1%")
    yield _goodput(now)
    for title, series in (("last batch", "vae_train_nats"), ("hold-out", "vae_holdout_nats")):
        values = [(term, now.of(series, term)) for term in ("elbo", "log_likelihood", "kl")]
        shown = ", ".join(f"{term} {value:,.2f}" for term, value in values if value is not None)
        if shown:
            yield f"  {title:<20}{shown} nats per image"
    yield _row("active dimensions", now.of("vae_holdout_active_units"), ",.0f")
    yield _row("gradient norm", now.of("vae_train_gradient_norm"), ",.3g")
    yield _row("memory", _gib(now.of("vae_train_memory_bytes")), ",.2f", unit=" GiB")
    yield _age("last step", now, "vae_train_last_step_timestamp_seconds")
    saved = now.of("vae_checkpoint_step")
    behind = "" if saved is None else f", {step - saved:,.0f} steps behind"
    yield _age("last checkpoint", now, "vae_checkpoint_last_success_timestamp_seconds") + behind
    counted = {
        "restarts": "vae_train_restarts_total", "skipped steps": "vae_train_nonfinite_steps_total",
        "bad images": "vae_train_bad_images_total", "retries": "vae_storage_retries_total",
        "refused checkpoints": "vae_checkpoint_failures_total",
        "points that MLflow lacks": "vae_tracking_unsent_points",
    }  # fmt: skip
    yield from _counted(now, counted)


def _encoding(
    name: str, now: Numbers, before: Numbers, rates: deque[float] | None
) -> Iterator[str]:
    done, left = now.total("vae_encode_images_total"), now.of("vae_encode_images_left")
    if left is not None:
        whole = done + left
        share = f" ({done / whole:.0%})" if whole else ""
        yield f"{name}: {done:,.0f} images encoded, {left:,.0f} left{share}"
        rate = _rate(now, before, "vae_encode_images_total")
        yield _row("images per second", rate, ",.0f", rates)
        yield _age("last shard", now, "vae_encode_last_shard_timestamp_seconds")
        counted = {
            "images without latents": "vae_encode_failed_images_total",
            "retried shards": "vae_encode_retries_total",
            "shards given up": "vae_encode_quarantined_shards_total",
        }
        yield from _counted(now, counted)
    else:
        yield f"{name}: nothing is encoded now"
    if "vae_encode_last_end_timestamp_seconds" in now.series:
        yield _age("last encoding", now, "vae_encode_last_end_timestamp_seconds")
        yield _age("last whole store", now, "vae_encode_last_success_timestamp_seconds")


def _row(
    title: str, value: float | None, form: str, rates: deque[float] | None = None, unit: str = ""
) -> str:
    if value is not None and rates is not None:
        rates.append(value)
    shown = "-" if value is None else format(value, form) + unit
    return f"  {title:<20}{shown:>12}  {bars(rates)}".rstrip()


def _goodput(now: Numbers) -> str:
    """Of the run's whole life; then what the rest of its time went into."""
    told = now.series.get("vae_run_seconds_total", {})
    states = {state: told[state] for state in STATES if state in told}
    share = productive_share(states)
    if share is None:
        return _row("goodput", None, "")
    used = sum(states.values()) - states.get("idle", 0.0)
    lost = {s: t / used for s, t in states.items() if s not in ("productive", "idle") and t > 0}
    named = [f"{state.replace('_', ' ')} {lost[state]:.1%}" for state in sorted(lost)]
    return f"{_row('goodput', share, '.1%')}  {', '.join(named)}".rstrip()


def _age(title: str, now: Numbers, series: str) -> str:
    when = now.of(series)
    return f"  {title:<20}{'-' if when is None else f'{now.seconds - when:,.0f} s ago':>12}"


def _counted(now: Numbers, series: Mapping[str, str]) -> Iterator[str]:
    """What is well while it is 0, in one line."""
    yield f"  {', '.join(f'{title} {now.total(name):,.0f}' for title, name in series.items())}"


def bars(values: deque[float] | None) -> str:
    """A line of bars between the least and the most of the values."""
    if not values or len(values) < 2:
        return ""
    low, high = min(values), max(values)
    if not math.isfinite(high - low):
        return ""  # No job has such rates.
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def _rate(now: Numbers, before: Numbers, series: str) -> float | None:
    """Per second; None at a first look, and where the endpoint began anew in between."""
    gained, seconds = now.total(series) - before.total(series), now.seconds - before.seconds
    return gained / seconds if seconds > 0 and gained >= 0 else None


def _share(now: Numbers, before: Numbers, what: str) -> float | None:
    """Of the steps' time."""
    part = _rate(now, before, f"vae_train_{what}_seconds_total")
    whole = _rate(now, before, "vae_train_step_seconds_total")
    return part / whole if part is not None and whole else None


def _gib(amount: float | None) -> float | None:
    return None if amount is None else amount / 2**30


def _endpoint(config: WatchConfig) -> str:
    if config.endpoint is not None:
        return config.endpoint
    folder, hint = _folder(config)
    try:
        return endpoint_of(storage.join(folder, "metrics.json"))
    except ObjectNotFoundError:
        raise RunError(f"{storage.shown(folder)}: nothing runs there now. {hint}") from None


def _folder(config: WatchConfig) -> tuple[str, str]:
    """Where the endpoint's name is kept, and what to do where it is not."""
    if config.store is not None:
        outcome = storage.join(config.store, "attempts", "outcome.json")
        return storage.join(config.store, "attempts"), f"{outcome} says how it ended."
    folder = storage.absolute(storage.join(config.storage, str(config.run)))
    if storage.exists(storage.join(folder, "run.json")):
        return folder, "Its last start died, or has only begun: the same command goes on."
    name = (storage.near(folder) or "").rpartition("/")[2]
    return folder, f"No run has this name.{did_you_mean(name and f'--run {shell_word(name)}')}"


def _has_ended(config: WatchConfig) -> bool:
    """A run or an encoding that ends takes its name away; one that dies does not."""
    if config.url is not None:
        return False
    return not storage.exists(storage.join(_folder(config)[0], "metrics.json"))


def _from_endpoint(url: str, seconds: float) -> Picture:
    answer = ask("GET", url, seconds=seconds)
    if answer.status != 200:
        raise UnreachableError(f"{storage.shown(url)}: answers {answer.status} {answer.text}")
    found: Picture = {}
    now = time.time()
    try:
        for family in text_string_to_metric_families(answer.body.decode()):
            for sample in family.samples:
                _put(found, now, sample.name, sample.labels, sample.value)
    # Whatever its parser raises for text that is none of Prometheus's.
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UnreachableError(f"{storage.shown(url)}: serves no metrics ({error})") from None
    return found


def _from_prometheus(url: str, seconds: float) -> Picture:
    answer = ask("GET", f"{url}/api/v1/query?{urlencode(_QUERY)}", seconds=seconds)
    if answer.status != 200:
        raise UnreachableError(
            f"{storage.shown(url)}: answers {answer.status} {answer.text} as a Prometheus. A run's "
            "own address ends in /metrics."
        )
    return answer.read(_queried, "Prometheus")


def _queried(answer: Any) -> Picture:
    """A Prometheus's answer to `_QUERY`."""
    found: Picture = {}
    for each in answer["data"]["result"]:
        labels, point = each["metric"], each["value"]
        if not all(isinstance(text, str) for text in labels.values()):
            raise TypeError("labels are texts")
        if not isinstance(point, list):
            raise TypeError("a point is a time and a value")
        when, value = point
        if not math.isfinite(float(when)):
            raise ValueError("a time is a number")
        _put(found, float(when), labels["__name__"], labels, float(value))
    return found


def _put(
    found: Picture, seconds: float, series: str, labels: Mapping[str, str], value: float
) -> None:
    room = _ROOMS.get(series)
    if room is None or room not in labels or not math.isfinite(value):
        return  # Created-at times, and metrics of other programs.
    subject = Subject(room, labels[room])
    found.setdefault(subject, Numbers(seconds)).put(series, labels, value)
