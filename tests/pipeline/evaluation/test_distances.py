from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.decomposition import PCA
from torch import nn

from pipeline.errors import ConfigError
from pipeline.evaluation.distances import (
    FeatureSets,
    NamedFeatures,
    features_of,
    frechet_distance,
    kernel_distance,
    named_features,
    pixel_components,
    set_distances,
)


def normal(count: int, dimensions: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, dimensions, generator=generator, dtype=torch.float64)
    return noise @ mix + shift


def test_frechet_distance_is_that_of_scipys_matrix_square_root() -> None:
    first, second = normal(300, 6, 0), normal(200, 6, 1, shift=0.5)
    one, two = (np.cov(each.numpy(), rowvar=False) for each in (first, second))
    means = ((first.mean(0) - second.mean(0)) ** 2).sum().item()
    root = np.real(scipy.linalg.sqrtm(one @ two))
    expected = means + np.trace(one) + np.trace(two) - 2 * np.trace(root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_the_kernel_distance_has_no_bias_and_its_error_says_so() -> None:
    found = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        pair = torch.randn(2, 160, 4, generator=generator, dtype=torch.float64)
        found.append(kernel_distance(pair[0], pair[1]))
    values, errors = np.array(found).T
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    assert errors.mean() == pytest.approx(values.std(), rel=0.5)
    apart = kernel_distance(normal(160, 4, 0), normal(160, 4, 0, shift=2.0))
    assert apart[0] > 5 * apart[1]


def test_without_a_network_the_features_are_scikit_learns_principal_components() -> None:
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = pixel_components(images).of(images)
    theirs = PCA(16, svd_solver="full").fit_transform(images.flatten(1).double().numpy())
    assert np.abs(ours.numpy()) == pytest.approx(np.abs(theirs), abs=1e-6)


class Channels(nn.Module):
    """Mean and deviation of each channel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(2)
        return torch.cat([flat.mean(2), flat.std(2)], 1)


class Scalar(nn.Module):
    """Not a row for each image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean()


def test_a_network_is_named_by_import_path_or_torchscript_file(tmp_path: Path) -> None:
    images = torch.rand(4, 3, 8, 8)
    torch.jit.script(Channels()).save(str(tmp_path / "net.pt"))
    by_path = named_features(f"{__name__}:Channels").of(images)
    assert torch.equal(named_features(str(tmp_path / "net.pt")).of(images), by_path)
    (tmp_path / "other.pt").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="is no TorchScript file"):
        named_features(str(tmp_path / "other.pt"))
    with pytest.raises(ConfigError, match=r"features nowhere:Net"):
        named_features("nowhere:Net")


class Ends(torch.nn.Module):
    """As of a script that ends by itself."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise SystemExit(0)


class Needy:
    def __init__(self, weights: str) -> None:
        raise AssertionError


def test_a_class_that_fails_or_ends_is_told_with_its_flag() -> None:
    with pytest.raises(ConfigError, match=r"--features .*:Needy: can't be built: TypeError"):
        named_features(f"{__name__}:Needy")
    with pytest.raises(ConfigError, match=r"Ends: failed on 30 images: SystemExit"):
        features_of(torch.rand(30, 3, 8, 8), NamedFeatures("Ends", Ends()))


def test_features_that_are_no_rows_are_refused() -> None:
    images = torch.rand(30, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"scalar: gives .* one finite row for each image"):
        features_of(images, NamedFeatures("scalar", Scalar()))


def test_sets_are_apart_by_what_their_features_see() -> None:
    real = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = pixel_components(real)
    sets = (features_of(each, pixels) for each in (real, real, real * 0.2))
    found = set_distances(FeatureSets("pixels", *sets))
    assert found.reconstruction == pytest.approx(0, abs=1e-6)
    assert found.generation > 0.1
    assert (found.images, found.samples, found.dimensions) == (80, 80, 16)


def test_no_distance_of_equal_sets_is_below_zero_also_of_few_images_with_many_features() -> None:
    # What people report of other tools: FID -4.8e-09 of 192 images (mseitzer/pytorch-fid#105).
    for seed in range(20):
        few = normal(12, 40, seed).float()
        assert 0 <= frechet_distance(few, few) < 1e-4 * float(few.square().sum())


def test_features_that_depend_on_the_other_images_are_refused() -> None:
    # Lightning-AI/torchmetrics#1620: a distance that depends on the batch size.
    images = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    normed = nn.Sequential(nn.BatchNorm2d(3, affine=False), Channels()).train()
    with pytest.raises(ConfigError, match="normed: gives an image another row when others"):
        features_of(images, NamedFeatures("normed", normed))
    assert features_of(images, NamedFeatures("normed", normed.eval())).shape == (30, 6)


def test_too_few_images_for_so_many_features_are_told() -> None:
    few = FeatureSets("many", *(normal(20, 40, seed) for seed in range(3)))
    assert set_distances(few).is_short
    enough = FeatureSets("few", *(normal(200, 40, seed) for seed in range(3)))
    assert not set_distances(enough).is_short
