"""What a training ends with: the job's result, and RUN/result.json once the run is finished."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pipeline.json_value import Json
from pipeline.runs.reason import Reason

Terms = Mapping[str, float | None]
"""A look at the hold-out: means in nats per image; what is not finite is None."""


@dataclass(frozen=True)
class TrainingResult:
    """One start's outcome; numbers that are not finite are None, as JSON has no word for them.

    `elbo` and `holdout_after` are those of the weights that the model is made of, which training
    reached at `chosen_step`. `run_id` is MLflow's, None as long as it was never reached.
    """

    run: str
    run_id: str | None
    reason: Reason
    steps: int
    samples: int
    bad_samples: int
    converged: bool
    run_seconds: Mapping[str, float]
    elbo: float | None
    chosen_step: int
    holdout_before: Terms | None
    holdout_after: Terms | None
    model: str | None
    model_version: int | None
    bundle: str | None
    digest: str | None

    def to_json(self) -> Json:
        """Plain data, under the names that scripts rely on."""
        return asdict(self)
