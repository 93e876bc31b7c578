from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from pipeline.figures import (
    draw_aggregated_posterior,
    draw_kl_per_dimension,
    draw_latent_means,
    to_png,
)
from tests.support.pictures import figure_of

FAMILIES = [
    "n01440764 TENCH, TINCA TINCA of ponds",
    "golden retriever (Canis lupus familiaris)",
    "cat",
    "$a^{$",
]
RNG = np.random.default_rng(0)


@pytest.fixture
def axis_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    original = Axes.set_xlabel

    def noted(self: Axes, name: str, *_: Any, **__: Any) -> Any:
        names.append(name)
        return original(self, name)

    monkeypatch.setattr(Axes, "set_xlabel", noted)
    return names


def test_the_axes_state_the_variance_that_scikit_learns_pca_explains(axis_names: list[str]) -> None:
    points = RNG.normal(size=(300, 6)) * [4, 2, 1, 1, 1, 1]
    to_png(draw_latent_means, points)
    share = PCA(2).fit(points).explained_variance_ratio_[0]
    assert f"principal axis 1 ({share:.0%} of variance)" in axis_names


def test_two_dimensions_are_shown_as_they_are(axis_names: list[str]) -> None:
    to_png(draw_latent_means, RNG.normal(size=(50, 2)), labels=["a"] * 25 + ["b"] * 25)
    assert axis_names == ["z0"]


@pytest.mark.parametrize("labels", [2, 10, 37])
@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_any_number_of_labels_and_dimensions_is_drawn(labels: int, dimensions: int) -> None:
    names = [f"class {i % labels}" for i in range(200)]
    assert to_png(draw_latent_means, RNG.normal(size=(200, dimensions)), labels=names)


def drawn(labels: list[str], monkeypatch: pytest.MonkeyPatch) -> Figure:
    means = RNG.normal(size=(len(labels), 2))
    return figure_of(monkeypatch, draw_latent_means, means, labels=labels)


def test_long_names_stand_whole_beside_the_points_and_hide_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figure = drawn(FAMILIES * 5, monkeypatch)
    (axes,) = figure.axes
    assert not axes.texts
    legend = axes.get_legend()
    assert legend is not None
    names = legend.get_texts()
    assert len({name.get_text() for name in names}) == len(FAMILIES)
    for name in names:
        assert name.get_window_extent().x0 > axes.get_window_extent().x1
        assert name.get_window_extent().x1 < figure.bbox.x1


def test_digits_stand_among_their_points(monkeypatch: pytest.MonkeyPatch) -> None:
    (axes,) = drawn(["3", "7"] * 5, monkeypatch).axes
    assert [text.get_text() for text in axes.texts] == ["3", "7"]


def test_one_dimension_a_thousand_and_the_aggregated_posterior_are_drawn() -> None:
    for dimensions in (1, 3, 1024):
        means = RNG.normal(size=(40, dimensions))
        kl = RNG.random(dimensions)
        assert to_png(draw_kl_per_dimension, kl, activity=means.var(axis=0))
        assert to_png(draw_aggregated_posterior, means, means - 2)
