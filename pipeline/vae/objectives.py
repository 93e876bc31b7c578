"""What is optimised, as a thing apart from the ELBO that is reported."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from pipeline.config import ObjectiveConfig
from pipeline.errors import ModelError
from pipeline.vae.elbo import ElboTerms

GECO_DECAY = 0.99
"""Of the moving average of the constraint (Rezende & Viola 2018)."""
GECO_RATE = 0.1
"""log beta moves by this times the constraint in nats per dimension, each step."""
GECO_BETAS = (1e-6, 1e4)
"""A target that can't be reached moves beta at every step: from here it comes back in hundreds."""


@dataclass(frozen=True)
class ObjectiveTerms:
    """`loss_per_image` [B] in nats, to be minimised; `beta`, the KL's weight in it at this step."""

    loss_per_image: Tensor
    beta: float


@dataclass(frozen=True)
class ObjectiveState:
    """What an objective learns as it goes: geco's beta and average. It belongs in the checkpoint.

    Moved by means over the global batch, so that every rank holds the same.
    """

    beta: float = 1.0
    constraint: float = 0.0
    """Moving average of how far -log p(x|z) lies above its target, in nats per dimension."""

    def updated(
        self, config: ObjectiveConfig, log_likelihood: float, dimensions: int
    ) -> "ObjectiveState":
        """After a step: its mean log-likelihood in nats per image, over `dimensions` = C H W."""
        if config.kind != "geco" or not math.isfinite(log_likelihood):
            return self
        assert config.target_bits_per_dim is not None
        above = -log_likelihood / dimensions - config.target_bits_per_dim * math.log(2)
        average = GECO_DECAY * self.constraint + (1 - GECO_DECAY) * above
        low, high = GECO_BETAS
        # Too far from the target: the multiplier of the constraint, 1 / beta, grows.
        beta = min(high, max(low, self.beta * math.exp(-GECO_RATE * average)))
        return ObjectiveState(beta, average)

    def to_json(self) -> dict[str, float]:
        """Plain numbers."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, float]) -> "ObjectiveState":
        """What `to_json` gave."""
        return ObjectiveState(**values)


@dataclass(frozen=True)
class Optimised:
    """What a training maximised, as its bundle tells it; None where the kind has no such number.

    `beta` is the KL's weight in the last step's loss: after the warm-up the configured one, with
    geco the learned one. iwae's bound weighs no KL. `full_beta`: what a warm-up leads to.
    """

    kind: str
    beta: float | None
    samples: int
    full_beta: float | None = None
    free_nats: float | None = None
    target_bits_per_dim: float | None = None

    def to_json(self) -> dict[str, str | float | int]:
        """The numbers that there are."""
        return {name: value for name, value in vars(self).items() if value is not None}


def optimised(config: ObjectiveConfig, step: int, state: ObjectiveState) -> Optimised:
    """What was optimised up to `step`, after which the objective had learned `state`."""
    beta: float | None = beta_at(config, max(1, step))
    match config.kind:
        case "geco":
            beta = state.beta
        case "iwae":
            beta = None
        case "autoencoder":
            beta = 0.0
    return Optimised(
        kind=config.kind,
        beta=beta,
        samples=config.samples,
        full_beta=None if config.warmup == "none" else config.beta,
        free_nats=config.free_nats,
        target_bits_per_dim=config.target_bits_per_dim,
    )


def objective_loss(
    config: ObjectiveConfig, terms: ElboTerms, step: int, state: ObjectiveState | None = None
) -> ObjectiveTerms:
    """The loss of each image at `step` (from 1); geco needs its state."""
    match config.kind:
        case "beta":
            beta = beta_at(config, step)
            return ObjectiveTerms(-(terms.log_likelihood - beta * terms.kl), beta)
        case "free_bits":
            # Per image and dimension, not on batch means: it then is the same at any world size.
            beta = beta_at(config, step)
            kl = terms.kl_per_dimension.clamp(min=config.free_nats).sum(1)
            return ObjectiveTerms(-(terms.log_likelihood - beta * kl), beta)
        case "geco":
            if state is None:
                raise ModelError("objective geco needs its state: pass ObjectiveState() to begin.")
            return ObjectiveTerms(-(terms.log_likelihood - state.beta * terms.kl), state.beta)
        case "iwae":
            bound = terms.log_weights.logsumexp(1) - math.log(terms.log_weights.shape[1])
            return ObjectiveTerms(-bound, 1.0)
        case "autoencoder":
            if terms.log_likelihood_at_mean is None:
                raise ModelError("objective autoencoder needs the forward pass with at_mean=True.")
            return ObjectiveTerms(-terms.log_likelihood_at_mean, 0.0)


def beta_at(config: ObjectiveConfig, step: int) -> float:
    """The KL's weight at `step` (from 1): full at the end of a warm-up, or half-way in a cycle."""
    if config.warmup_steps is None:
        return config.beta
    if not config.is_cyclical:
        return config.beta * min(1.0, step / config.warmup_steps)
    place = ((step - 1) % config.warmup_steps + 1) / config.warmup_steps
    return config.beta * min(1.0, 2 * place)
