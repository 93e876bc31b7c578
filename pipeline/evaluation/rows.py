"""One worker's part of an evaluation: a row of numbers per image, merged by the image's position.

Rows, not sums: medians, intervals and paired comparisons of two models need each image's number,
and sorting by position makes the whole the same whoever measured which part.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.evaluation.fidelity import multi_scale_ssim, psnr, ssim
from pipeline.evaluation.sums import evaluating, positions_of, seen_images
from pipeline.vae import VAE, ElboTerms, draw_noise, importance_estimate

if TYPE_CHECKING:
    from pipeline.data import Batch

COLUMNS = (
    *ElboTerms.COMPONENTS,
    "iwae",
    "iwae_gap",
    "mean_log_weight",
    "effective_samples",
    "psnr_mean",
    "psnr_sample",
    "ssim_mean",
    "ssim_sample",
    "ms_ssim_mean",
)
"""Per image: the ELBO's terms from one draw; `mean_log_weight`, the ELBO by K draws; `iwae_gap`,
IWAE_K less it, never negative; `iwae`, the ELBO raised by it, which is IWAE_K in expectation and
never below the ELBO; the effective number of the K draws; PSNR and SSIM of the image decoded at the
posterior's mean and at a draw (SSIM is NaN for images below 7 pixels, MS-SSIM below 161)."""

_ROWS = 1600
"""Latents decoded at once: 1,600 of 784 pixels stay in the cache (123 images/s of CPU time at
K = 1000, where 6,400 make 102)."""


@dataclass(frozen=True)
class MeasureOptions:
    """importance_samples: K of the bound. latents: how many first images keep their moments."""

    importance_samples: int
    seed: int
    global_batch_size: int
    latents: int


@dataclass(frozen=True)
class Measured:
    """Rows of n images in order of position, and the moments of the m first images.

    positions `[n]`; rows float64 `[n, len(COLUMNS)]`; means and log_variances float32 `[m, D]`;
    dimensions float64 `[3, D]`, sums as in `EvaluationSums`; labels of the m images (None: has
    none), or None.
    """

    positions: npt.NDArray[np.int64]
    rows: npt.NDArray[np.float64]
    dimensions: npt.NDArray[np.float64]
    means: npt.NDArray[np.float32]
    log_variances: npt.NDArray[np.float32]
    labels: list[str | None] | None

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """One number for each image, in order of position: `[n]`."""
        return self.rows[:, COLUMNS.index(name)]


def measure(
    vae: VAE,
    batches: "Iterable[Batch]",
    options: MeasureOptions,
    device: torch.device | str = "cpu",
) -> Measured:
    """Measures every valid image of this worker's batches (from a `Loader`, `shuffle=False`)."""
    with torch.no_grad(), evaluating(vae):
        parts = [
            _measure_batch(vae, batch, options, device)
            for batch in batches
            if bool(batch.valid.any())
        ]
    return merge(parts, vae.latent.dimensions)


def merge(parts: Sequence[Measured], latent_dimensions: int) -> Measured:
    """All parts' images in order of position; no position may be there twice."""
    empty = np.empty((0, latent_dimensions), np.float32)
    positions = np.concatenate([part.positions for part in parts] or [np.empty(0, np.int64)])
    order = np.argsort(positions, kind="stable")
    positions = positions[order]
    assert (np.diff(positions) > 0).all(), "an image was measured twice"
    rows = np.concatenate([part.rows for part in parts] or [np.empty((0, len(COLUMNS)))])[order]
    # Moments belong to each part's own first rows: find where they went.
    none = np.empty(0, np.bool_)
    owner = [np.arange(len(part.positions)) < len(part.means) for part in parts]
    kept = np.flatnonzero(np.concatenate(owner or [none]))
    place = np.argsort(np.argsort(order)[kept], kind="stable")
    means = np.concatenate([part.means for part in parts] or [empty])[place]
    log_variances = np.concatenate([part.log_variances for part in parts] or [empty])[place]
    labelled = bool(parts) and all(part.labels is not None for part in parts)
    labels = [label for part in parts for label in part.labels or []] if labelled else None
    return Measured(
        positions=positions,
        rows=rows,
        dimensions=sum((p.dimensions for p in parts), np.zeros((3, latent_dimensions))),
        means=means,
        log_variances=log_variances,
        labels=[labels[index] for index in place] if labels is not None else None,
    )


def _measure_batch(
    vae: VAE, batch: "Batch", options: MeasureOptions, device: torch.device | str
) -> Measured:
    places = positions_of(batch, options.global_batch_size)
    chosen = batch.valid.nonzero().flatten().tolist()
    positions = [places[index] for index in chosen]
    images = batch.images[batch.valid].to(device)
    noise = draw_noise(vae, options.seed, 0, positions, device)
    terms = vae(images, noise, at_mean=True)
    seen = seen_images(vae, images, noise)
    posterior = vae.encode(seen)
    bound = importance_estimate(
        vae,
        images,
        options.importance_samples,
        options.seed,
        slots=positions,
        chunk=max(4, _ROWS // len(positions)),
    )
    columns = [getattr(terms, name) for name in ElboTerms.COMPONENTS]
    gap = bound.bound - bound.mean_log_weight
    columns += [terms.elbo.double() + gap, gap, bound.mean_log_weight, bound.effective_samples]
    columns += _fidelity(seen / 255, vae.decode(posterior.mean), vae.decode(
        posterior.sample(noise.posterior)
    ))  # fmt: skip
    mean, log_variance = posterior.mean.flatten(1), posterior.log_variance.flatten(1)
    wide = mean.double()
    sums = [terms.kl_per_dimension.double(), wide, wide.square()]
    kept = sum(position < options.latents for position in positions)
    labels = batch.columns.get("label")
    return Measured(
        positions=np.asarray(positions, np.int64),
        rows=torch.stack([column.double().cpu() for column in columns], dim=1).numpy(),
        dimensions=torch.stack([row.sum(dim=0).cpu() for row in sums]).numpy(),
        means=mean[:kept].float().cpu().numpy(),
        log_variances=log_variance[:kept].float().cpu().numpy(),
        labels=None if labels is None else [_name(labels[index]) for index in chosen[:kept]],
    )


def _name(label: object) -> str | None:
    return None if label is None else str(label)


def _fidelity(originals: Tensor, at_mean: Tensor, at_sample: Tensor) -> list[Tensor]:
    missing = torch.full((len(originals),), torch.nan)
    scores = [
        ssim(at_mean, originals),
        ssim(at_sample, originals),
        multi_scale_ssim(at_mean, originals),
    ]
    return [
        psnr(at_mean, originals),
        psnr(at_sample, originals),
        *(missing if score is None else score for score in scores),
    ]
