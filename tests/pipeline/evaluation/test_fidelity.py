import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pipeline.errors import ConfigError
from pipeline.evaluation.fidelity import load_perception, multi_scale_ssim, psnr, ssim


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


def alexnet(folder: Path) -> Path:
    """torchvision's AlexNet with random weights, saved as torchvision saves it."""
    models = pytest.importorskip("torchvision.models", reason="needs the extra lpips")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.alexnet(weights=None)
    torch.save(network.state_dict(), folder / "alexnet.pth")
    return folder / "alexnet.pth"


def unit(values: torch.Tensor) -> torch.Tensor:
    return values / (values.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def test_lpips_is_the_papers_weighted_distance_of_the_named_trunks_features(
    tmp_path: Path,
) -> None:
    lpips = pytest.importorskip("lpips", reason="needs the extra lpips")
    path = alexnet(tmp_path)
    first, second = pictures(70, 3)
    found = load_perception(str(path)).distance(second, first)
    # Zhang et al. 2018, equation 1, over the five layers behind a ReLU, with the paper's scaling.
    models = pytest.importorskip("torchvision.models")
    trunk = models.alexnet(weights=None)
    trunk.load_state_dict(torch.load(path, weights_only=True))
    layers = Path(lpips.__file__).parent / "weights/v0.1/alex.pth"
    weights = torch.load(layers, map_location="cpu", weights_only=True)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    x, y = (((2 * each.float() - 1) - shift) / scale for each in (first, second))
    expected, layer = torch.zeros(3), 0
    with torch.no_grad():
        for number, module in enumerate(trunk.features[:12]):
            x, y = module(x), module(y)
            if number in (1, 4, 7, 9, 11):
                squares = (unit(x) - unit(y)).square()
                expected += (weights[f"lin{layer}.model.1.weight"] * squares).sum(1).mean((1, 2))
                layer += 1
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-4)
    assert bool((found > 0).all())


def test_grey_and_small_images_have_an_lpips_too_and_equal_ones_have_none(tmp_path: Path) -> None:
    pytest.importorskip("lpips", reason="needs the extra lpips")
    perception = load_perception(str(alexnet(tmp_path)))
    first, second = pictures(8, 1)
    assert perception.distance(first, first).tolist() == [0.0] * 3
    assert bool((perception.distance(first, second) > 0).all())
    assert perception.weights.startswith("alexnet.pth, SHA-256 ")


def test_without_the_extra_or_the_weights_lpips_says_what_to_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "lpips", None)
        with pytest.raises(ConfigError, match=r"pip install 'vae-pipeline\[lpips\]'"):
            load_perception(str(tmp_path / "alexnet.pth"))
    pytest.importorskip("lpips", reason="needs the extra lpips")
    with pytest.raises(ConfigError, match=r"alexnet\.pth: can't be read.*alexnet-owt-7be5be79"):
        load_perception(str(tmp_path / "alexnet.pth"))
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(ConfigError, match=r"text\.pth: can't be read"):
        load_perception(str(tmp_path / "text.pth"))
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"features\.0\.weight is not there"):
        load_perception(str(tmp_path / "other.pth"))
