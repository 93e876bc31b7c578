from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data import Dataset, Loader
from pipeline.data.preprocess import load_transform
from pipeline.errors import ConfigError, DatasetError
from tests.support.digit_models import pack_digits


def darker(images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """By 0 to 99 levels, as each seed says."""
    less = images.int() - (seeds % 100).view(-1, 1, 1, 1)
    return less.clamp(min=0).to(torch.uint8)


def smaller(images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    return images[:, :, 1:]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    place: Path = pack_digits(tmp_path_factory.mktemp("digits"))
    return Dataset.open(str(place))


def epoch(dataset: Dataset, transform: str | None, **knobs: Any) -> dict[str, torch.Tensor]:
    loader = Loader(
        dataset, global_batch_size=24, image_size=8, channels=1, transform=transform, **knobs
    )
    found: dict[str, torch.Tensor] = {}
    for batch in loader:
        found |= dict(zip(batch.keys, batch.images.clone(), strict=True))
    loader.close()
    return {key: image for key, image in found.items() if key}


def test_a_users_transform_sees_each_sample_with_its_own_seed_whatever_the_workers(
    dataset: Dataset,
) -> None:
    path = f"{__name__}:darker"
    plain, whole = epoch(dataset, None), epoch(dataset, path)
    parts: dict[str, torch.Tensor] = {}
    for rank in range(3):
        parts |= epoch(dataset, path, rank=rank, world_size=3, threads=rank + 1)
    assert plain.keys() == whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    changes = {int((plain[key].int() - whole[key].int()).max()) for key in whole}
    assert len(changes) > 30
    assert max(changes) < 100


def test_a_state_of_another_transform_is_refused(dataset: Dataset) -> None:
    with_it = Loader(dataset, global_batch_size=24, image_size=8, transform=f"{__name__}:darker")
    without = Loader(dataset, global_batch_size=24, image_size=8)
    with pytest.raises(DatasetError, match="transform: the state has"):
        without.load_state_dict(with_it.state_dict())
    with_it.close()
    without.close()


def test_a_result_of_another_shape_is_refused(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match=r"must give uint8 of the same shape"):
        epoch(dataset, f"{__name__}:smaller")


@pytest.mark.parametrize("path", ["nowhere.at_all:f", "math:nothing", "math:pi", "math"])
def test_a_path_that_names_no_function_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=f"transform {path}"):
        load_transform(path)
