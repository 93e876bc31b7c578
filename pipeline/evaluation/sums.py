"""Held-out numbers as sums that any number of workers can share: each image counts exactly once.

Image i of the hold-out (in manifest order) gets its noise from (seed, 0, i), so that no number
depends on batch size or world size beyond the last bits of float32 arithmetic.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.evaluation.kl_split import ACTIVE_VARIANCE
from pipeline.vae import VAE, ElboTerms, Noise, draw_noise, importance_estimate

if TYPE_CHECKING:
    from pipeline.data import Batch

QUANTITIES = (*ElboTerms.COMPONENTS, "iwae_gap")
"""What is averaged over images, in nats: the ELBO and its terms (one draw of z per image) over all
of them; IWAE_K less the ELBO by the same K draws, never negative and never above the posterior gap
in expectation, over the images it was asked for."""


_PAIRED_IMAGES = 1024
"""First images whose ELBO is kept one by one: two looks at a hold-out are compared in pairs."""


@dataclass(frozen=True)
class Importance:
    """Which images get the bound IWAE_K with K = `samples`: those below position `images`."""

    samples: int
    images: int


@dataclass(frozen=True)
class EvaluationSums:
    """Sums over images in float64; parts add up to the whole with `+` or, as tensors, all-reduced.

    table: `[3, 7]`: counts, sums and sums of squares of `QUANTITIES`. dimensions: `[3, D]`, sums of
    each latent dimension's KL, posterior mean and squared posterior mean. elbos: `[1024]`, the ELBO
    of each of the first images, 0 where there is none. pixels: C x H x W.
    """

    table: Tensor
    dimensions: Tensor
    elbos: Tensor
    pixels: int
    has_bits: bool

    @staticmethod
    def empty(vae: VAE) -> "EvaluationSums":
        """No image yet."""
        return EvaluationSums(
            table=torch.zeros(3, len(QUANTITIES), dtype=torch.float64),
            dimensions=torch.zeros(3, vae.latent.dimensions, dtype=torch.float64),
            elbos=torch.zeros(_PAIRED_IMAGES, dtype=torch.float64),
            pixels=math.prod(vae.image_shape),
            # Bernoulli scores the binarised image, so its bits are not bits of the uint8 image.
            has_bits=not vae.likelihood.is_binary,
        )

    def __add__(self, other: "EvaluationSums") -> "EvaluationSums":
        """The sums over both parts' images."""
        return self.with_values(self.to_tensor() + other.to_tensor())

    def to_tensor(self) -> Tensor:
        """All sums as one float64 vector `[21 + 3 D + 1024]`, for an all-reduce."""
        return torch.cat([self.table.flatten(), self.dimensions.flatten(), self.elbos])

    def with_values(self, values: Tensor) -> "EvaluationSums":
        """These sums' model with what `to_tensor` gave, summed over workers."""
        sizes = [self.table.numel(), self.dimensions.numel(), len(self.elbos)]
        table, dimensions, elbos = torch.split(values.cpu(), sizes)
        return EvaluationSums(
            table.view_as(self.table),
            dimensions.view_as(self.dimensions),
            elbos,
            self.pixels,
            self.has_bits,
        )

    @property
    def images(self) -> int:
        """Images counted."""
        return round(float(self.table[0, 0]))

    def means(self) -> dict[str, float | None]:
        """Nats per image of what was measured, and `bits_per_dim` where it is true, else None.

        `iwae`: the ELBO raised by `iwae_gap`, so that it never lies below the ELBO beside it; the
        mean of IWAE_K in expectation, as no image is chosen by what it shows.
        """
        means: dict[str, float | None] = {
            name: float(self.table[1, column] / self.table[0, column])
            for column, name in enumerate(QUANTITIES)
            if self.table[0, column] > 0
        }
        elbo = means.get("elbo")
        if elbo is not None and (gap := means.get("iwae_gap")) is not None:
            means["iwae"] = elbo + gap
        has_bits = self.has_bits and elbo is not None
        means["bits_per_dim"] = -elbo / (self.pixels * math.log(2)) if has_bits and elbo else None
        return means

    def errors(self) -> dict[str, float]:
        """One standard error over images of each mean, in nats; infinite for a single image."""
        errors = {}
        for column, name in enumerate(QUANTITIES):
            count, total, squares = self.table[:, column].tolist()
            if count > 0:
                spread = max(0.0, squares / count - (total / count) ** 2)
                errors[name] = math.sqrt(spread / (count - 1)) if count > 1 else math.inf
        return errors

    def kl_per_dimension(self) -> Tensor:
        """Mean KL of each latent dimension: `[D]` nats, float64; sums to `kl`."""
        return self.dimensions[0] / max(1, self.images)

    def activity(self) -> Tensor:
        """Variance over images of each dimension's posterior mean: `[D]`, float64."""
        mean = self.dimensions[1] / max(1, self.images)
        return (self.dimensions[2] / max(1, self.images) - mean.square()).clamp(min=0)

    def active_units(self) -> int:
        """Dimensions with an activity above 0.01 (Burda et al. 2016)."""
        return int((self.activity() > ACTIVE_VARIANCE).sum())


def evaluate_elbo(
    vae: VAE,
    batches: "Iterable[Batch]",
    seed: int,
    global_batch_size: int,
    device: torch.device | str = "cpu",
    importance: Importance | None = None,
) -> EvaluationSums:
    """The exact sums over the valid images of this worker's `batches`, one draw of z per image.

    The batches come from a `Loader` with `shuffle=False` and the given `global_batch_size`; all
    workers' sums together count each image of one epoch once. `importance` None: no `iwae_gap`
    and no `iwae`.
    """
    empty = EvaluationSums.empty(vae)
    table, dimensions = empty.table.clone(), empty.dimensions.clone()
    elbos = empty.elbos.clone()
    components = len(ElboTerms.COMPONENTS)
    with torch.no_grad(), evaluating(vae):
        for batch in batches:
            positions = positions_of(batch, global_batch_size)
            noise = draw_noise(vae, seed, 0, positions, device)
            images, valid = batch.images.to(device), batch.valid
            terms = vae(images, noise, at_mean=True)
            values = torch.stack([getattr(terms, name) for name in ElboTerms.COMPONENTS])
            table[:, :components] += _moments(values.double().cpu()[:, valid])
            numbers = torch.tensor(positions)
            paired = valid & (numbers < len(elbos))
            elbos[numbers[paired]] = terms.elbo.double().cpu()[paired]
            means = vae.encode(seen_images(vae, images, noise)).mean.double().flatten(1)
            rows = [terms.kl_per_dimension.double(), means, means.square()]
            dimensions += torch.stack([row.cpu()[valid].sum(dim=0) for row in rows])
            if importance is not None:
                asked = valid & (numbers < importance.images)
                places = [positions[index] for index in asked.nonzero().flatten().tolist()]
                if places:
                    chosen = images[asked.to(images.device)]
                    bound = importance_estimate(vae, chosen, importance.samples, seed, slots=places)
                    gaps = (bound.bound - bound.mean_log_weight)[None]
                    table[:, components:] += _moments(gaps.cpu())
    return EvaluationSums(table, dimensions, elbos, empty.pixels, empty.has_bits)


def positions_of(batch: "Batch", global_batch_size: int) -> range:
    """The places in the hold-out of a batch's slots, when it is read in manifest order."""
    first = batch.index * global_batch_size
    return range(first + batch.slots.start, first + batch.slots.stop)


def seen_images(vae: VAE, images: Tensor, noise: Noise) -> Tensor:
    """The uint8 images that the encoder sees in an ELBO: under Bernoulli the binarised ones."""
    if not vae.likelihood.is_binary:
        return images
    return (vae.likelihood.target(images, noise.pixels) * 255).to(torch.uint8)


@contextmanager
def evaluating(vae: VAE) -> Iterator[None]:
    """The model in evaluation mode, and afterwards in the mode it was in."""
    training = vae.training
    vae.eval()
    try:
        yield
    finally:
        vae.train(training)


def _moments(values: Tensor) -> Tensor:
    """Counts, sums and sums of squares of `[Q, B]`: `[3, Q]`."""
    counts = torch.full((len(values),), float(values.shape[1]), dtype=torch.float64)
    return torch.stack([counts, values.sum(dim=1), values.square().sum(dim=1)])
