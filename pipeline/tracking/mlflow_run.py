"""One training run in MLflow: found or created by its tag, each point logged once."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.runs.outbox import SERIES, Point
from pipeline.tracking.mlflow_client import artifact_location, mlflow_client
from pipeline.tracking.mlflow_facts import EXPERIMENT_TAGS, source_tags

RUN_TAG = "vae.run"
DIGEST_TAG = "vae.run_digest"
METRICS_PER_CALL = 1000
"""MLflow's own limit for one `log_batch`."""


class TrackedRun:
    """The MLflow run that belongs to the run folder `run_url`; made on the first connection.

    All methods raise `mlflow.exceptions.MlflowException` while MLflow can't be reached.
    """

    def __init__(
        self, uri: str, experiment: str, name: str, run_url: str, params: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        self._metric, self._param, self._tag = Metric, Param, RunTag
        self._client = mlflow_client(uri)
        self._newest = dict.fromkeys(SERIES, -1)
        self.run_id = self._find_or_create(experiment, name, run_url, uri, params)

    def log(self, points: Sequence[Point]) -> None:
        """Logs points, which come in order; those of steps that MLflow has already are skipped.

        Workers that made a step again send it with another time.
        """
        waiting: list[Any] = []
        newest = dict(self._newest)
        for point in points:
            if point.step <= newest[point.series]:
                continue
            newest[point.series] = point.step
            metrics = [
                self._metric(name, value, point.time_ms, point.step)
                for name, value in sorted(point.values.items())
            ]
            if len(waiting) + len(metrics) > METRICS_PER_CALL:
                self._client.log_batch(self.run_id, metrics=waiting)
                waiting = []
            waiting += metrics
        if waiting:
            self._client.log_batch(self.run_id, metrics=waiting)
        self._newest = newest

    def set_status(self, status: str) -> None:
        """`RUNNING`, `FINISHED`, `FAILED` or `KILLED`."""
        if status == "RUNNING":
            self._client.update_run(self.run_id, status=status)
        else:
            self._client.set_terminated(self.run_id, status)

    def _find_or_create(
        self, experiment: str, name: str, run_url: str, uri: str, params: Mapping[str, str]
    ) -> str:
        found = self._client.get_experiment_by_name(experiment)
        if found:
            experiment_id = found.experiment_id
            for key in EXPERIMENT_TAGS.keys() - found.tags.keys():  # what somebody chose stays
                self._client.set_experiment_tag(experiment_id, key, EXPERIMENT_TAGS[key])
        else:
            experiment_id = self._client.create_experiment(
                experiment, artifact_location(uri), tags=EXPERIMENT_TAGS
            )
        # By digest: MLflow's filter language has no way to quote a quote.
        digest = hashlib.sha256(run_url.encode()).hexdigest()
        runs = self._client.search_runs([experiment_id], f"tags.`{DIGEST_TAG}` = '{digest}'")
        if runs:
            run_id: str = runs[0].info.run_id
            self.run_id = run_id
            self.set_status("RUNNING")
            # A run comes with the newest value of each metric, and its step; the history of a
            # metric would be all of its points, 10^5 in a long run.
            for newest in runs[0].data.to_proto().metrics:
                if newest.key in self._newest:
                    self._newest[newest.key] = newest.step
            # A start that was killed between making the run and this left it without any.
            self._log_params(run_id, {k: params[k] for k in params.keys() - runs[0].data.params})
            return run_id
        tags = {RUN_TAG: run_url, DIGEST_TAG: digest, **source_tags()}
        run = self._client.create_run(experiment_id, run_name=name, tags=tags)
        created: str = run.info.run_id
        self._log_params(created, params)
        return created

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        logged = [self._param(name, value) for name, value in sorted(params.items())]
        self._client.log_batch(run_id, params=logged)
