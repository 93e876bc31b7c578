import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from pipeline.evaluation.neighbours import label_agreement


def test_agreement_is_scikit_learns_leave_one_out_accuracy() -> None:
    points, labels = load_digits(return_X_y=True)
    points, labels = points[:400] + np.random.default_rng(0).normal(size=(400, 64)), labels[:400]
    hits = 0
    for index in range(400):
        others = np.arange(400) != index
        model = KNeighborsClassifier(10).fit(points[others], labels[others])
        hits += int(model.predict(points[index : index + 1])[0] == labels[index])
    found = label_agreement(torch.from_numpy(points), [str(label) for label in labels])
    assert found is not None
    assert found.agreement == pytest.approx(hits / 400)
    assert found.chance == pytest.approx(np.bincount(labels).max() / 400)


def test_one_label_or_fewer_images_than_neighbours_give_no_number() -> None:
    assert label_agreement(torch.zeros(20, 2), ["a"] * 20) is None
    assert label_agreement(torch.zeros(4, 2), ["a", "b", "a", "b"]) is None
