"""Which slip gives this figure? A user's number against those that known mistakes give."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config.explain import QUANTITIES, Quantity
from pipeline.evaluation.numbers import Numbers
from pipeline.evaluation.rows import Measured

_TOLERANCE = 0.003
"""Relative: one draw of z per image leaves about 0.2% on an ELBO of a thousand images."""


@dataclass(frozen=True)
class Slip:
    """A mistake, the number it gives on this run (nats per image), and what to write instead."""

    name: str
    quantity: Quantity
    value: float
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """A user's figure, and the slips that give it, the nearest first; `right`: it needs none."""

    quantity: Quantity
    figure: float
    right: bool
    slips: Sequence[Slip]

    def describe(self) -> str:
        """One line, or one per slip."""
        if self.right:
            return f"{self.quantity} {self.figure:.10g}: this is the run's own number."
        if not self.slips:
            return (
                f"{self.quantity} {self.figure:.10g}: no known slip gives it. Check that data, "
                "preprocessing and model are the same."
            )
        return "\n".join(
            f"{self.quantity} {self.figure:.10g}: {slip.name} (gives {slip.value:,.7g} here). "
            f"{slip.remedy}"
            for slip in self.slips
        )


def diagnose(quantity: Quantity, figure: float, slips: Sequence[Slip], right: float) -> Diagnosis:
    """Names the slips within 0.3% of the figure, the nearest first.

    Where all terms but one are small, as for large images, a slip lies as near as rounding does: it
    is named where it fits ten times better than the run's own number.
    """
    near = [
        slip
        for slip in slips
        if slip.quantity == quantity and _distance(figure, slip.value) <= _TOLERANCE
    ]
    near.sort(key=lambda slip: _distance(figure, slip.value))
    off = _distance(figure, right)
    fits_better = bool(near) and 10 * _distance(figure, near[0].value) < off
    if off <= _TOLERANCE / 3 and not fits_better:
        return Diagnosis(quantity, figure, True, ())
    return Diagnosis(quantity, figure, False, near[:3])


def known_slips(
    numbers: Numbers, measured: Measured, beta: float, sigma: float | None
) -> list[Slip]:
    """Every known slip with its number on this run.

    `beta`: the objective's
    weight of the KL; `sigma`: the deviation of a Gaussian likelihood that has one for all pixels.
    """
    kl_slips = _kl_slips(numbers, measured)
    likelihood_slips = _likelihood_slips(numbers, sigma)
    log_likelihood, kl = numbers.log_likelihood, numbers.kl
    of_elbo = [
        Slip(slip.name, "elbo", log_likelihood - slip.value, slip.remedy) for slip in kl_slips
    ] + [Slip(slip.name, "elbo", slip.value - kl, slip.remedy) for slip in likelihood_slips]
    of_elbo += _whole_slips(numbers)
    if beta != 1:
        of_elbo.append(
            Slip(
                f"beta = {beta:g} is left in: this is the objective, not the ELBO",
                "elbo",
                log_likelihood - beta * kl,
                "The ELBO has weight 1 on the KL whatever was optimised.",
            )
        )
    slips = [*kl_slips, *likelihood_slips, *of_elbo]
    flipped = [
        Slip(f"the sign is flipped ({slip.name})", slip.quantity, -slip.value, slip.remedy)
        for slip in slips
    ]
    plain = [
        Slip(
            "the sign is flipped: this is the loss to minimise",
            quantity,
            -right_value(numbers, quantity),
            "State the ELBO and log-likelihoods with their own sign, negative for images.",
        )
        for quantity in QUANTITIES
    ]
    return [*slips, *plain, *flipped]


def right_value(numbers: Numbers, quantity: Quantity) -> float:
    """The run's own, in nats per image."""
    match quantity:
        case "elbo":
            return numbers.elbo
        case "kl":
            return numbers.kl
        case "log_likelihood":
            return numbers.log_likelihood


def _whole_slips(numbers: Numbers) -> list[Slip]:
    log_likelihood, kl, elbo = numbers.log_likelihood, numbers.kl, numbers.elbo
    return [
        Slip(
            "the KL is left out: this is E log p(x|z) alone",
            "elbo",
            log_likelihood,
            "ELBO = E log p(x|z) - KL(q || p(z)).",
        ),
        Slip(
            "the KL is added instead of subtracted",
            "elbo",
            log_likelihood + kl,
            "ELBO = E log p(x|z) - KL.",
        ),
        Slip(
            "the log is missing: this is a probability",
            "elbo",
            math.exp(elbo),
            "log p(x) = ELBO + KL(q || p(z|x)): take the log of each image's probability.",
        ),
        Slip("bits, not nats", "elbo", elbo / math.log(2), "Multiply by ln 2 = 0.6931 for nats."),
        Slip(
            "averaged over pixels as a whole",
            "elbo",
            elbo / numbers.pixels,
            "Sum over pixels, average over images only.",
        ),
    ]


def _kl_slips(numbers: Numbers, measured: Measured) -> list[Slip]:
    mu = measured.means.astype(np.float64)
    log_variance = measured.log_variances.astype(np.float64)
    sigma = np.exp(0.5 * log_variance)

    def total(per_dimension: npt.NDArray[np.float64]) -> float:
        return float(0.5 * per_dimension.sum(axis=1).mean())

    right = total(mu**2 + np.expm1(log_variance) - log_variance)
    # The report's KL covers all images and the true posteriors; ratios carry a slip over to it.
    scale = numbers.kl / right if right > 0 else 1.0
    found = [
        (
            "sigma stands where sigma^2 belongs in the KL",
            total(mu**2 + sigma - 1 - np.log(sigma)),
            "KL = 1/2 sum(mu^2 + sigma^2 - 1 - log sigma^2).",
        ),
        (
            "the deviation is read as a log-variance in the KL",
            total(mu**2 + np.exp(sigma) - 1 - sigma),
            "With s = log sigma^2: KL = 1/2 sum(mu^2 + e^s - 1 - s); pass s, not sigma.",
        ),
        (
            "the log-variance is read as a log-deviation in the KL",
            total(mu**2 + np.expm1(2 * log_variance) - 2 * log_variance),
            "sigma = exp(s / 2) for s = log sigma^2, not exp(s).",
        ),
        (
            "the log-variance is read as a deviation in the KL",
            total(mu**2 + log_variance**2 - 1 - np.log(np.maximum(log_variance**2, 1e-300))),
            "The network gives log sigma^2: take exp before it is a variance.",
        ),
        (
            "the KL is averaged over dimensions, not summed",
            right / mu.shape[1],
            f"Sum over the {mu.shape[1]} latent dimensions, average over images only.",
        ),
        ("the factor 1/2 of the KL is missing", 2 * right, "KL = 1/2 sum(...)."),
    ]
    return [Slip(name, "kl", value * scale, remedy) for name, value, remedy in found]


def _likelihood_slips(numbers: Numbers, sigma: float | None) -> list[Slip]:
    pixels, value = numbers.pixels, numbers.log_likelihood
    found = [
        (
            "the decoder is evaluated at the posterior's mean, not at draws of z",
            numbers.log_likelihood_at_mean,
            "E_q log p(x|z) is an average over draws; log p(x|E z) is another, larger number.",
        ),
        (
            "log p(x|z) is averaged over pixels, not summed",
            value / pixels,
            f"Sum over the {pixels:,} pixels and channels, average over images only.",
        ),
    ]
    if numbers.bits_per_dim is not None:
        found.append(
            (
                "the density is per unit of [0, 1], not per level: -D ln 256 is missing",
                value + pixels * math.log(256),
                "Add -D ln 256, or bits/dim are not of the uint8 image.",
            )
        )
    if sigma is not None:
        normalising = 0.5 * math.log(2 * math.pi)
        found += [
            (
                "the constant -D/2 ln(2 pi) is missing",
                value + pixels * normalising,
                "log N(x; m, s^2) = -(x - m)^2 / 2 s^2 - ln s - 1/2 ln(2 pi), per pixel.",
            ),
            (
                "all constants are missing: only -(x - m)^2 / 2 sigma^2 is left",
                value + pixels * (normalising + math.log(256) + math.log(sigma)),
                "Add -ln sigma - 1/2 ln(2 pi) - ln 256 for each pixel and channel.",
            ),
            (
                "a unit-variance Gaussian without constants: half the squared error",
                (value + pixels * (normalising + math.log(256) + math.log(sigma))) * sigma**2,
                f"The model's sigma is {sigma:.4f}, not 1.",
            ),
        ]
    return [Slip(name, "log_likelihood", number, remedy) for name, number, remedy in found]


def _distance(figure: float, value: float) -> float:
    """Relative; of tiny probabilities, which span hundreds of magnitudes, that of their logs."""
    if 0 < value < 1e-6:
        return abs(math.log(figure) / math.log(value) - 1) if figure > 0 else math.inf
    return abs(figure - value) / max(abs(value), 1e-12)
