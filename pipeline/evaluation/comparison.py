"""Models side by side on equal terms: the same images, preprocessing and measure, or a refusal."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pipeline.errors import ConfigError
from pipeline.evaluation.findings import mean_and_error
from pipeline.evaluation.numbers import Numbers
from pipeline.evaluation.rows import Measured
from pipeline.json_value import Json
from pipeline.runs.json_numbers import plain_json
from pipeline.vae import VAE

_PAIRED = ("elbo", "iwae", "kl", "log_likelihood", "psnr_mean")


@dataclass(frozen=True)
class Candidate:
    """One model's rows and numbers, and the digest of its weights."""

    name: str
    measured: Measured
    numbers: Numbers
    digest: str | None


@dataclass(frozen=True)
class Difference:
    """The mean over images of (model - first), with its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ComparedRow:
    """What stands side by side; None where a model has no such number."""

    elbo: float
    iwae: float
    kl: float
    posterior_gap: float
    active_units: int
    reconstruction_psnr: float
    sample_psnr_to_nearest: float
    neighbour_agreement: float | None
    marginal_kl: float | None
    mixture_gain: float | None


@dataclass(frozen=True)
class Comparison:
    """`table` by model; `differences` to the `reference`, by model and quantity.

    Pairing takes out what makes an image hard for every model. `same_weights`: models that are the
    reference under another name.
    """

    table: Mapping[str, ComparedRow]
    reference: str
    differences: Mapping[str, Mapping[str, Difference]]
    same_weights: Sequence[str]

    def to_json(self) -> Json:
        """What is not finite is null."""
        return dict(plain_json(asdict(self)))


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


def compare(candidates: Sequence[Candidate]) -> Comparison:
    """Every model beside the first one, over the same images."""
    first, *others = candidates
    for other in others:
        if not np.array_equal(first.measured.positions, other.measured.positions):
            raise ConfigError(f"{other.name} and {first.name} did not measure the same images.")
    return Comparison(
        table={candidate.name: _row(candidate.numbers) for candidate in candidates},
        reference=first.name,
        differences={
            other.name: {name: _difference(other, first, name) for name in _PAIRED}
            for other in others
        },
        same_weights=[other.name for other in others if other.digest == first.digest],
    )


def _row(numbers: Numbers) -> ComparedRow:
    return ComparedRow(
        elbo=numbers.elbo,
        iwae=numbers.iwae,
        kl=numbers.kl,
        posterior_gap=numbers.posterior_gap,
        active_units=numbers.active_units,
        reconstruction_psnr=numbers.reconstruction.psnr_mean,
        sample_psnr_to_nearest=numbers.generation.psnr_nearest,
        neighbour_agreement=numbers.neighbours.agreement if numbers.neighbours else None,
        marginal_kl=numbers.surgery.marginal_kl if numbers.surgery else None,
        mixture_gain=numbers.mixture.gain if numbers.mixture else None,
    )


def _difference(other: Candidate, first: Candidate, name: str) -> Difference:
    mean, error = mean_and_error(other.measured.column(name) - first.measured.column(name))
    return Difference(mean, mean - 1.96 * error, mean + 1.96 * error)
