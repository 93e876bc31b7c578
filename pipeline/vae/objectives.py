"""What is optimised, as a thing apart from the ELBO that is reported."""

from dataclasses import dataclass

from torch import Tensor

from pipeline.config import ObjectiveConfig
from pipeline.vae.elbo import ElboTerms


@dataclass(frozen=True)
class ObjectiveTerms:
    """`loss_per_image` [B] in nats, to be minimised; `beta`, the KL's weight in it at this step."""

    loss_per_image: Tensor
    beta: float


def objective_loss(config: ObjectiveConfig, terms: ElboTerms, step: int) -> ObjectiveTerms:
    """The loss of each image at `step` (from 1)."""
    return ObjectiveTerms(-(terms.log_likelihood - config.beta * terms.kl), config.beta)
