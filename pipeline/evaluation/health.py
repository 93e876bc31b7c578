"""Does a model look healthy? Each warning says what was found and what to try."""

import math
from collections.abc import Mapping, Sequence
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
            "train with a lower --optimizer.learning-rate or --precision fp32."
        )
    kl, active, dimensions = numbers["kl"], numbers["active_units"], numbers["latent_dimensions"]
    codes = numbers.get("codes")
    if kl < COLLAPSED_NATS or active == 0:
        warnings.append(
            f"Posterior collapse: the KL is {kl:.4f} nats and {active} of {dimensions} dimensions "
            "are active, so z says nothing. Try --objective.beta below 1, a slower start of the "
            "KL, or a higher learning rate."
        )
    elif active < dimensions / 10:
        warnings.append(
            f"Over-regularised: only {active} of {dimensions} dimensions are active. Try a lower "
            "--objective.beta, or accept it and use a smaller latent."
        )
    if codes and codes["psnr_own"] - codes["psnr_other"] < _IGNORED_DB and kl >= COLLAPSED_NATS:
        warnings.append(
            f"The decoder ignores z: from its own code an image comes back at "
            f"{codes['psnr_own']:.2f} dB, from another image's at {codes['psnr_other']:.2f} dB. "
            "Train longer, or try --objective.beta below 1 or a smaller decoder."
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
            f"Of {numbers['importance_samples']} draws only {low:.2f} count: IWAE and the "
            "posterior gap are far below their limits. Raise --importance-samples."
        )
    return warnings


def check_course(looks: Sequence[Mapping[str, float]]) -> list[str]:
    """What has gone wrong since the last look at the hold-out; each illness is told once.

    `looks`: `elbo`, `kl` and `active_units` at each validation, the first of the untrained model.
    """
    before = _illnesses(looks[:-1])
    return [words for name, words in _illnesses(looks).items() if name not in before]


def _illnesses(looks: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """What the newest look shows; nothing is expected of an untrained model."""
    if len(looks) < 2:
        return {}
    newest, first = looks[-1], looks[0]["elbo"]
    found = {}
    best = max((look["elbo"] for look in looks if math.isfinite(look["elbo"])), default=first)
    # Half of what training had gained is lost: no noise of a validation, which is exact.
    if not newest["elbo"] >= best - 0.5 * (best - first):
        found["divergence"] = (
            f"Training diverges: the held-out ELBO is {newest['elbo']:.2f} nats, it was {best:.2f} "
            f"at best and {first:.2f} before training. Try a lower --optimizer.learning-rate or "
            "--optimizer.clip-norm; --patience ends such a run."
        )
    if newest["kl"] < COLLAPSED_NATS or newest["active_units"] == 0:
        found["collapse"] = (
            f"Posterior collapse: the held-out KL is {newest['kl']:.4f} nats and "
            f"{newest['active_units']:.0f} dimensions are active, so z says nothing. If it stays "
            "so, try --objective.beta below 1, --objective.warmup linear, or a higher learning "
            "rate."
        )
    return found
