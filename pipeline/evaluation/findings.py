"""What an evaluation found: every number of the report, from rows per image and the model."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.evaluation.distances import named_features, pixel_components, set_distances
from pipeline.evaluation.evidence import (
    METHODS,
    WeightRows,
    affordable,
    bound_gap,
    bracket_evidence,
    importance_gap,
)
from pipeline.evaluation.fidelity import PROTOCOL, psnr, ssim
from pipeline.evaluation.kl_split import ACTIVE_VARIANCE, split_kl
from pipeline.evaluation.mixture import Mixture, choose_mixture
from pipeline.evaluation.neighbours import image_similarity, label_agreement
from pipeline.evaluation.quadrature import integrate
from pipeline.evaluation.rows import Measured
from pipeline.evaluation.sums import seen_images
from pipeline.evaluation.walks import path_lengths
from pipeline.runs.json_numbers import plain_json
from pipeline.vae import VAE, ElboTerms, Prior, draw_noise

_PAIRS = 32
"""Of images that are walked between: for a mean with an error, and some seconds of decoding."""
_GENERATED = 200
"""Images drawn from the model: enough for a distance with an error, and seconds of decoding."""
_INTEGRATED = 16
"""Images whose evidence is integrated on a grid: each takes thousands of decodings."""


@dataclass(frozen=True)
class FindingOptions:
    """seed: of all draws. bound_images: first images that get the better bounds, and images drawn
    from the model, whose log p(x) is bounded from both sides; 0: none.

    features: a user's network for the distances of sets; None: pixels' principal components.
    """

    seed: int
    importance_samples: int
    bound_images: int
    features: str | None = None


@dataclass(frozen=True)
class Findings:
    """`numbers` is plain JSON; the arrays are for pictures: `[D]` each, and the ex-post mixture."""

    numbers: dict[str, Any]
    kl_per_dimension: npt.NDArray[np.float64]
    activity: npt.NDArray[np.float64]
    mixture: Mixture | None


def find(vae: VAE, measured: Measured, first: Tensor, options: FindingOptions) -> Findings:
    """All numbers for a whole hold-out; `first` are its first uint8 images `[F, C, H, W]`."""
    count = len(measured.positions)
    kl_per_dimension = measured.dimensions[0] / count
    means = measured.dimensions[1] / count
    activity = np.maximum(measured.dimensions[2] / count - means**2, 0)
    numbers = {
        "images": count,
        "not_finite": int((~np.isfinite(measured.column("elbo"))).sum()),
        **bound_numbers(vae, measured, options.importance_samples),
        "active_units": int((activity > ACTIVE_VARIANCE).sum()),
        "latent_dimensions": len(activity),
        "reconstruction": _reconstruction(measured),
    }
    numbers |= _gap(vae, measured, first, options)
    numbers["kl_largest_dimension"] = float(kl_per_dimension.max())
    numbers["codes"] = _codes(vae, first, options.seed)
    numbers["quadrature"] = _quadrature(vae, first, options.seed)
    latents = torch.from_numpy(measured.means)
    log_variances = torch.from_numpy(measured.log_variances)
    numbers["surgery"] = surgery(vae, latents, log_variances, options.seed, "hold-out")
    numbers["neighbours"] = _neighbours(latents, measured.labels)
    few = slice(min(len(first), len(latents)))
    noise = draw_noise(vae, options.seed, -3, range(len(latents[few]))).posterior.flatten(1)
    # Of draws: means alone may sort images by differences that q's noise drowns.
    codes = latents[few] + (0.5 * log_variances[few]).exp() * noise
    similarity = image_similarity(codes, first[few])
    numbers["similarity"] = asdict(similarity) if similarity else None
    mixture, numbers["mixture"] = fit_latents(vae.prior, latents, log_variances, options.seed)
    numbers["interpolation"] = _interpolation(vae, latents)
    numbers |= _generated(vae, first, options)
    return Findings(plain_json(numbers), kl_per_dimension, activity, mixture)


def bound_numbers(vae: VAE, measured: Measured, samples: int) -> dict[str, Any]:
    """ELBO, its terms, IWAE above it, rate, distortion and bits/dim, each mean with its error."""
    numbers: dict[str, Any] = {}
    for name in (*ElboTerms.COMPONENTS, "iwae", "iwae_gap", "mean_log_weight"):
        numbers[name], numbers[f"{name}_error"] = mean_and_error(measured.column(name))
    bits = not vae.likelihood.is_binary
    effective = measured.column("effective_samples")
    return numbers | {
        "importance_samples": samples,
        "effective_samples": float(effective.mean()),
        "effective_samples_lowest": float(effective.min()),
        "rate": numbers["kl"],
        "distortion": -numbers["log_likelihood"],
        "bits_per_dim": -numbers["elbo"] / (math.prod(vae.image_shape) * math.log(2))
        if bits
        else None,
    }


def _gap(vae: VAE, measured: Measured, first: Tensor, options: FindingOptions) -> dict[str, Any]:
    """`posterior_gap`, a lower bound: the best that was computed; `gap` tells how and of what.

    `gap.elbo` and `gap.evidence` are of the gap's own images: ELBO + gap <= log p(x).
    """
    weights = WeightRows(
        measured.column("mean_log_weight"),
        measured.column("iwae_gap"),
        measured.column("effective_samples"),
        options.importance_samples,
    )
    count = min(affordable(vae, options.bound_images), len(first))
    found = importance_gap(weights)
    if count:
        slots = measured.positions[:count].tolist()
        found = bound_gap(vae, first[:count], slots, weights.first(count), options.seed)
    bracket = None
    if options.bound_images:
        drawn = affordable(vae, options.bound_images)
        bracket = asdict(bracket_evidence(vae, drawn, options.seed))
    told = {"how": METHODS[found.method], "evidence": found.elbo + found.nats}
    return {"posterior_gap": found.nats, "gap": asdict(found) | told, "bracket": bracket}


def mean_and_error(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The mean and one standard error of it (NaN values left out); error infinite below two."""
    kept = values[np.isfinite(values)]
    if len(kept) == 0:
        return math.nan, math.inf
    error = float(kept.std(ddof=1)) / math.sqrt(len(kept)) if len(kept) > 1 else math.inf
    return math.fsum(kept) / len(kept), error


def fit_latents(
    prior: Prior, means: Tensor, log_variances: Tensor, seed: int
) -> tuple[Mixture | None, dict[str, float] | None]:
    """A mixture fitted to draws of q for every second image and scored on the other half's.

    `gain`: nats per image by which it describes unseen codes better than the prior does.
    """
    if len(means) < 80:
        return None, None
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(means.shape, generator=generator)
    draws = (means + (0.5 * log_variances).exp() * noise).double()
    mixture = choose_mixture(draws[::2], seed)
    held_out = draws[1::2]
    of_mixture = float(mixture.log_prob(held_out).mean())
    of_prior = float(prior.log_prob(prior.latent.unflattened(held_out)).mean())
    return mixture, {
        "components": len(mixture.log_weights),
        "log_density": of_mixture,
        "prior_log_density": of_prior,
        "gain": of_mixture - of_prior,
    }


def _quadrature(vae: VAE, first: Tensor, seed: int) -> dict[str, float] | None:
    """The exact log p(x) and KLs of the first images, where z has one or two dimensions."""
    if vae.latent.dimensions > 2:
        return None
    images = first[:_INTEGRATED]
    noise = draw_noise(vae, seed, 0, range(len(images)))
    exact = integrate(vae, images, noise)
    return {
        "images": len(images),
        "log_evidence": float(exact.log_evidence.mean()),
        "elbo": float((exact.log_evidence - exact.kl_q_posterior).mean()),
        "kl_q_posterior": float(exact.kl_q_posterior.mean()),
        "kl_posterior_q": float(exact.kl_posterior_q.mean()),
        "error": exact.error,
    }


def _reconstruction(measured: Measured) -> dict[str, Any]:
    names = ("psnr_mean", "psnr_sample", "ssim_mean", "ssim_sample", "ms_ssim_mean")
    scores = {name: mean_and_error(measured.column(name))[0] for name in names}
    return scores | {"protocol": PROTOCOL}


def _codes(vae: VAE, first: Tensor, seed: int) -> dict[str, float] | None:
    """How close an image is to what its own code decodes to, and to what another image's does.

    Equal values say that the decoder ignores z.
    """
    if len(first) < 2:
        return None
    noise = draw_noise(vae, seed, 0, range(len(first)))
    own, other = [], []
    with torch.no_grad():
        codes = vae.encode(seen_images(vae, first, noise)).mean
        for part in torch.split(torch.arange(len(first)), 50):
            real = first[part].float() / 255
            own.append(psnr(vae.decode(codes[part]).float(), real))
            other.append(psnr(vae.decode(codes[part - 1]).float(), real))
    return {
        "images": len(first),
        "psnr_own": float(torch.cat(own).mean()),
        "psnr_other": float(torch.cat(other).mean()),
    }


def surgery(
    vae: VAE, means: Tensor, log_variances: Tensor, seed: int, of: str
) -> dict[str, Any] | None:
    """The KL's split over posteriors `[N, D]` of the images that `of` names; None for fewer than
    two, or of full covariance.
    """
    if vae.model_config.posterior == "full" or len(means) < 2:
        return None
    noise = draw_noise(vae, seed, -3, range(len(means))).posterior.flatten(1)
    return asdict(split_kl(means, log_variances, noise[None])) | {"of": of}


def _neighbours(means: Tensor, labels: Sequence[str] | None) -> dict[str, Any] | None:
    found = label_agreement(means, labels) if labels else None
    return asdict(found) if found else None


def _interpolation(vae: VAE, means: Tensor) -> dict[str, Any] | None:
    pairs = min(_PAIRS, len(means) // 2)
    if pairs == 0:
        return None
    latents = vae.latent.unflattened(means[: 2 * pairs])
    return asdict(path_lengths(vae, latents[:pairs], latents[pairs:]))


def _generated(vae: VAE, first: Tensor, options: FindingOptions) -> dict[str, Any]:
    """`generation`: prior samples against the nearest of the given real images, by squared error;
    `distances`: of samples and of reconstructions, as sets, to these images.

    A low nearest says that samples look like no image; a value near the reconstructions' would say
    that they copy one. None for a single image, which is no set.
    """
    noise = draw_noise(vae, options.seed, -4, range(_GENERATED))
    drawn = vae.prior.sample(noise.posterior)
    slots = range(len(first))
    with torch.no_grad():
        samples = torch.cat([vae.decode(part) for part in torch.split(drawn, 50)]).float()
        seen = seen_images(vae, first, draw_noise(vae, options.seed, 0, slots))
        parts = [vae.decode(vae.encode(part).mean) for part in torch.split(seen, 50)]
    rebuilt, real = torch.cat(parts).float(), seen.float() / 255
    distances = torch.cdist(samples.flatten(1), real.flatten(1))
    nearest = real[distances.argmin(dim=1)]
    similarity = ssim(samples, nearest)
    generation = {
        "samples": len(samples),
        "compared_with": len(real),
        "psnr_nearest": float(psnr(samples, nearest).mean()),
        "ssim_nearest": None if similarity is None else float(similarity.mean()),
    }
    sets = None
    if len(real) > 2:
        name = options.features
        features = named_features(name) if name else pixel_components(real)
        told = name or "principal components of the real images' pixels"
        sets = asdict(set_distances(real, rebuilt, samples, features, told))
    return {"generation": generation, "distances": sets}
