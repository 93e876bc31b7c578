"""How far are reconstructions and samples, as sets, from real images: Fréchet and kernel distance.

Both compare features, so they mean what the features mean: those of a network that the user names,
or, without one, the principal components of the real images' pixels, which see layout and colour
and no texture. Values of different features, counts or sizes are never comparable.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config.import_path import OWN_CODE, find_named, told
from pipeline.errors import ConfigError, is_shortage


@dataclass(frozen=True)
class NamedFeatures:
    """Images `[B, C, H, W]` in [0, 1] to features `[B, F]`, and what they are called."""

    name: str
    of: Callable[[Tensor], Tensor]


_COMPONENTS = 16
"""A covariance of 16 dimensions is sure with some hundred images; of 1,000 it is not."""
_A_FEATURE = 5
"""Images a feature: with fewer, a covariance's error is as large as what it is to tell apart."""
_SIDE = 32
"""Pixels a side: the first components of images are smooth, so more pixels say nothing more."""
_ALONE = 0.02
"""Of a row's length: by more than rounding of half precision does."""
_BLOCKS = 8
"""Of the kernel distance: its error is that of the mean over so many disjoint blocks."""


@dataclass(frozen=True)
class SetDistances:
    """To `images` real ones: of as many reconstructions, and of `samples` draws of the prior.

    `generation`, `reconstruction`: Fréchet distances (Heusel et al. 2017), biased upwards, the less
    the more images there are. The kernel distances (Binkowski et al. 2018: MMD^2, cubic kernel)
    have no bias, so that one of equal sets lies around 0 and may be below it, and one standard
    error each.
    """

    features: str
    dimensions: int
    images: int
    samples: int
    reconstruction: float
    generation: float
    reconstruction_kernel: float
    reconstruction_kernel_error: float
    generation_kernel: float
    generation_kernel_error: float

    @property
    def is_short(self) -> bool:
        """Whether there are too few images for covariances of so many features.

        Then a Fréchet distance is far too high, whatever the images are.
        """
        return min(self.images, self.samples) < _A_FEATURE * self.dimensions


@dataclass(frozen=True)
class FeatureSets:
    """Features of N real images, of their reconstructions (`[N, F]` each), and `[M, F]` of M
    samples; `name`: what the features are called.
    """

    name: str
    real: Tensor
    rebuilt: Tensor
    samples: Tensor


def set_distances(sets: FeatureSets) -> SetDistances:
    """All four distances."""
    of_real, of_rebuilt, of_samples = sets.real, sets.rebuilt, sets.samples
    rebuilt_kernel = kernel_distance(of_real, of_rebuilt)
    samples_kernel = kernel_distance(of_real, of_samples)
    return SetDistances(
        features=sets.name,
        dimensions=of_real.shape[1],
        images=len(of_real),
        samples=len(of_samples),
        reconstruction=frechet_distance(of_real, of_rebuilt),
        generation=frechet_distance(of_real, of_samples),
        reconstruction_kernel=rebuilt_kernel[0],
        reconstruction_kernel_error=rebuilt_kernel[1],
        generation_kernel=samples_kernel[0],
        generation_kernel_error=samples_kernel[1],
    )


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Between Gaussians with the means and covariances of features `[N, F]` and `[M, F]`."""
    means, covariances = [], []
    for values in (first.double(), second.double()):
        means.append(values.mean(dim=0))
        size = values.shape[1]
        covariances.append(torch.cov(values.T).view(size, size))
    root = _square_root(covariances[0])
    # tr (A B)^(1/2) = tr (A^(1/2) B A^(1/2))^(1/2), of a symmetric matrix.
    middle = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    traces = covariances[0].trace() + covariances[1].trace()
    # Rounding alone makes equal sets a distance below zero, which no distance is.
    return max(0.0, float((means[0] - means[1]).square().sum() + traces - 2 * middle))


def kernel_distance(first: Tensor, second: Tensor) -> tuple[float, float]:
    """The unbiased MMD^2 of features `[N, F]` and `[M, F]`, and one standard error."""
    blocks = max(1, min(_BLOCKS, min(len(first), len(second)) // 10))
    parts = zip(first.double().chunk(blocks), second.double().chunk(blocks), strict=True)
    values = torch.tensor([_squared_discrepancy(x, y) for x, y in parts], dtype=torch.float64)
    error = float(values.std()) / math.sqrt(blocks) if blocks > 1 else math.inf
    return float(values.mean()), error


def pixel_components(real: Tensor) -> NamedFeatures:
    """Coordinates on the principal axes of real images' pixels, for where there is no network.

    Of images scaled down to 32 pixels a side: more would cost memory and add no component.
    """

    def pixels(images: Tensor) -> Tensor:
        side = min(_SIDE, *images.shape[-2:])
        return F.adaptive_avg_pool2d(images, side).double().flatten(1)

    points = pixels(real)
    centre = points.mean(dim=0)
    count = min(_COMPONENTS, len(real) - 1)
    _, _, axes = torch.linalg.svd(points - centre, full_matrices=False)
    axes = axes[:count]
    name = "principal components of the real images' pixels"
    return NamedFeatures(name, lambda images: (pixels(images) - centre) @ axes.T)


def named_features(name: str) -> NamedFeatures:
    """A user's: a TorchScript file, or a class without arguments at package.module:Class.

    It gets float images `[B, C, H, W]` in [0, 1] and gives `[B, F]`.
    """
    if Path(name).is_file():
        try:
            module = torch.jit.load(name, map_location="cpu")
        except RuntimeError as error:
            raise ConfigError(
                f"{name}: is no TorchScript file ({error}). Save one with torch.jit.save, or give "
                "package.module:Class."
            ) from None
    else:
        made_by = find_named(name, "--features", ConfigError)
        try:
            module = made_by()
        except OWN_CODE as error:  # Somebody's own class raises what it likes.
            raise ConfigError(f"--features {name}: can't be built: {told(error)}") from error
    evaluate = getattr(module, "eval", None)
    if evaluate is not None:
        evaluate()
    return NamedFeatures(name, module)


def features_of(images: Tensor, features: NamedFeatures) -> Tensor:
    """`[B, F]`, float64, of images `[B, C, H, W]` in [0, 1], at least one.

    Raises `ConfigError` where it isn't one finite row for each image, the same whatever images are
    beside it: a network in training mode looks at the others.
    """
    try:
        with torch.no_grad():
            found = features.of(images)
            alone = features.of(images[:1])
    except OWN_CODE as error:  # As above.
        if is_shortage(error):
            raise
        raise ConfigError(
            f"--features {features.name}: failed on {len(images)} images: {told(error)}"
        ) from error
    if found.dim() != 2 or len(found) != len(images) or not bool(found.isfinite().all()):
        raise ConfigError(
            f"{features.name}: gives {tuple(found.shape)} for {len(images)} images, or what is not "
            f"finite. ({len(images)}, F) is wanted, one finite row for each image."
        )
    found = found.double()
    apart = (found[:1] - alone.double()).norm()
    if bool(apart > _ALONE * found[:1].norm()):
        raise ConfigError(
            f"{features.name}: gives an image another row when others are beside it. Take away "
            "what looks at the whole batch, such as batch normalisation in training mode."
        )
    return found


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _squared_discrepancy(x: Tensor, y: Tensor) -> float:
    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return (one @ other.T / one.shape[1] + 1) ** 3

    def own(values: Tensor) -> Tensor:
        inner = kernel(values, values)
        count = len(values)
        return (inner.sum() - inner.trace()) / (count * (count - 1))

    return float(own(x) + own(y) - 2 * kernel(x, y).mean())
