"""What a Pushgateway keeps of encodings whose stores are gone: groups that nothing else removes."""

import base64
from dataclasses import dataclass

from pipeline import storage
from pipeline.errors import StorageError, UnreachableError
from pipeline.latents.snapshot import last_published, read_pointer
from pipeline.web import Answer, ask

JOB = "vae-encode"
"""The job of each group, as encodings push it (`tracking.encoding_metrics`)."""


@dataclass(frozen=True)
class PushedGroup:
    """The group of one store; `gone`: nothing lies there that was ever a store."""

    store: str
    gone: bool


def pushed_groups(gateway: str) -> list[PushedGroup]:
    """Every group of an encoding that the Pushgateway keeps."""
    url = f"{gateway.rstrip('/')}/api/v1/metrics"
    answer, stores = _asked("GET", url), set()
    try:
        for group in answer.json()["data"]:
            if group["labels"].get("job") == JOB and "store" in group["labels"]:
                stores.add(str(group["labels"]["store"]))
    except (UnreachableError, LookupError, TypeError, AttributeError) as error:
        said = error if isinstance(error, UnreachableError) else "an answer that lists no groups"
        raise UnreachableError(f"{storage.shown(url)}: {said}. Is it a Pushgateway?") from None
    return [PushedGroup(store, _is_gone(store)) for store in sorted(stores)]


def remove_pushed(gateway: str, group: PushedGroup) -> None:
    """Deletes one group there: its series, and alerts on them, end."""
    store = base64.urlsafe_b64encode(group.store.encode()).decode()
    _asked("DELETE", f"{gateway.rstrip('/')}/metrics/job/{JOB}/store@base64/{store}")


def _is_gone(store: str) -> bool:
    """A place that can't be asked, or where any pointer lies, is not gone.

    Whoever pushes names the place: no server of the Internet is asked for it.
    """
    if storage.protocol(store) not in ("file", "s3"):
        return False
    try:
        return read_pointer(store) is None and last_published(store) is None
    except StorageError:
        return False


def _asked(method: str, url: str) -> Answer:
    answer = ask(method, url)
    if answer.status not in (200, 202):
        raise UnreachableError(
            f"{storage.shown(url)}: answers {answer.status} {answer.text}. Is it a Pushgateway?"
        )
    return answer
