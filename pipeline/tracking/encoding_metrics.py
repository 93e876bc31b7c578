"""What an encoding tells Prometheus: `/metrics` while it runs, and how it ended, afterwards.

STORE/attempts/metrics.json   where /metrics is served, for file_sd; gone when the encoding ended
STORE/attempts/outcome.json   how the last encoding ended
STORE/attempts/outcome.prom   the same, for a textfile collector
"""

import logging
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from prometheus_client import generate_latest
from prometheus_client.exposition import pushadd_to_gateway

from pipeline import storage
from pipeline.config import EncodingTrackingConfig
from pipeline.encoding.driver import ShardDone
from pipeline.encoding.schedule import ShardSchedule
from pipeline.errors import StorageError
from pipeline.latents.marks import begun
from pipeline.latents.receipt import ATTEMPTS
from pipeline.tracking.endpoint import Endpoint, discovery, forget
from pipeline.tracking.metric_table import ENCODING, OUTCOME, EncodingOutcome, EncodingReport
from pipeline.tracking.version import version

logger = logging.getLogger(__name__)

JOB = "vae-encode"
"""The Pushgateway's group, beside the store."""


class EncodingMetrics:
    """`/metrics` of one encoding of `images` images."""

    def __init__(self, store: str, tracking: EncodingTrackingConfig, images: int) -> None:
        name = storage.shown(store)
        self._endpoint = Endpoint(ENCODING, "store", name, version())
        address = self._endpoint.serve(tracking.metrics_host, tracking.metrics_port)
        self._discovery = storage.join(store, ATTEMPTS, "metrics.json")
        self._named = discovery(address, "store", name)
        with suppress(StorageError):
            storage.publish(self._discovery, self._named)
        self._failed: Counter[str] = Counter()
        self._images, self._done, self._left = 0, 0, images
        self._seconds, self._bytes = 0.0, 0
        self._endpoint.update(self._report(retries=0, quarantined=0))

    def done(self, event: ShardDone, schedule: ShardSchedule) -> None:
        """Counts a finished shard, and what happened to others meanwhile."""
        receipt = event.receipt
        self._failed.update(sample.reason for sample in receipt.failed)
        self._images += receipt.rows
        self._left -= receipt.samples
        self._done += 1
        self._seconds += event.seconds
        self._bytes += receipt.bytes
        self._endpoint.update(self._report(schedule.retries, len(schedule.quarantined)))

    def _report(self, retries: int, quarantined: int) -> EncodingReport:
        return EncodingReport(
            images=self._images,
            failed=self._failed,
            shards=self._done,
            quarantined=quarantined,
            retries=retries,
            shard_seconds=self._seconds,
            written_bytes=self._bytes,
            images_left=self._left,
            last_shard_timestamp_seconds=time.time(),
        )

    def close(self) -> None:
        """Ends the server; what was asked of it last stays with Prometheus."""
        self._endpoint.close()
        forget(self._discovery, self._named)


@dataclass(frozen=True)
class EncodingEnd:
    """What an encoding that came to its end has to tell: images encoded and failed, shards lost."""

    complete: bool
    encoded: int
    failed: int
    lost: int


def tell_outcome(
    store: str, tracking: EncodingTrackingConfig, started: float, end: EncodingEnd | None
) -> None:
    """Tells how an encoding ended that began at `started`; None: by an error.

    Beside the store too, unless it was refused before anything was written there: then no folder
    comes into being, in what may be no store at all. What it doesn't know (the last success, when
    the store is expected again) stays as it is told there.
    """
    ended, hours = time.time(), tracking.expected_hours
    known = end or EncodingEnd(complete=False, encoded=0, failed=0, lost=0)
    outcome = EncodingOutcome(
        succeeded=ended if known.complete else None,
        ended=ended,
        seconds=ended - started,
        images=known.encoded,
        failed=known.failed,
        lost=known.lost,
        expected=None if hours is None else 3600 * hours,
    )
    _push(store, tracking, outcome)
    with suppress(StorageError):
        _keep(store, outcome, was_refused=end is None)


def _push(store: str, tracking: EncodingTrackingConfig, outcome: EncodingOutcome) -> None:
    if not tracking.pushgateway:
        return
    name = storage.shown(store)
    endpoint = Endpoint(OUTCOME, "store", name, version())
    endpoint.update(outcome)
    try:
        # Added to its group: a failure leaves the time of the last success there.
        pushadd_to_gateway(tracking.pushgateway, JOB, endpoint.registry, {"store": name})
    except OSError as error:
        shown = storage.shown(tracking.pushgateway)
        logger.warning("the Pushgateway %s was not told how this ended: %s", shown, error)


def _keep(store: str, outcome: EncodingOutcome, *, was_refused: bool) -> None:
    """Beside the store, as the Pushgateway adds: what is not told now stays as it was."""
    place = storage.join(store, ATTEMPTS)
    url = storage.join(place, "outcome.json")
    is_told = storage.exists(url)
    if was_refused and not is_told and not begun(store):
        return
    before = storage.read_json(url) if is_told else {}
    if outcome.succeeded is None:
        outcome = replace(outcome, succeeded=before.get("succeeded"))
    if outcome.expected is None:
        outcome = replace(outcome, expected=before.get("expected"))
    endpoint = Endpoint(OUTCOME, "store", storage.shown(store), version())
    endpoint.update(outcome)
    storage.publish(storage.join(place, "outcome.prom"), generate_latest(endpoint.registry))
    known = {name: value for name, value in asdict(outcome).items() if value is not None}
    storage.publish(url, storage.canonical_json(known))
