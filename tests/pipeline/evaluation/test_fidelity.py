import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pipeline.evaluation.fidelity import psnr, ssim


def pictures(size: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    first = torch.rand(3, channels, size, size, generator=generator, dtype=torch.float64)
    second = (first + 0.2 * torch.randn(first.shape, generator=generator)).clamp(0, 1)
    return first, second


def test_psnr_is_scikit_images_image_by_image():
    first, second = pictures(20, 3)
    ours = psnr(second, first)
    for index in range(3):
        theirs = peak_signal_noise_ratio(first[index].numpy(), second[index].numpy(), data_range=1)
        assert float(ours[index]) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [11, 28, 40])
def test_ssim_is_scikit_images_with_the_gaussian_window_of_wang(size: int, channels: int):
    first, second = pictures(size, channels)
    ours = ssim(second, first)
    assert ours is not None
    for index in range(3):
        theirs = structural_similarity(
            first[index].numpy(), second[index].numpy(), data_range=1, channel_axis=0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert float(ours[index]) == pytest.approx(theirs, abs=1e-10)


def test_ssim_of_small_images_is_scikit_images_with_the_uniform_window():
    first, second = pictures(8, 1)
    ours = ssim(second, first)
    assert ours is not None
    theirs = [
        structural_similarity(a[0].numpy(), b[0].numpy(), data_range=1, use_sample_covariance=False)
        for a, b in zip(first, second, strict=True)
    ]
    assert ours.numpy() == pytest.approx(np.array(theirs), abs=1e-10)


def test_an_image_equals_itself_with_ssim_one_and_below_seven_pixels_there_is_none():
    first, _ = pictures(12, 1)
    same = ssim(first, first)
    assert same is not None
    assert same.tolist() == pytest.approx([1.0] * 3)
    assert ssim(first[..., :6, :6], first[..., :6, :6]) is None
