"""Models side by side on equal terms: the same images, preprocessing and measure, or a refusal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.evaluation.findings import mean_and_error
from pipeline.evaluation.rows import Measured
from pipeline.runs.json_numbers import plain_json
from pipeline.vae import VAE

_PAIRED = ("elbo", "iwae", "kl", "log_likelihood", "psnr_mean")


@dataclass(frozen=True)
class Candidate:
    """One model's rows and numbers, and the digest of its weights."""

    name: str
    measured: Measured
    numbers: Mapping[str, Any]
    digest: str | None


def check_comparable(models: Mapping[str, VAE]) -> None:
    """Raises `ConfigError` where numbers of these models, by name, would not be of the same thing.

    Nothing is measured for it.
    """
    (name, first), *others = models.items()
    for other_name, other in others:
        if first.preprocess != other.preprocess:
            raise ConfigError(
                f"{other_name} and {name} can't be compared: their images differ "
                f"({other.preprocess} against {first.preprocess}). "
                "Compare models of one preprocessing."
            )
        ours, theirs = first.likelihood.measure, other.likelihood.measure
        if ours != theirs:
            raise ConfigError(
                f"{other_name} ({other.model_config.likelihood}) and {name} "
                f"({first.model_config.likelihood}) can't be compared: one scores the {theirs}, "
                f"the other the {ours}."
            )


def compare(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """`table[model][quantity]`, and the paired differences of each model to the first one.

    A difference is the mean over images of (model - first) with its 95% interval: pairing takes
    out what makes an image hard for every model. `same_weights` lists those that are the first one
    under another name. Plain JSON.
    """
    first, *others = candidates
    for other in others:
        if not np.array_equal(first.measured.positions, other.measured.positions):
            raise ConfigError(f"{other.name} and {first.name} did not measure the same images.")
    differences = {
        other.name: {name: _difference(other, first, name) for name in _PAIRED} for other in others
    }
    found = {
        "table": {candidate.name: _row(candidate.numbers) for candidate in candidates},
        "reference": first.name,
        "differences": differences,
        "same_weights": [other.name for other in others if other.digest == first.digest],
    }
    return dict(plain_json(found))


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
