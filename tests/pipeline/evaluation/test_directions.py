import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from pipeline.errors import ConfigError
from pipeline.evaluation.directions import label_direction, principal_axes


def test_moving_along_a_label_direction_carries_one_labels_mean_onto_the_others() -> None:
    means = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 7.0], [7.0, 7.0]])
    found = label_direction(means, ["a", "a", "b", "b"], "a", "b")
    assert found.tolist() == [5.0, 7.0]


def test_an_unknown_label_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'c' is not in the dataset, which has a, b"):
        label_direction(torch.zeros(2, 3), ["a", "b"], "a", "c")


def test_principal_axes_are_scikit_learns_up_to_sign() -> None:
    points = np.random.default_rng(0).normal(size=(200, 6)) * [5, 3, 2, 1, 0.5, 0.1]
    theirs = PCA(3).fit(points)
    ours = principal_axes(torch.from_numpy(points), 3)
    assert np.abs((ours.axes.numpy() * theirs.components_).sum(axis=1)) == pytest.approx(1.0)
    assert ours.share.numpy() == pytest.approx(theirs.explained_variance_ratio_)
    assert ours.deviations.numpy() ** 2 * 200 / 199 == pytest.approx(theirs.explained_variance_)
