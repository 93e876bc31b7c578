import numpy as np
import pytest
import scipy.signal
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pipeline.evaluation.fidelity import multi_scale_ssim, psnr, ssim


def pictures(size: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    first = torch.rand(3, channels, size, size, generator=generator, dtype=torch.float64)
    second = (first + 0.2 * torch.randn(first.shape, generator=generator)).clamp(0, 1)
    return first, second


def test_psnr_is_scikit_images_image_by_image() -> None:
    first, second = pictures(20, 3)
    ours = psnr(second, first)
    for index in range(3):
        theirs = peak_signal_noise_ratio(first[index].numpy(), second[index].numpy(), data_range=1)
        assert float(ours[index]) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [11, 28, 40])
def test_ssim_is_scikit_images_with_the_gaussian_window_of_wang(size: int, channels: int) -> None:
    first, second = pictures(size, channels)
    ours = ssim(second, first)
    assert ours is not None
    for index in range(3):
        theirs = structural_similarity(
            first[index].numpy(), second[index].numpy(), data_range=1, channel_axis=0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert float(ours[index]) == pytest.approx(theirs, abs=1e-10)


def test_ssim_of_small_images_is_scikit_images_with_the_uniform_window() -> None:
    first, second = pictures(8, 1)
    ours = ssim(second, first)
    assert ours is not None
    theirs = [
        structural_similarity(a[0].numpy(), b[0].numpy(), data_range=1, use_sample_covariance=False)
        for a, b in zip(first, second, strict=True)
    ]
    assert ours.numpy() == pytest.approx(np.array(theirs), abs=1e-10)


def test_an_image_equals_itself_with_ssim_one_and_below_seven_pixels_there_is_none() -> None:
    first, _ = pictures(12, 1)
    same = ssim(first, first)
    assert same is not None
    assert same.tolist() == pytest.approx([1.0] * 3)
    assert ssim(first[..., :6, :6], first[..., :6, :6]) is None


def contrast_of(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Mean structural similarity and contrast of one channel, by scipy's correlation."""
    side = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    kernel = np.outer(side, side) / side.sum() ** 2

    def blur(values: np.ndarray) -> np.ndarray:
        return scipy.signal.correlate2d(values, kernel, mode="valid")

    mx, my = blur(x), blur(y)
    vx, vy, c = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    contrast = (2 * c + 9e-4) / (vx + vy + 9e-4)
    luminance = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
    return float((contrast * luminance).mean()), float(contrast.mean())


def test_multi_scale_ssim_is_the_product_of_wang_2003_over_five_scales() -> None:
    first, second = (each[:1] for each in pictures(176, 1))
    x, y = first[0, 0].numpy(), second[0, 0].numpy()
    expected = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        whole, contrast = contrast_of(x, y)
        expected *= (whole if scale == 4 else contrast) ** weight
        if scale < 4:
            x, y = (v.reshape(len(v) // 2, 2, -1, 2).mean((1, 3)) for v in (x, y))
    ours = multi_scale_ssim(first, second)
    assert ours is not None
    assert float(ours) == pytest.approx(expected, abs=1e-9)
    assert multi_scale_ssim(first[..., :160, :], second[..., :160, :]) is None
