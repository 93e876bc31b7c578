"""The mathematics: likelihoods, posterior, ELBO, objectives, networks and the model bundle."""

from pipeline.vae.bounds import ImportanceEstimate, importance_estimate
from pipeline.vae.bundle import load_bundle, save_bundle, verify_bundle
from pipeline.vae.elbo import ElboTerms
from pipeline.vae.noise import Noise, draw_noise
from pipeline.vae.objectives import (
    ObjectiveState,
    ObjectiveTerms,
    Optimised,
    objective_loss,
    optimised,
)
from pipeline.vae.posterior import Posterior
from pipeline.vae.prior import Latent, Prior
from pipeline.vae.vae import VAE, build_vae

__all__ = [
    "VAE",
    "ElboTerms",
    "ImportanceEstimate",
    "Latent",
    "Noise",
    "ObjectiveState",
    "ObjectiveTerms",
    "Optimised",
    "Posterior",
    "Prior",
    "build_vae",
    "draw_noise",
    "importance_estimate",
    "load_bundle",
    "objective_loss",
    "optimised",
    "save_bundle",
    "verify_bundle",
]
