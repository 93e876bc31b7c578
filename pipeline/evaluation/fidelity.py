"""How close two images are: PSNR and SSIM, each with the protocol that makes it comparable.

Published values of the same weights differ by 2 to 3 dB between protocols; ours is stated in
`PROTOCOL` beside every number.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

PROTOCOL = (
    "images as float in [0, 1], not rounded; PSNR of each image with peak 1 (an error below 1e-10 "
    "counts as 1e-10), then the mean over images; SSIM of Wang et al. 2004 per channel, then the "
    "mean: Gaussian window 11x11 with deviation 1.5, or uniform 7x7 for images below 11 pixels"
)

_C1, _C2 = 0.01**2, 0.03**2


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
    channels = images.shape[1]
    kernel = window.to(images.device).expand(channels, 1, *window.shape)
    x, y = images.double(), references.double()

    def blur(values: Tensor) -> Tensor:
        return F.conv2d(values, kernel, groups=channels)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return (structure * luminance).flatten(1).mean(dim=1)


def _window(side: int) -> Tensor | None:
    if side < 7:
        return None
    if side < 11:
        return torch.full((7, 7), 1 / 49, dtype=torch.float64)
    weights = torch.exp(-(torch.arange(-5, 6, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    weights = weights / weights.sum()
    return torch.outer(weights, weights)
