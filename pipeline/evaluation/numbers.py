"""Every number of an evaluation, as records; `evaluation.json` holds them under these names.

docs/numbers.md says what each is, in which unit, and which of them are bounds.
"""

from dataclasses import asdict, dataclass

from pipeline.evaluation.distances import SetDistances
from pipeline.evaluation.evidence import Bracket, PosteriorGap
from pipeline.evaluation.kl_split import Surgery
from pipeline.evaluation.neighbours import ImageSimilarity, NeighbourAgreement
from pipeline.evaluation.walks import PathLengths
from pipeline.json_value import Json
from pipeline.runs.json_numbers import plain_json


@dataclass(frozen=True)
class Means:
    """Means over images in nats, each with one standard error, infinite for a single image.

    The ELBO's terms are by one draw of z; `iwae`, `iwae_gap`, `mean_log_weight` and
    `effective_samples` by `importance_samples` of them. `bits_per_dim`: None for binarised images.
    """

    elbo: float
    elbo_error: float
    log_likelihood: float
    log_likelihood_error: float
    kl: float
    kl_error: float
    entropy_q: float
    entropy_q_error: float
    cross_entropy_q_prior: float
    cross_entropy_q_prior_error: float
    log_likelihood_at_mean: float
    log_likelihood_at_mean_error: float
    iwae: float
    iwae_error: float
    iwae_gap: float
    iwae_gap_error: float
    mean_log_weight: float
    mean_log_weight_error: float
    importance_samples: int
    effective_samples: float
    effective_samples_lowest: float
    bits_per_dim: float | None

    @property
    def rate(self) -> float:
        """The KL to the prior."""
        return self.kl

    @property
    def distortion(self) -> float:
        """-E_q log p(x|z)."""
        return -self.log_likelihood


@dataclass(frozen=True)
class Reconstruction:
    """Over all images; PSNR in dB. NaN: the images are too small for it."""

    psnr_mean: float
    psnr_sample: float
    ssim_mean: float
    ssim_sample: float
    ms_ssim_mean: float
    protocol: str


@dataclass(frozen=True)
class Generation:
    """`samples` draws of the prior, each against the nearest of `compared_with` real images."""

    samples: int
    compared_with: int
    psnr_nearest: float
    ssim_nearest: float | None


@dataclass(frozen=True)
class Perceptual:
    """LPIPS, means with one standard error over images: of `images` to their reconstructions, and
    of `samples` of the prior to the nearest real image by squared error.
    """

    weights: str
    protocol: str
    images: int
    samples: int
    reconstruction: float
    reconstruction_error: float
    generation: float
    generation_error: float


@dataclass(frozen=True)
class Codes:
    """PSNR in dB of `images` from their own code, and from another image's."""

    images: int
    psnr_own: float
    psnr_other: float


@dataclass(frozen=True)
class ExactEvidence:
    """Means over the first `images`, by quadrature; `error`: what halving the grid changes."""

    images: int
    log_evidence: float
    elbo: float
    kl_q_posterior: float
    kl_posterior_q: float
    error: float


@dataclass(frozen=True)
class MixtureGain:
    """Mean log density of unseen codes, in nats; `gain`: the mixture's above the prior's, and one
    standard error of it over these codes.
    """

    components: int
    log_density: float
    prior_log_density: float
    gain: float
    error: float


@dataclass(frozen=True)
class TrainingMeans:
    """The ELBO on `images` of the training set, to be set against the hold-out's."""

    images: int
    elbo: float
    elbo_error: float


@dataclass(frozen=True)
class Numbers(Means):
    """All numbers of one model on one set of images; None where one does not exist."""

    images: int
    not_finite: int
    likelihood: str
    pixels: int
    step: int | None
    active_units: int
    latent_dimensions: int
    kl_largest_dimension: float
    bound_images: int
    gap: PosteriorGap
    bracket: Bracket | None
    reconstruction: Reconstruction
    generation: Generation
    distances: SetDistances | None
    lpips: Perceptual | None
    codes: Codes | None
    quadrature: ExactEvidence | None
    surgery: Surgery | None
    neighbours: NeighbourAgreement | None
    similarity: ImageSimilarity | None
    mixture: MixtureGain | None
    interpolation: PathLengths | None
    training: TrainingMeans | None = None

    @property
    def posterior_gap(self) -> float:
        """KL(q(z|x) || p(z|x)) >= this."""
        return self.gap.nats

    def to_json(self) -> Json:
        """What is not finite is null."""
        told = asdict(self)
        told["gap"] |= {"how": self.gap.how, "evidence": self.gap.evidence}
        names = ("posterior_gap", "rate", "distortion")
        return dict(plain_json(told | {name: getattr(self, name) for name in names}))
