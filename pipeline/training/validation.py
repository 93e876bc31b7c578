"""The exact ELBO on the hold-out, each image counted once, by all ranks together."""

from contextlib import closing
from dataclasses import dataclass

import torch

from pipeline.config import TrainConfig
from pipeline.data import Dataset, Loader
from pipeline.training.evaluation import EvaluationSums, evaluate_elbo
from pipeline.training.step import TrainState
from pipeline.training.world import World


@dataclass(frozen=True)
class Validation:
    """Means over the hold-out's `images` after `step` steps, of the averaged weights, in nats."""

    step: int
    images: int
    terms: dict[str, float]
