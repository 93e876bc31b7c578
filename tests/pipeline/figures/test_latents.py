import numpy as np
import pytest
from matplotlib.axes import Axes
from sklearn.decomposition import PCA

from pipeline.figures import (
    draw_aggregated_posterior,
    draw_kl_per_dimension,
    draw_latent_means,
    to_png,
)

RNG = np.random.default_rng(0)


@pytest.fixture
def axis_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    original = Axes.set_xlabel
    monkeypatch.setattr(
        Axes,
        "set_xlabel",
        lambda self, name, *a, **k: (names.append(name), original(self, name))[1],
    )
    return names


def test_the_axes_state_the_variance_that_scikit_learns_pca_explains(axis_names: list[str]):
    points = RNG.normal(size=(300, 6)) * [4, 2, 1, 1, 1, 1]
    to_png(draw_latent_means, points)
    share = PCA(2).fit(points).explained_variance_ratio_[0]
    assert f"principal axis 1 ({share:.0%} of variance)" in axis_names


def test_two_dimensions_are_shown_as_they_are(axis_names: list[str]):
    to_png(draw_latent_means, RNG.normal(size=(50, 2)), labels=["a"] * 25 + ["b"] * 25)
    assert axis_names == ["z0"]


@pytest.mark.parametrize("labels", [2, 10, 37])
@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_any_number_of_labels_and_dimensions_is_drawn(labels: int, dimensions: int):
    names = [f"class {i % labels}" for i in range(200)]
    assert to_png(draw_latent_means, RNG.normal(size=(200, dimensions)), labels=names)


def test_one_dimension_a_thousand_and_the_aggregated_posterior_are_drawn():
    for dimensions in (1, 3, 1024):
        means = RNG.normal(size=(40, dimensions))
        kl = RNG.random(dimensions)
        assert to_png(draw_kl_per_dimension, kl, activity=means.var(axis=0))
        assert to_png(draw_aggregated_posterior, means, means - 2)
