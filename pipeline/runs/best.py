"""Which weights a run ends with, and when it has stopped getting better."""

import logging
import math
from collections.abc import Sequence

from pipeline.runs.facts import RunFacts
from pipeline.runs.history import Validation
from pipeline.runs.run import Run
from pipeline.vae import VAE, load_bundle, save_bundle

logger = logging.getLogger(__name__)


def best_of(validations: Sequence[Validation]) -> Validation:
    """The one with the highest ELBO, the first of equals; none that is no number is above one."""
    return max(validations, key=lambda found: -math.inf if math.isnan(found.elbo) else found.elbo)


def keep_if_best(run: Run, validations: Sequence[Validation], averaged: VAE) -> None:
    """Keeps the averaged weights in RUN/best if the newest validation is the best so far."""
    if best_of(validations) is validations[-1]:
        save_bundle(averaged, run.path("best"), {"step": validations[-1].step})


def has_converged(patience: int | None, validations: Sequence[Validation]) -> bool:
    """Whether the last `patience` validations have all been no better than an earlier one."""
    if patience is None or len(validations) <= patience:
        return False
    best = validations.index(best_of(validations))
    return len(validations) - 1 - best >= patience


def save_final(
    run: Run,
    averaged: VAE,
    validations: Sequence[Validation],
    facts: RunFacts,
    *,
    keeps_best: bool,
) -> tuple[str, Validation | None]:
    """Writes RUN/bundle, from the best or from the last weights; its digest and its validation."""
    chosen, vae = (validations[-1] if validations else None), averaged
    if chosen and keeps_best:
        chosen = best_of(validations)
        if chosen is not validations[-1]:
            vae = load_bundle(run.path("best"), averaged.model_config.own_classes)
            if (vae.metadata or {}).get("step") != chosen.step:
                logger.warning(
                    "RUN/best holds the weights of step %s, which a start that died had validated: "
                    "those of step %d, the best since, are gone, and the last ones are taken",
                    (vae.metadata or {}).get("step"),
                    chosen.step,
                )
                chosen, vae = validations[-1], averaged
    metadata = facts.to_json(chosen.terms if chosen else None)
    if chosen:
        metadata = {**metadata, "step": chosen.step}
    return save_bundle(vae, run.path("bundle"), metadata), chosen
