"""How close two images are: PSNR, SSIM, MS-SSIM and LPIPS, each with what makes it comparable.

Published values of the same weights differ by 2 to 3 dB between protocols; ours is stated in
`PROTOCOL` beside every number.
"""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # torch's refusal of `weights_only`; nothing is unpickled here

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError, first_line

PROTOCOL = (
    "images as float in [0, 1], not rounded; PSNR of each image with peak 1 (an error below 1e-10 "
    "counts as 1e-10), then the mean over images; SSIM of Wang et al. 2004 per channel, then the "
    "mean: Gaussian window 11x11 with deviation 1.5, or uniform 7x7 for images below 11 pixels; "
    "MS-SSIM of Wang et al. 2003 over five scales, halved by 2x2 means, and 0 where the mean "
    "contrast of a scale is negative"
)

LPIPS_PROTOCOL = (
    "LPIPS 0.1 of Zhang et al. 2018 over AlexNet: images in [0, 1], not rounded, scaled to "
    "[-1, 1], grey ones repeated to three channels, those below 64 pixels enlarged to 64 "
    "(bilinear); of each pair, then the mean over images"
)
_TRUNK_SIDE = 64
"""AlexNet's last layers see nothing of smaller images."""
TRUNK_FILE = "alexnet-owt-7be5be79.pth"
"""How torchvision names its ImageNet weights of AlexNet."""

_C1, _C2 = 0.01**2, 0.03**2
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_SMALLEST_MULTI_SCALE = 161
"""Pixels a side: below, the coarsest of the five scales is smaller than its window of 11."""


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image, in dB: `[B, C, H, W]` in [0, 1] to `[B]`, float64."""
    error = (images.double() - references.double()).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error.clamp(min=1e-10))


def ssim(images: Tensor, references: Tensor) -> Tensor | None:
    """Structural similarity per image: `[B, C, H, W]` in [0, 1] to `[B]`, float64; at most 1.

    None for images below 7 pixels, which hold no whole window.
    """
    window = _window(min(images.shape[-2:]))
    if window is None:
        return None
    return torch.stack(
        [_similarity(x.double(), y.double(), window)[0].mean()
         for x, y in zip(images, references, strict=True)]
    )  # fmt: skip


def multi_scale_ssim(images: Tensor, references: Tensor) -> Tensor | None:
    """MS-SSIM of Wang et al. 2003 per image, five scales: `[B, C, H, W]` to `[B]`, float64.

    None for images below 161 pixels, whose fifth scale holds no whole window. A contrast below
    zero counts as zero, as it has no fractional power.
    """
    if min(images.shape[-2:]) < _SMALLEST_MULTI_SCALE:
        return None
    window = _window(11)
    assert window is not None
    found = []
    for one, other in zip(images, references, strict=True):
        x, y = one.double(), other.double()
        product = torch.ones(len(x), dtype=torch.float64)
        for scale, weight in enumerate(_SCALE_WEIGHTS):
            whole, contrast = _similarity(x, y, window)
            last = scale == len(_SCALE_WEIGHTS) - 1
            score = (whole if last else contrast).flatten(1).mean(dim=1).clamp(min=0)
            product = product * score**weight
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        found.append(product.mean())
    return torch.stack(found)


@dataclass(frozen=True)
class Perception:
    """LPIPS with a user's own weights of the trunk; `weights`: their file and its checksum."""

    weights: str
    network: Callable[[Tensor, Tensor], Tensor]

    def distance(self, images: Tensor, references: Tensor) -> Tensor:
        """Per image, >= 0 and 0 for equal ones: `[B, C, H, W]` in [0, 1] to `[B]`, float64."""
        sets = (torch.split(_for_trunk(each), 50) for each in (images, references))
        parts = zip(*sets, strict=True)
        with torch.no_grad():
            return torch.cat([self.network(x, y).flatten() for x, y in parts]).double()


def load_perception(path: str) -> Perception:
    """LPIPS over the AlexNet whose ImageNet weights lie in a local file, as torchvision saves them.

    Nothing is fetched: the package brings its linear layers alone. Raises `ConfigError` where the
    extra is not installed or the file is not that.
    """
    try:
        import lpips
    except ImportError as error:
        raise ConfigError(
            f"--lpips needs the packages lpips and torchvision ({error}). Install the extra: "
            "`pip install 'vae-pipeline[lpips]'`."
        ) from None
    try:
        data = Path(path).read_bytes()
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        raise ConfigError(
            f"--lpips {path}: can't be read as weights ({first_line(error)}). Give "
            f"torchvision's ImageNet weights of AlexNet, {TRUNK_FILE}, from where you keep them: "
            "nothing is downloaded."
        ) from None
    # The package's random trunk is overwritten; no draw of the caller's is spent on it.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    # Its slices keep the layers' numbers: slice2.3.weight is torchvision's features.3.weight.
    trunk = {f"features.{name.split('.', 1)[1]}": name for name in network.net.state_dict()}
    known = weights if isinstance(weights, dict) else {}
    shapes = {name: value.shape for name, value in network.net.state_dict().items()}
    wrong = [
        name
        for name, own in trunk.items()
        if not isinstance(known.get(name), Tensor) or known[name].shape != shapes[own]
    ]
    if wrong:
        raise ConfigError(
            f"--lpips {path}: holds no AlexNet of torchvision: {wrong[0]} is not there or of "
            f"another shape. Give its ImageNet weights, {TRUNK_FILE}."
        )
    network.net.load_state_dict({own: known[name].float() for name, own in trunk.items()})
    told = f"{Path(path).name}, SHA-256 {hashlib.sha256(data).hexdigest()[:16]}"
    return Perception(told, network)


def _for_trunk(images: Tensor) -> Tensor:
    """[0, 1] to [-1, 1], three channels, 64 pixels at least."""
    images = images.float()
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    if min(images.shape[-2:]) < _TRUNK_SIDE:
        images = F.interpolate(images, _TRUNK_SIDE, mode="bilinear", align_corners=False)
    return 2 * images - 1


def _similarity(x: Tensor, y: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """The maps of structural similarity and of its contrast alone, of one image `[C, H, W]`.

    One image at a time: its maps stay in the cache.
    """
    mean_x, mean_y = _blur(x, window), _blur(y, window)
    var_x, var_y = _blur(x * x, window) - mean_x**2, _blur(y * y, window) - mean_y**2
    covariance = _blur(x * y, window) - mean_x * mean_y
    contrast = (2 * covariance + _C2) / (var_x + var_y + _C2)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return contrast * luminance, contrast


def _blur(values: Tensor, window: Tensor) -> Tensor:
    """Weighted means along both axes, over whole windows alone.

    As shifted sums: 8 times as fast as a float64 convolution, with 11 + 11 instead of 121 products.
    """
    for axis in (-1, -2):
        size = values.shape[axis] - len(window) + 1
        total = torch.zeros_like(values.narrow(axis, 0, size))
        for place, weight in enumerate(window.tolist()):
            total.add_(values.narrow(axis, place, size), alpha=weight)
        values = total
    return values


def _window(side: int) -> Tensor | None:
    """Weights along one axis."""
    if side < 7:
        return None
    if side < 11:
        return torch.full((7,), 1 / 7, dtype=torch.float64)
    weights = torch.exp(-(torch.arange(-5, 6, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    return weights / weights.sum()
