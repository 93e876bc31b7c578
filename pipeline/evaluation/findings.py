"""What an evaluation found: every number of the report, from rows per image and the model."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.evaluation.distances import (
    FeatureSets,
    NamedFeatures,
    SetDistances,
    features_of,
    pixel_components,
    set_distances,
)
from pipeline.evaluation.evidence import (
    Bracket,
    PosteriorGap,
    WeightRows,
    affordable,
    bound_gap,
    bracket_evidence,
    importance_gap,
)
from pipeline.evaluation.fidelity import LPIPS_PROTOCOL, PROTOCOL, Perception, psnr, ssim
from pipeline.evaluation.kl_split import ACTIVE_VARIANCE, Surgery, split_kl
from pipeline.evaluation.mixture import Mixture, choose_mixture
from pipeline.evaluation.neighbours import NeighbourAgreement, image_similarity, label_agreement
from pipeline.evaluation.numbers import (
    Codes,
    ExactEvidence,
    Generation,
    Means,
    MixtureGain,
    Numbers,
    Perceptual,
    Reconstruction,
)
from pipeline.evaluation.quadrature import integrate
from pipeline.evaluation.rows import Measured
from pipeline.evaluation.sums import evaluating, positions_of, seen_images
from pipeline.evaluation.walks import PathLengths, path_lengths
from pipeline.vae import VAE, ElboTerms, Prior, draw_noise

if TYPE_CHECKING:
    from pipeline.data import Batch

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

    perception: LPIPS with a user's weights; None: there is none. without_bounds: how one does
    without these bounds, for whoever waits for them.
    """

    seed: int
    importance_samples: int
    bound_images: int
    perception: Perception | None = None
    without_bounds: str = ""


@dataclass(frozen=True)
class Findings:
    """All numbers; the arrays are for pictures: `[D]` each, and the ex-post mixture."""

    numbers: Numbers
    kl_per_dimension: npt.NDArray[np.float64]
    activity: npt.NDArray[np.float64]
    mixture: Mixture | None


def find(vae: VAE, measured: Measured, first: Tensor, options: FindingOptions) -> Findings:
    """All numbers for a whole hold-out; `first` are its first uint8 images `[F, C, H, W]`."""
    count = len(measured.positions)
    kl_per_dimension = measured.dimensions[0] / count
    means = measured.dimensions[1] / count
    activity = np.maximum(measured.dimensions[2] / count - means**2, 0)
    gap, bracket = _gap(vae, measured, first, options)
    latents = torch.from_numpy(measured.means)
    log_variances = torch.from_numpy(measured.log_variances)
    few = slice(min(len(first), len(latents)))
    noise = draw_noise(vae, options.seed, -3, range(len(latents[few]))).posterior.flatten(1)
    # Of draws: means alone may sort images by differences that q's noise drowns.
    codes = latents[few] + (0.5 * log_variances[few]).exp() * noise
    mixture, gain = fit_latents(vae.prior, latents, log_variances, options.seed)
    pictures = _pictures(vae, first, options.seed)
    step = (vae.metadata or {}).get("step")
    numbers = Numbers(
        **vars(mean_terms(vae, measured, options.importance_samples)),
        images=count,
        not_finite=int((~np.isfinite(measured.column("elbo"))).sum()),
        likelihood=vae.model_config.likelihood,
        pixels=math.prod(vae.image_shape),
        step=step if isinstance(step, int) else None,
        active_units=int((activity > ACTIVE_VARIANCE).sum()),
        latent_dimensions=len(activity),
        kl_largest_dimension=float(kl_per_dimension.max()),
        bound_images=options.bound_images,
        gap=gap,
        bracket=bracket,
        reconstruction=_reconstruction(measured),
        generation=_generation(pictures),
        distances=_pixel_distances(pictures),
        lpips=_perceptual(pictures, options.perception),
        codes=_codes(vae, first, options.seed),
        quadrature=_quadrature(vae, first, options.seed),
        surgery=surgery(vae, latents, log_variances, options.seed, "hold-out"),
        neighbours=_neighbours(latents, measured.labels),
        similarity=image_similarity(codes, first[few]),
        mixture=gain,
        interpolation=_interpolation(vae, latents),
    )
    return Findings(numbers, kl_per_dimension, activity, mixture)


def mean_terms(vae: VAE, measured: Measured, samples: int) -> Means:
    """ELBO, its terms, IWAE above it and bits/dim, each mean with its error."""
    means: dict[str, float] = {}
    for name in (*ElboTerms.COMPONENTS, "iwae", "iwae_gap", "mean_log_weight"):
        means[name], means[f"{name}_error"] = mean_and_error(measured.column(name))
    bits = -means["elbo"] / (math.prod(vae.image_shape) * math.log(2))
    effective = measured.column("effective_samples")
    finite = effective[np.isfinite(effective)]
    return Means(
        **means,
        importance_samples=samples,
        effective_samples=float(finite.mean()) if len(finite) else math.nan,
        effective_samples_lowest=float(finite.min()) if len(finite) else math.nan,
        bits_per_dim=None if vae.likelihood.is_binary else bits,
    )


def _gap(
    vae: VAE, measured: Measured, first: Tensor, options: FindingOptions
) -> tuple[PosteriorGap, Bracket | None]:
    """The best bound that was computed; and log p(x) from both sides, on images of the model."""
    weights = WeightRows(
        measured.column("mean_log_weight"),
        measured.column("iwae_gap"),
        measured.column("effective_samples"),
        options.importance_samples,
    )
    drawn = affordable(vae, options.bound_images)
    count = min(drawn, len(first))
    if count == 0:
        return importance_gap(weights), None
    slots = measured.positions[:count].tolist()
    without = options.without_bounds
    found = bound_gap(
        vae, first[:count], slots, weights.first(count), options.seed, without=without
    )
    return found, bracket_evidence(vae, drawn, options.seed, without)


def mean_and_error(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The mean and one standard error of it (NaN values left out); error infinite below two."""
    kept = values[np.isfinite(values)]
    if len(kept) == 0:
        return math.nan, math.inf
    error = float(kept.std(ddof=1)) / math.sqrt(len(kept)) if len(kept) > 1 else math.inf
    return math.fsum(kept) / len(kept), error


def fit_latents(
    prior: Prior, means: Tensor, log_variances: Tensor, seed: int
) -> tuple[Mixture | None, MixtureGain | None]:
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
    of_mixture = mixture.log_prob(held_out)
    of_prior = prior.log_prob(prior.latent.unflattened(held_out))
    gain, error = mean_and_error((of_mixture - of_prior).numpy())
    means_of = float(of_mixture.mean()), float(of_prior.mean())
    return mixture, MixtureGain(len(mixture.log_weights), *means_of, gain, error)


def _quadrature(vae: VAE, first: Tensor, seed: int) -> ExactEvidence | None:
    """The exact log p(x) and KLs of the first images, where z has one or two dimensions."""
    if vae.latent.dimensions > 2:
        return None
    images = first[:_INTEGRATED]
    noise = draw_noise(vae, seed, 0, range(len(images)))
    exact = integrate(vae, images, noise)
    return ExactEvidence(
        images=len(images),
        log_evidence=float(exact.log_evidence.mean()),
        elbo=float((exact.log_evidence - exact.kl_q_posterior).mean()),
        kl_q_posterior=float(exact.kl_q_posterior.mean()),
        kl_posterior_q=float(exact.kl_posterior_q.mean()),
        error=exact.error,
    )


def _reconstruction(measured: Measured) -> Reconstruction:
    names = ("psnr_mean", "psnr_sample", "ssim_mean", "ssim_sample", "ms_ssim_mean")
    scores = {name: mean_and_error(measured.column(name))[0] for name in names}
    return Reconstruction(**scores, protocol=PROTOCOL)


def _codes(vae: VAE, first: Tensor, seed: int) -> Codes | None:
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
    return Codes(len(first), float(torch.cat(own).mean()), float(torch.cat(other).mean()))


def surgery(
    vae: VAE,
    means: Tensor,
    log_variances: Tensor,
    seed: int,
    of: Literal["hold-out", "training"],
) -> Surgery | None:
    """The KL's split over posteriors `[N, D]` of the images that `of` names; None for fewer than
    two, or of full covariance.
    """
    if vae.model_config.posterior == "full" or len(means) < 2:
        return None
    noise = draw_noise(vae, seed, -3, range(len(means))).posterior.flatten(1)
    return replace(split_kl(means, log_variances, noise[None]), of=of)


def _neighbours(means: Tensor, labels: Sequence[str | None] | None) -> NeighbourAgreement | None:
    """Of the images that have a label: to have none is not to have the same."""
    known = [(row, label) for row, label in enumerate(labels or ()) if label is not None]
    return label_agreement(means[[row for row, _ in known]], [label for _, label in known])


def _interpolation(vae: VAE, means: Tensor) -> PathLengths | None:
    pairs = min(_PAIRS, len(means) // 2)
    if pairs == 0:
        return None
    latents = vae.latent.unflattened(means[: 2 * pairs])
    return path_lengths(vae, latents[:pairs], latents[pairs:])


@dataclass(frozen=True)
class _Pictures:
    """Real images as the model sees them, rebuilt at the mean of q, and draws of the prior with the
    real image nearest to each by squared error: float `[N, C, H, W]` in [0, 1].
    """

    real: Tensor
    rebuilt: Tensor
    samples: Tensor
    nearest: Tensor


def _pictures(vae: VAE, first: Tensor, seed: int) -> _Pictures:
    noise = draw_noise(vae, seed, -4, range(_GENERATED))
    drawn = vae.prior.sample(noise.posterior)
    with torch.no_grad():
        samples = torch.cat([vae.decode(part) for part in torch.split(drawn, 50)]).float()
        seen = seen_images(vae, first, draw_noise(vae, seed, 0, range(len(first))))
        parts = [vae.decode(vae.encode(part).mean) for part in torch.split(seen, 50)]
    real = seen.float() / 255
    distances = torch.cdist(samples.flatten(1), real.flatten(1))
    return _Pictures(real, torch.cat(parts).float(), samples, real[distances.argmin(dim=1)])


def _generation(found: _Pictures) -> Generation:
    """A low nearest says that samples look like no image; a value near the reconstructions' would
    say that they copy one.
    """
    similarity = ssim(found.samples, found.nearest)
    return Generation(
        samples=len(found.samples),
        compared_with=len(found.real),
        psnr_nearest=float(psnr(found.samples, found.nearest).mean()),
        ssim_nearest=None if similarity is None else float(similarity.mean()),
    )


def _pixel_distances(found: _Pictures) -> SetDistances | None:
    """Over the pixels' principal components; None for two images, which are no set."""
    if len(found.real) < 3:
        return None
    features = pixel_components(found.real)
    sets = (features_of(each, features) for each in (found.real, found.rebuilt, found.samples))
    return set_distances(FeatureSets(features.name, *sets))


def distances_over(
    vae: VAE, batches: "Iterable[Batch]", features: NamedFeatures, seed: int, batch_size: int
) -> SetDistances | None:
    """Over a user's features: all images of the batches (of a `Loader` that does not shuffle), as
    many reconstructions and as many samples. None for two images, which are no set.
    """
    real, rebuilt, samples = [], [], []
    with torch.no_grad(), evaluating(vae):
        for batch in batches:
            positions = positions_of(batch, batch_size)
            places = [positions[row] for row in batch.valid.nonzero().flatten().tolist()]
            if not places:
                continue
            images = batch.images[batch.valid]
            seen = seen_images(vae, images, draw_noise(vae, seed, 0, places))
            drawn = vae.prior.sample(draw_noise(vae, seed, -4, places).posterior)
            real.append(features_of(seen.float() / 255, features))
            rebuilt.append(features_of(vae.decode(vae.encode(seen).mean).float(), features))
            samples.append(features_of(vae.decode(drawn).float(), features))
    if sum(map(len, real)) < 3:
        return None
    return set_distances(
        FeatureSets(features.name, torch.cat(real), torch.cat(rebuilt), torch.cat(samples))
    )


def _perceptual(found: _Pictures, perception: Perception | None) -> Perceptual | None:
    if perception is None:
        return None
    rebuilt = perception.distance(found.rebuilt, found.real).numpy()
    samples = perception.distance(found.samples, found.nearest).numpy()
    (near, near_error), (far, far_error) = mean_and_error(rebuilt), mean_and_error(samples)
    return Perceptual(
        weights=perception.weights,
        protocol=LPIPS_PROTOCOL,
        images=len(rebuilt),
        samples=len(samples),
        reconstruction=near,
        reconstruction_error=near_error,
        generation=far,
        generation_error=far_error,
    )
