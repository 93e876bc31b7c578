"""What a training ends with: the job's result, and RUN/result.json once the run is finished."""

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pipeline.json_value import Json
from pipeline.runs.reason import Reason

Terms = Mapping[str, float | None]
"""A look at the hold-out: means in nats per image; what is not finite is None."""


@dataclass(frozen=True)
class Unsent:
    """Points that MLflow has not got: how many, and the checksum of RUN/points.json with them."""

    points: int
    checksum: str


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
    unsent: Unsent | None = None

    def __repr__(self) -> str:
        after = (self.holdout_after or {}).get("elbo")
        elbo = self.elbo if after is None else after
        where = "of the last batch" if after is None else "held out"
        told = "none" if elbo is None else f"{elbo:,.2f} nats per image, {where}"
        return (
            f"Run {self.run}: {self.reason} after {self.steps:,} steps\n"
            f"ELBO {told}, at step {self.chosen_step:,}\n"
            f"model {self.model or self.bundle or 'none'}"
        )

    def as_place(self) -> str:
        """Where the run's folder is."""
        return self.run

    def _repr_html_(self) -> str:
        """For notebooks: the same lines, and what was measured on the hold-out, in nats."""
        before, after = self.holdout_before or {}, self.holdout_after or {}
        rows = [
            f"<tr><td>{html.escape(name)}</td><td>{_number(before.get(name))}</td>"
            f"<td>{_number(after[name])}</td></tr>"
            for name in after
        ]
        head = "<tr><th>held out</th><th>before</th><th>now</th></tr>" if rows else ""
        return f"<pre>{html.escape(repr(self))}</pre><table>{head}{''.join(rows)}</table>"

    def to_json(self) -> Json:
        """Plain data, under the names that scripts rely on."""
        return asdict(self)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}"
