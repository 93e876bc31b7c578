"""A worker's warnings reach the recorder with its rank, and nothing else of its log does."""

import logging
from types import SimpleNamespace

from pipeline.cluster.worker_warnings import warnings_told


def test_warnings_of_this_package_alone_are_sent_and_only_within_the_block() -> None:
    told: list[tuple[int, str]] = []
    remote = SimpleNamespace(remote=lambda rank, message: told.append((rank, message)))
    ours = logging.getLogger("pipeline.training.loop")
    with warnings_told(SimpleNamespace(warn=remote), 3):
        ours.warning("step %d was skipped", 7)
        ours.info("step 8")
        logging.getLogger("somebody.else").warning("theirs")
    ours.warning("afterwards")
    assert told == [(3, "step 7 was skipped")]
