"""Does a model look healthy? Each warning says what was found and what to try."""

from collections.abc import Mapping
from typing import Any

COLLAPSED_NATS = 0.1
"""A mean KL below this says that z tells nothing about x."""

_IGNORED_DB = 0.1
"""What an image's own code must win over another's; a decoder that ignores z wins nothing."""


def check_health(numbers: Mapping[str, Any], sigma: float | None = None) -> list[str]:
    """Warnings for the numbers of an evaluation's report; none when all is well.

    `sigma`: the likelihood's deviation, where it has one.
    """
    warnings = []
    if numbers.get("not_finite"):
        warnings.append(
            f"{numbers['not_finite']} of {numbers['images']} images have an ELBO that is not "
            "finite and are in no mean: the model diverged on them. Take an earlier checkpoint, or "
            "train with a lower `--optimizer.learning-rate RATE` or `--precision fp32`."
        )
    kl, active, dimensions = numbers["kl"], numbers["active_units"], numbers["latent_dimensions"]
    codes = numbers.get("codes")
    if kl < COLLAPSED_NATS or active == 0:
        warnings.append(
            f"Posterior collapse: the KL is {kl:.4f} nats and {active} of {dimensions} dimensions "
            "are active, so z says nothing. Try `--objective.beta` below 1, a slower start of the "
            "KL, or a higher learning rate."
        )
    elif active < dimensions / 10:
        warnings.append(
            f"Over-regularised: only {active} of {dimensions} dimensions are active. Try a lower "
            "`--objective.beta`, or accept it and use a smaller latent."
        )
    if codes and codes["psnr_own"] - codes["psnr_other"] < _IGNORED_DB and kl >= COLLAPSED_NATS:
        warnings.append(
            f"The decoder ignores z: from its own code an image comes back at "
            f"{codes['psnr_own']:.2f} dB, from another image's at {codes['psnr_other']:.2f} dB. "
            "Train longer, or try `--objective.beta` below 1 or a smaller decoder."
        )
    if sigma is not None and sigma < 1.05 / 256:
        warnings.append(
            f"The likelihood's deviation is at its floor ({sigma * 256:.3f} levels): the variance "
            "is clamped, and the ELBO no longer tells models apart. Is the data synthetic or "
            "constant?"
        )
    if numbers["elbo"] > 0:
        warnings.append(
            f"The ELBO is positive ({numbers['elbo']:.3f}): 256 levels have no density above one. "
            "Look for missing constants."
        )
    low = numbers["effective_samples"]
    if low < 1.5 and numbers["importance_samples"] >= 16:
        warnings.append(
            f"Of {numbers['importance_samples']} draws only {low:.2f} count: IWAE is far below "
            "log p(x), and more draws hardly raise it. Look at the posterior gap by annealing."
        )
    return warnings
