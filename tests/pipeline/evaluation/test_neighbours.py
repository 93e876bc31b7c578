from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from pipeline.data import Batch
from pipeline.evaluation.findings import FindingOptions, find
from pipeline.evaluation.neighbours import image_similarity, label_agreement
from pipeline.evaluation.rows import MeasureOptions, measure
from tests.support.digit_models import TRAINED_ON, digits_vae, images


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


def test_labels_where_no_neighbour_could_agree_give_no_number() -> None:
    assert label_agreement(torch.zeros(20, 2), ["a"] * 20) is None
    assert label_agreement(torch.zeros(3, 2), ["a", "b", "c"]) is None


def clouds(sizes: Sequence[int], apart: float) -> tuple[torch.Tensor, list[str]]:
    """Points around `apart` x their label's number, and the labels."""
    labels = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    random = np.random.default_rng(0)
    points = random.normal(size=(len(labels), 2)) + apart * np.array([[float(n)] for n in labels])
    return torch.from_numpy(points), labels


@pytest.mark.parametrize("sizes", [(8, 2, 3), (8, 8), (30, 30, 1), (5, 11)])
def test_few_images_in_perfect_groups_agree_whatever_the_sizes_of_the_groups(
    sizes: tuple[int, ...],
) -> None:
    found = label_agreement(*clouds(sizes, 100.0))
    assert found is not None
    alone = sizes.count(1)  # which no other image can vouch for
    assert found.agreement == pytest.approx(1 - alone / sum(sizes))
    assert found.agreement > found.needed


def test_labels_that_mean_nothing_pass_what_is_needed_in_about_one_of_a_hundred_cases() -> None:
    random, passed, shuffled = np.random.default_rng(1), 0, []
    for _ in range(300):
        points = torch.from_numpy(random.normal(size=(40, 2)))
        found = label_agreement(points, [str(label) for label in random.integers(0, 3, 40)])
        assert found is not None
        passed += found.agreement > found.needed
        shuffled.append(found.agreement - found.shuffled)
    # Ties of agreements only make it rarer.
    assert passed <= scipy.stats.binom.ppf(0.999, 300, 0.01)
    assert abs(np.mean(shuffled)) < 4 * scipy.stats.sem(shuffled)


def test_neighbours_of_few_images_are_few_for_similarity_too() -> None:
    pixels = torch.cat([torch.zeros(8, 1, 4, 4), torch.full((8, 1, 4, 4), 255.0)])
    codes = torch.cat([torch.randn(8, 2), torch.randn(8, 2) + 100])
    found = image_similarity(codes, pixels)
    assert found is not None
    # 4 of 16, all of an image's own kind; of the 15 others 8 are of the other kind.
    assert (found.neighbours, found.nearest) == (4, 0.0)
    assert found.any == pytest.approx(8 / 15)
    assert image_similarity(codes[:3], pixels[:3]) is None


def test_images_without_a_label_are_no_group() -> None:
    pixels, labels = images()
    held = pixels[TRAINED_ON : TRAINED_ON + 40]
    some = [label if number % 2 else None for number, label in enumerate(labels[TRAINED_ON:])][:40]
    batch = Batch(
        images=held, keys=list(map(str, range(40))), valid=torch.ones(40, dtype=torch.bool),
        columns={"label": some}, epoch=0, index=0, slots=range(40),
    )  # fmt: skip
    vae = digits_vae(latents=2)
    measured = measure(vae, iter([batch]), MeasureOptions(1, 0, 40, 100))
    assert measured.labels == some
    found = find(vae, measured, held, FindingOptions(0, 1, 0)).numbers.neighbours
    assert found is not None
    assert (found.images, found.labels) == (20, len({label for label in some if label}))
