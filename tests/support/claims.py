"""For each check of `jobs.explain`, its claim computed by other means than the package's own.

A check gets the figures of its sentence and the sentence itself. Models have two latent
dimensions, so that every integral over z is a sum over a grid.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.spatial
import scipy.stats
import torch
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from torch.distributions import Normal, kl_divergence

from pipeline.evaluation.numbers import Numbers
from pipeline.explanation.sentences import Check
from pipeline.vae import VAE, draw_noise
from tests.support.digit_models import sigma_of

Figures = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class World:
    """A model, its held-out images (uint8 `[N, C, H, W]`) in order, their labels, and its report.

    training: images of the training set. objective: what was asked of training, as its config says.
    """

    vae: VAE
    images: torch.Tensor
    labels: list[str]
    numbers: Numbers
    training: torch.Tensor
    objective: dict[str, Any]

    @cached_property
    def q(self) -> Normal:
        return posterior(self.vae, self.images)

    @cached_property
    def terms(self) -> dict[str, float]:
        """Likelihood and KL by torch.distributions, from the noise that position i has."""
        return mean_terms(self.vae, self.images)

    @functools.cache  # noqa: B019
    def log_evidence(self, count: int) -> torch.Tensor:
        """log p(x) of the first images."""
        return self.evidence_of(targets(self.vae, self.images[:count]))

    def evidence_of(self, target: torch.Tensor) -> torch.Tensor:
        """log p of targets, whose images are the first of this world's.

        Importance sampling of 9,000 draws; the proposal is a mixture of q widened twice and four
        times and of the prior, which no tail escapes.
        """
        values = []
        generator = torch.Generator().manual_seed(7)
        for place in range(len(target)):
            mean, scale = self.q.mean[place], self.q.stddev[place]
            parts = [Normal(mean, 2 * scale), Normal(mean, 4 * scale)]
            parts.append(Normal(torch.zeros_like(mean), torch.ones_like(mean)))
            each = 3_000
            noise = torch.randn(3, each, mean.numel(), generator=generator, dtype=mean.dtype)
            draws = [p.mean + p.stddev * noise[i] for i, p in enumerate(parts)]
            z = torch.cat(draws)
            joint = log_likelihood(self.vae, z, target[place])
            joint = joint + Normal(0.0, 1.0).log_prob(z).sum(1)
            proposal = torch.stack([p.log_prob(z).sum(1) for p in parts]).logsumexp(0)
            values.append((joint - proposal + math.log(3)).logsumexp(0) - math.log(len(z)))
        return torch.stack(values)


def posterior(vae: VAE, images: torch.Tensor) -> Normal:
    with torch.no_grad():
        found = vae.encode(images)
    mean = found.mean.flatten(1).double()
    return Normal(mean, (0.5 * found.log_variance.flatten(1).double()).exp())


def targets(vae: VAE, images: torch.Tensor) -> torch.Tensor:
    noise = draw_noise(vae, 0, 0, range(len(images)))
    return vae.likelihood.target(images, noise.pixels)


def log_likelihood(vae: VAE, z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Of one target under many latents `[M, D]`, or of as many targets: `[M]`."""
    sigma = sigma_of(vae).detach().item()
    values = []
    with torch.no_grad():
        for part, wanted in zip(
            z.split(4000), target.expand(len(z), *target.shape[-3:]).split(4000), strict=True
        ):
            location = vae.decode_parameters(part.float().view(-1, *vae.latent_shape)).double()
            place = 0.5 + location * 255 / 512
            density = Normal(place, sigma).log_prob(wanted.double()) - math.log(256)
            values.append(density.flatten(1).sum(1))
    return torch.cat(values)


def mean_terms(vae: VAE, images: torch.Tensor) -> dict[str, float]:
    q = posterior(vae, images)
    noise = draw_noise(vae, 0, 0, range(len(images)))
    z = q.mean + q.stddev * noise.posterior.flatten(1).double()
    target = targets(vae, images)
    prior = Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))
    likelihood = log_likelihood(vae, z, target)
    kl = kl_divergence(q, prior)
    elbo = likelihood - kl.sum(1)
    return {
        "elbo": float(elbo.mean()),
        "elbo_error": float(scipy.stats.sem(elbo.numpy())),
        "log_likelihood": float(likelihood.mean()),
        "kl": float(kl.sum(1).mean()),
        "entropy_q": float(q.entropy().sum(1).mean()),
        "at_mean": float(log_likelihood(vae, q.mean, target).mean()),
    }


def averaged_elbo(w: World, count: int) -> float:
    """The mean ELBO of the first images over 200 draws of each, which leave it hardly any noise."""
    target = targets(w.vae, w.images[:count])
    generator = torch.Generator().manual_seed(17)
    values = []
    for place in range(count):
        mean, scale = w.q.mean[place], w.q.stddev[place]
        noise = torch.randn(200, mean.numel(), generator=generator, dtype=mean.dtype)
        kl = kl_divergence(Normal(mean, scale), Normal(0 * mean, 1 + 0 * scale)).sum()
        values.append(log_likelihood(w.vae, mean + scale * noise, target[place]).mean() - kl)
    return float(torch.stack(values).mean())


def near(value: float, other: float, within: float = 1e-4) -> None:
    assert math.isclose(value, other, rel_tol=within, abs_tol=within), (value, other)


def training_against_holdout(w: World, f: Figures, text: str) -> None:
    known = mean_terms(w.vae, w.training)
    near(f["training"], known["elbo"])
    near(f["holdout"], w.terms["elbo"])
    error = math.hypot(known["elbo_error"], w.terms["elbo_error"])
    difference = known["elbo"] - w.terms["elbo"]
    near(f["error"], error, 1e-3)
    assert ("by heart" in text) == (abs(difference) <= 2 * error)
    assert ("trained on better" in text) == (difference > 2 * error)


def evidence_and_gap(w: World, f: Figures, text: str) -> None:
    count = int(f["images"])
    exact = w.log_evidence(count)
    assert abs(f["elbo"] - averaged_elbo(w, count)) < 0.5
    near(f["evidence"] - f["elbo"], f["posterior_gap"])
    # Both are random: half a nat, and 0.1% of the KL.
    truth = float(exact.mean())
    assert f["evidence"] <= truth + 0.5 + 1e-3 * abs(w.terms["kl"]), (f["evidence"], truth)
    assert ">=" in text


def exact_evidence(w: World, f: Figures, text: str) -> None:
    near(f["log_evidence"], float(w.log_evidence(int(f["images"])).mean()), 2e-3)
    near(f["log_evidence"], f["elbo"] + f["kl_q_posterior"], 1e-6)
    assert f["kl_q_posterior"] >= 0


def gap_on_drawn_images(w: World, f: Figures, text: str) -> None:
    """A fresh sample of model images, by the importance sampler above."""
    generator = torch.Generator().manual_seed(11)
    z = torch.randn(16, *w.vae.latent_shape, generator=generator)
    with torch.no_grad():
        place = 0.5 + w.vae.decode_parameters(z) * 255 / 512
    # The density's own draws: an image of levels would have been cut to black and white.
    target = place + sigma_of(w.vae).detach() * torch.randn(place.shape, generator=generator)
    images = (target * 256).floor().clamp(0, 255).to(torch.uint8)
    drawn = World(w.vae, images, [], w.numbers, w.training, w.objective)
    exact = drawn.evidence_of(target)
    spread = 4 * float(exact.std()) * math.sqrt(1 / len(images) + 1 / f["images"])
    assert f["lower"] - spread <= float(exact.mean()) <= f["upper"] + spread
    assert -0.05 <= f["gap_lower"] <= f["gap_upper"] + 0.05


def bound_images(w: World, f: Figures, text: str) -> None:
    assert w.numbers.gap.images == f["images"] < f["asked"] == w.numbers.bound_images


def gap_against_kl(w: World, f: Figures, text: str) -> None:
    near(f["kl"], w.terms["kl"])
    near(f["posterior_gap"], w.numbers.gap.evidence - w.numbers.gap.elbo)
    assert ("farther from the true posterior" in text) == (f["posterior_gap"] > f["kl"])


def gap_split(w: World, f: Figures, text: str) -> None:
    near(f["amortisation"] + f["remaining"], f["posterior_gap"])
    count = int(f["images"])
    evidence = float(w.log_evidence(count).mean())
    gap = evidence - averaged_elbo(w, count)
    # The encoder's q is as far as that from the truth, and no other q wins more than all of it.
    assert f["amortisation"] <= gap + 1 + 0.02 * abs(gap)


def elbo_terms(w: World, f: Figures, text: str) -> None:
    for name in ("elbo", "log_likelihood", "kl"):
        if name in f:
            near(f[name], w.terms[name])
    if "distortion" in f:
        near(f["distortion"], -w.terms["log_likelihood"])


def kl_terms(w: World, f: Figures, text: str) -> None:
    near(f["kl"], w.terms["kl"])
    near(f["entropy_q"], w.terms["entropy_q"], 1e-3)
    near(f["cross_entropy_q_prior"], w.terms["kl"] + w.terms["entropy_q"], 1e-3)


def kl_per_dimension(w: World, f: Figures, text: str) -> None:
    logvar, mu = 2 * w.q.stddev.log(), w.q.mean
    line = 0.5 * (1 + logvar - mu**2 - logvar.exp())
    near(f["largest"], float(-line.mean(0).min()), 1e-3)
    near(w.numbers.kl, float(-line.sum(1).mean()), 1e-3)
    active(w, f, text)


def at_mean(w: World, f: Figures, text: str) -> None:
    near(f["log_likelihood_at_mean"], w.terms["at_mean"])
    near(f["lift"], w.terms["at_mean"] - w.terms["log_likelihood"], 2e-2)


def objective(w: World, f: Figures, text: str) -> None:
    assert w.objective["kind"] == "beta"
    assert f["beta"] == w.objective["beta"]
    near(f["objective"], w.terms["log_likelihood"] - w.objective["beta"] * w.terms["kl"])


def draws(w: World, f: Figures, text: str) -> None:
    if "elbo_error" in f:
        near(f["elbo_error"], w.terms["elbo_error"], 1e-3)
        assert abs(f["difference"]) < 5 * f["elbo_error"] + 0.1
    else:
        assert 1 <= f["effective_samples"] <= f["samples"] == w.numbers.importance_samples


def jumps(w: World, f: Figures, text: str) -> None:
    """The derivative along the walk: a small step's length follows from it, so no jump is there."""
    pairs = int(f["pairs"])
    starts, goals = w.q.mean[:pairs], w.q.mean[pairs : 2 * pairs]
    with torch.no_grad():
        shares = torch.linspace(0, 1, 33, dtype=torch.float64)[None, :, None]
        z = starts[:, None] + shares * (goals - starts)[:, None]
        images = w.vae.decode(z.flatten(0, 1).float().view(-1, *w.vae.latent_shape))
    walks = images.double().view(pairs, 33, -1).numpy()
    steps = np.sqrt(((walks[:, 1:] - walks[:, :-1]) ** 2).mean(-1))
    near(f["length"], float(steps.sum(1).mean()), 1e-2)
    near(f["jump"], float(steps.max(1).mean()), 1e-2)
    direct = np.sqrt(((walks[:, -1] - walks[:, 0]) ** 2).mean(-1)).mean()
    near(f["direct"], float(direct), 1e-2)


def coverage(w: World, f: Figures, text: str) -> None:
    """scikit-learn's mixture of other draws: whether it too beats the prior on unseen codes."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(w.q.mean.shape, generator=generator, dtype=torch.float64)
    codes = (w.q.mean + w.q.stddev * noise).numpy()
    fitted = GaussianMixture(10, reg_covar=1e-6, random_state=0).fit(codes[::2])
    prior = scipy.stats.norm.logpdf(codes[1::2]).sum(1).mean()
    gain = fitted.score(codes[1::2]) - prior
    one = GaussianMixture(1, random_state=0).fit(codes[::2])
    single = one.score(codes[1::2]) - prior
    assert abs(max(gain, single) - f["gain"]) < 0.3 + 0.2 * abs(f["gain"])
    assert ("leave parts of the prior empty" in text) == (f["gain"] > 2 * f["error"])
    assert ("may be chance" in text) == (0 < f["gain"] <= 2 * f["error"])
    best = fitted if gain > single else one
    each = best.score_samples(codes[1::2]) - scipy.stats.norm.logpdf(codes[1::2]).sum(1)
    alone = scipy.stats.sem(each)
    assert 0.3 * alone < f["error"] < 3 * alone


def similar_codes(w: World, f: Figures, text: str) -> None:
    count, k = int(f["images"]), int(f["neighbours"])
    pixels = w.images[:count].numpy().reshape(count, -1) / 255
    apart = scipy.spatial.distance.cdist(pixels, pixels) / math.sqrt(pixels.shape[1])
    generator = torch.Generator().manual_seed(13)
    noise = torch.randn(w.q.mean[:count].shape, generator=generator, dtype=torch.float64)
    codes = w.q.mean[:count] + w.q.stddev[:count] * noise
    search = NearestNeighbors(n_neighbors=k + 1).fit(codes.numpy())
    near_by = search.kneighbors(return_distance=False)[:, :k]
    nearest = np.take_along_axis(apart, near_by, 1).mean()
    near(f["nearest"], float(nearest), 4e-2)
    near(f["any"], float(apart.sum() / count / (count - 1)), 1e-3)
    assert ("similar images have similar codes" in text) <= (f["nearest"] < f["any"])
    paired = apart.sum(1) / (count - 1) - np.take_along_axis(apart, near_by, 1).mean(1)
    error = float(scipy.stats.sem(paired))
    near(f["error"], error, 0.2)
    assert ("near codes say nothing" not in text) or 2 * error < 0.12 * f["any"]


def labels(w: World, f: Figures, text: str) -> None:
    """Leave-one-out votes by scikit-learn's neighbours; ties may fall otherwise."""
    search = NearestNeighbors(n_neighbors=int(f["neighbours"])).fit(w.q.mean.numpy())
    names = np.array(w.labels)
    near_by = search.kneighbors(return_distance=False)

    def agreement(names: npt.NDArray[np.str_]) -> float:
        votes = [max(sorted(set(row)), key=list(row).count) for row in names[near_by]]
        return float((np.array(votes) == names).mean())

    found = agreement(names)
    assert abs(found - f["agreement"]) < 0.03
    random = np.random.default_rng(4)
    shuffled = np.array([agreement(random.permutation(names)) for _ in range(200)])
    near(f["shuffled"], float(shuffled.mean()), 0.2)
    p = float((shuffled >= found).mean())
    assert ("labels group, though" in text) == (p < 0.01) or p < 0.05
    # "Do not" needs that a tenth of the images more would have shown.
    told = np.quantile(shuffled, 0.99) < shuffled.mean() + 0.1
    assert ("labels do not group" not in text) or told


def information(w: World, f: Figures, text: str) -> None:
    """The mixture of all posteriors, image by image, in plain numpy."""
    of = w.training if "training set" in text else w.images
    q = posterior(w.vae, of)
    assert f["images"] == len(of)
    generator = torch.Generator().manual_seed(5)
    z = q.mean + q.stddev * torch.randn(q.mean.shape, generator=generator, dtype=torch.float64)
    each = Normal(q.mean[None], q.stddev[None]).log_prob(z[:, None]).sum(-1).numpy()
    own = np.diagonal(each)
    mixture = scipy.special.logsumexp(each, axis=1) - math.log(len(of))
    shown = float((own - mixture).mean())
    assert abs(f["mutual_information"] - shown) < 4 * float(scipy.stats.sem(own - mixture)) + 0.02
    near(f["mutual_information"] + f["marginal_kl"], f["kl"])
    near(f["cap"], math.log(len(of)))
    assert ("stands at its cap" in text) == (f["mutual_information"] > 0.95 * f["cap"])


def active(w: World, f: Figures, text: str) -> None:
    assert f["active_units"] == int((w.q.mean.var(dim=0, correction=0) > 0.01).sum())
    assert f["latent_dimensions"] == math.prod(w.vae.latent_shape)


def samples(w: World, f: Figures, text: str) -> None:
    if "generation" in f:
        enough = min(f["images"], f["samples"]) >= 5 * min(16, f["images"] - 1)
        assert ("too few to compare" in text) == (not enough)
        assert ("no worse" in text) == (enough and f["generation"] <= f["reconstruction"])
        assert ("are worse" in text) == (enough and f["generation"] > f["reconstruction"])
        assert f["images"] == f["images"] <= len(w.images)
    else:
        assert f["psnr_mean"] == w.numbers.reconstruction.psnr_mean
        generator = torch.Generator().manual_seed(9)
        z = torch.randn(200, *w.vae.latent_shape, generator=generator)
        with torch.no_grad():
            drawn = w.vae.decode(z).flatten(1).numpy()
        real = w.images[: int(f["compared_with"])].flatten(1).numpy() / 255
        squares = scipy.spatial.distance.cdist(drawn, real, "sqeuclidean").min(1) / real.shape[1]
        assert abs(f["psnr_nearest"] - float(-10 * np.log10(squares).mean())) < 1.0


def bits(w: World, f: Figures, text: str) -> None:
    near(f["bits_per_dim"], -w.terms["elbo"] / w.images[0].numel() / math.log(2))


def reconstruction(w: World, f: Figures, text: str) -> None:
    with torch.no_grad():
        rebuilt = w.vae.decode(w.q.mean.float().view(-1, *w.vae.latent_shape)).numpy()
    squares = ((rebuilt - w.images.numpy() / 255) ** 2).reshape(len(rebuilt), -1).mean(1)
    near(f["psnr_mean"], float(-10 * np.log10(squares).mean()), 1e-3)


CLAIMS: dict[Check, Callable[[World, Figures, str], None]] = {
    Check.TRAINING_AGAINST_HOLDOUT: training_against_holdout,
    Check.EVIDENCE_AND_GAP: evidence_and_gap,
    Check.EXACT_EVIDENCE: exact_evidence,
    Check.GAP_ON_DRAWN_IMAGES: gap_on_drawn_images,
    Check.BOUND_IMAGES: bound_images,
    Check.GAP_AGAINST_KL: gap_against_kl,
    Check.GAP_SPLIT: gap_split,
    Check.ELBO_TERMS: elbo_terms,
    Check.KL_TERMS: kl_terms,
    Check.KL_PER_DIMENSION: kl_per_dimension,
    Check.AT_MEAN: at_mean,
    Check.OBJECTIVE: objective,
    Check.DRAWS: draws,
    Check.JUMPS: jumps,
    Check.COVERAGE: coverage,
    Check.SIMILAR_CODES: similar_codes,
    Check.LABELS: labels,
    Check.INFORMATION: information,
    Check.ACTIVE: active,
    Check.SAMPLES: samples,
    Check.BITS: bits,
    Check.RECONSTRUCTION: reconstruction,
}
