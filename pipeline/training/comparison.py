"""Models side by side on equal terms: the same images, preprocessing and measure, or a refusal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config import PreprocessConfig
from pipeline.errors import ConfigError
from pipeline.training.findings import mean_and_error
from pipeline.training.measurement import Measured

_PAIRED = ("elbo", "iwae", "kl", "log_likelihood", "psnr_mean")


@dataclass(frozen=True)
class Candidate:
    """One model's rows and numbers, and what decides whether they can be compared at all."""

    name: str
    measured: Measured
    numbers: Mapping[str, Any]
    preprocess: PreprocessConfig
    likelihood: str


def compare(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """`table[model][quantity]`, and the paired differences of each model to the first one.

    A difference is the mean over images of (model - first) with its 95% interval: pairing takes
    out what makes an image hard for every model. Raises `ConfigError` where the numbers are not of
    the same thing.
    """
    first = candidates[0]
    for other in candidates[1:]:
        _refuse_unequal(first, other)
    table = {candidate.name: _row(candidate.numbers) for candidate in candidates}
    differences = {
        other.name: {name: _difference(other, first, name) for name in _PAIRED}
        for other in candidates[1:]
    }
    return {"table": table, "reference": first.name, "differences": differences}


def _row(numbers: Mapping[str, Any]) -> dict[str, float | None]:
    neighbours, mixture = numbers.get("neighbours"), numbers.get("mixture")
    surgery = numbers.get("surgery")
    return {
        "elbo": numbers["elbo"],
        "iwae": numbers["iwae"],
        "kl": numbers["kl"],
        "posterior_gap": numbers["posterior_gap"],
        "active_units": numbers["active_units"],
        "reconstruction_psnr": numbers["reconstruction"]["psnr_mean"],
        "sample_psnr_to_nearest": numbers["generation"]["psnr_nearest"],
        "neighbour_agreement": neighbours["agreement"] if neighbours else None,
        "marginal_kl": surgery["marginal_kl"] if surgery else None,
        "mixture_gain": mixture["gain"] if mixture else None,
    }


def _difference(other: Candidate, first: Candidate, name: str) -> dict[str, float]:
    mean, error = mean_and_error(other.measured.column(name) - first.measured.column(name))
    return {"mean": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error}


def _refuse_unequal(first: Candidate, other: Candidate) -> None:
    if first.preprocess != other.preprocess:
        raise ConfigError(
            f"{other.name} and {first.name} can't be compared: their images differ "
            f"({other.preprocess} against {first.preprocess}). Compare models of one preprocessing."
        )
    if (first.likelihood == "bernoulli") != (other.likelihood == "bernoulli"):
        raise ConfigError(
            f"{other.name} ({other.likelihood}) and {first.name} ({first.likelihood}) can't be "
            "compared: Bernoulli scores the binarised image, the others the 256 levels."
        )
    if not np.array_equal(first.measured.positions, other.measured.positions):
        raise ConfigError(f"{other.name} and {first.name} did not measure the same images.")
