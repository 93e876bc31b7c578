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
    found = _asked("GET", f"{gateway.rstrip('/')}/api/v1/metrics").json()["data"]
    labels = [each["labels"] for each in found]
    stores = sorted(
        {each["store"] for each in labels if each.get("job") == JOB and "store" in each}
    )
    return [PushedGroup(store, _is_gone(store)) for store in stores]


def remove_pushed(gateway: str, group: PushedGroup) -> None:
    """Deletes one group there: its series, and alerts on them, end."""
    store = base64.urlsafe_b64encode(group.store.encode()).decode()
    _asked("DELETE", f"{gateway.rstrip('/')}/metrics/job/{JOB}/store@base64/{store}")


def _is_gone(store: str) -> bool:
    """A place that can't be asked, or where any pointer lies, is not gone."""
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
