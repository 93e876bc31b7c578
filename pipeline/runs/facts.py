"""What a bundle says of the run that made it."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.json_value import Json
from pipeline.runs.json_numbers import plain_json
from pipeline.vae import Optimised


@dataclass(frozen=True)
class RunFacts:
    """How far a run had come when its averaged weights became a bundle, and what moved them."""

    run: str
    dataset_digest: str
    holdout_data: str | None
    objective: Optimised
    steps: int
    images_seen: int

    def to_json(self, holdout: Mapping[str, float] | None) -> Json:
        """The bundle's metadata; `holdout`: what its weights were seen to do, if they were."""
        terms = None if holdout is None else plain_json(holdout)
        return {**vars(self), "objective": self.objective.to_json(), "holdout": terms}
