"""When the night begins: by the CronJob's own clock, as Kubernetes' controllers keep it."""

import copy
import datetime
import time
from collections.abc import Iterator

import pytest

from tests.k8s.manifests import Object, build, find
from tests.servers.cluster.box import until
from tests.servers.cluster.cluster import Cluster, cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def empty(can_start: None) -> Iterator[Cluster]:
    """Without a node: what is made stays Pending."""
    with cluster(nodes=0) as found:
        found.kubectl("create", "namespace", "vae")
        yield found


def due_at(name: str, at: datetime.datetime, late: int | None = None) -> Object:
    """The overlay's night by another name, due at `at`, and `late` seconds after it if given."""
    night = copy.deepcopy(find(build("dev"), "CronJob", "nightly"))
    night["metadata"]["name"] = name
    night["spec"] |= {"schedule": f"{at.minute} {at.hour} * * *", "suspend": False}
    if late is not None:
        night["spec"]["startingDeadlineSeconds"] = late
    return night


def jobs(found: Cluster) -> list[str]:
    return [job["metadata"]["name"] for job in found.items("jobs")]


def test_a_night_whose_clock_was_missed_begins_late_once_and_not_after_its_deadline(
    empty: Cluster,
) -> None:
    """Nobody looks at clocks while the controllers are away; `hasty` waits ten seconds, ours hours.

    A Job is named by the minute since 1970 that it was due.
    """
    controllers = empty.control.parts["kube-controller-manager"]
    due = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=80)
    due = due.replace(second=0, microsecond=0)
    empty.apply([due_at("late", due), due_at("hasty", due, late=10)])
    controllers.kill()
    time.sleep(due.timestamp() + 40 - time.time())
    assert jobs(empty) == []
    controllers.start()
    until(lambda: bool(jobs(empty)), "the night that was missed", 120)
    time.sleep(15)  # A look at all CronJobs takes less.
    assert jobs(empty) == [f"late-{int(due.timestamp()) // 60}"]
