"""Bounds on log p(x) from K importance samples (IWAE, Burda et al. 2015)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.vae.noise import Noise, draw_noise, slot_generator
from pipeline.vae.vae import VAE


@dataclass(frozen=True)
class ImportanceEstimate:
    """Of B images, float64 [B].

    `bound` is log (1/K) sum_k w_k in nats, `mean_log_weight` the mean of log w_k: the ELBO by the
    same draws, never above it (Jensen). `effective_samples` is (sum w)^2 / sum w^2 in [1, K].
    """

    bound: Tensor
    mean_log_weight: Tensor
    effective_samples: Tensor
    samples: int


@torch.no_grad()
def importance_estimate(
    vae: VAE,
    images: Tensor,
    samples: int,
    seed: int,
    *,
    slots: Sequence[int] | None = None,
    chunk: int = 64,
) -> ImportanceEstimate:
    """IWAE_K of uint8 images [B, C, H, W], with `samples` = K latents each.

    Latents are streamed, `chunk` per image at a time; neither `chunk` nor the batch changes what is
    drawn. All K score the same dequantised or binarised image, the one that `draw_noise(vae, seed,
    0, slots)` gives, so that bound - ELBO estimates a KL between posteriors and nothing else.
    """
    slots = range(len(images)) if slots is None else slots
    pixels = draw_noise(vae, seed, 0, slots, images.device).pixels
    streams = [slot_generator(seed, -1, slot) for slot in slots]
    totals = _WeightTotals.empty(len(images), images.device)
    for start in range(0, samples, chunk):
        count = min(chunk, samples - start)
        normal = np.empty((len(streams), count, *vae.latent_shape), np.float32)
        for row, stream in enumerate(streams):
            stream.standard_normal(out=normal[row], dtype=np.float32)
        noise = Noise(torch.from_numpy(normal).to(images.device), pixels)
        totals = totals.with_log_weights(vae(images, noise).log_weights)
    return totals.estimate(samples)


@dataclass(frozen=True)
class _WeightTotals:
    """Running sums over k of w and w^2, divided by e^m and e^2m with m the largest log w so far."""

    largest: Tensor
    first: Tensor
    second: Tensor
    log_sum: Tensor

    @staticmethod
    def empty(batch: int, device: torch.device) -> "_WeightTotals":
        zeros = torch.zeros(batch, dtype=torch.float64, device=device)
        return _WeightTotals(torch.full_like(zeros, -torch.inf), zeros, zeros, zeros)

    def with_log_weights(self, log_weights: Tensor) -> "_WeightTotals":
        """Adds log-weights [B, k]."""
        log_weights = log_weights.double()
        largest = torch.maximum(self.largest, log_weights.max(1).values)
        shrink = (self.largest - largest).exp()
        weights = (log_weights - largest[:, None]).exp()
        return _WeightTotals(
            largest,
            self.first * shrink + weights.sum(1),
            self.second * shrink.square() + weights.square().sum(1),
            self.log_sum + log_weights.sum(1),
        )

    def estimate(self, samples: int) -> ImportanceEstimate:
        return ImportanceEstimate(
            bound=self.largest + (self.first / samples).log(),
            mean_log_weight=self.log_sum / samples,
            effective_samples=self.first.square() / self.second,
            samples=samples,
        )
