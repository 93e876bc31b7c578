"""What ranks tell each other of a step is the sum of what each of them has."""

import torch

from pipeline.data import Batch
from pipeline.training.step_counts import Counts
from pipeline.training.world import World


def batch(keys: list[str], valid: list[bool]) -> Batch:
    return Batch(
        images=torch.zeros(len(keys), 1, 2, 2, dtype=torch.uint8), keys=keys,
        valid=torch.tensor(valid), columns={}, epoch=0, index=0, slots=range(len(keys)),
    )  # fmt: skip


def test_a_slot_without_an_image_is_neither_valid_nor_bad() -> None:
    alone = World(0, 1, torch.device("cpu"))
    counts = Counts(
        batch(["a", "b", "", ""], [True, False, False, False]), alone, own_seconds=1.5, stop=True
    )
    assert (counts.images, counts.bad_images, counts.wishes) == (1, 1, 1)
    assert counts.rank_seconds == (1.5,)


def test_a_mean_over_no_image_divides_by_one() -> None:
    counts = Counts(batch(["a"], [False]), World(0, 1, torch.device("cpu")), 0.0, stop=False)
    assert (counts.images, counts.divisor, counts.wishes) == (0, 1, 0)
