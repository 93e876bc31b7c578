"""Runs that died say RUNNING in MLflow for ever, unless somebody closes them."""

import time
from typing import NamedTuple

from pipeline.errors import PipelineError
from pipeline.runs.goodput import last_seen
from pipeline.runs.run import Run
from pipeline.tracking.mlflow_client import mlflow_client, tracking_errors
from pipeline.tracking.mlflow_run import RUN_TAG

DEAD_SECONDS = 900.0
"""A start writes every few seconds that it lives; a stall of storage takes minutes at most."""
_MOST_FOUND = 50_000
"""MLflow's own limit; unasked it gives 1,000."""


class Closed(NamedTuple):
    """The names of runs that were ended: what `died`, and what had `finished` untold."""

    died: list[str]
    finished: list[str]


def close_dead_runs(uri: str) -> Closed:
    """Ends those runs in MLflow that say RUNNING and whose folder says that nobody works on them.

    They end as KILLED at the time when they were last seen, or as
    FINISHED where only MLflow was not told. One whose folder can't be read is left alone. Raises
    `TrackingError` if MLflow can't be reached.
    """
    closed = Closed([], [])
    with tracking_errors(uri):
        client = mlflow_client(uri)
        known = client.search_experiments(max_results=_MOST_FOUND)
        for each in client.search_runs(
            [experiment.experiment_id for experiment in known],
            f"attributes.status = 'RUNNING' and tags.`{RUN_TAG}` != ''",
            max_results=_MOST_FOUND,
        ):
            run = Run(each.data.tags[RUN_TAG])
            try:
                seen, result = last_seen(run), run.result()
            except PipelineError:
                continue
            if seen is None or time.time() - seen < DEAD_SECONDS:
                continue
            status = "KILLED" if result is None else "FINISHED"
            client.set_terminated(each.info.run_id, status, int(seen * 1000))
            (closed.died if result is None else closed.finished).append(each.info.run_name)
    return closed
