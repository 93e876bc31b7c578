"""The mathematics: likelihoods, posterior, ELBO, objectives, networks and the model bundle."""

from pipeline.vae.bounds import (
    ImportanceEstimate,
    importance_estimate,
    importance_weighted_bound,
)
from pipeline.vae.elbo import ElboTerms
from pipeline.vae.noise import Noise, draw_noise
from pipeline.vae.objectives import ObjectiveTerms, objective_loss
from pipeline.vae.posterior import Posterior
from pipeline.vae.vae import VAE, build_vae

__all__ = [
    "VAE",
    "ElboTerms",
    "ImportanceEstimate",
    "Noise",
    "ObjectiveTerms",
    "Posterior",
    "build_vae",
    "draw_noise",
    "importance_estimate",
    "importance_weighted_bound",
    "objective_loss",
]
