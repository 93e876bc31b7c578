"""Older generations of a dataset go on purpose, and nothing else does."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.stores import main
from pipeline import storage
from pipeline.config import PackConfig, StoresConfig
from pipeline.data import Dataset
from pipeline.errors import DatasetError
from pipeline.packing.pack import pack
from pipeline.packing.verify_dataset import verify_dataset
from tests.support.small_store import small_dataset, write_images


def append(folder: Path, output: str, numbers: range, remove: tuple[str, ...] = ()) -> None:
    write_images(folder / "images", numbers)
    pack(PackConfig(
        source=(str(folder / "images"),), output=output, append=True, remove=remove,
        shard_bytes=60_000, workers=1,
    ))  # fmt: skip


@pytest.fixture
def place(place: str, tmp_path: Path) -> str:
    """Four generations; the last one has nothing of the first one's shards."""
    small_dataset(tmp_path, range(10), output=place)
    first = tuple(Dataset.open(place).keys())
    append(tmp_path, place, range(20))
    append(tmp_path, place, range(30))
    append(tmp_path, place, range(30), first)
    return place


def names_in(place: str) -> set[str]:
    return {info.url.removeprefix(f"{place}/") for info in storage.list_objects(place)}


def test_generations_are_listed_and_those_before_the_newest_go_with_what_only_they_name(
    place: str,
) -> None:
    rows = main(StoresConfig(dataset=place)).result["generations"]
    assert isinstance(rows, list)
    assert [(row["generation"], row["samples"]) for row in rows] == [
        (4, 20), (3, 30), (2, 20), (1, 10),
    ]  # fmt: skip
    before, digests = names_in(place), [row["digest"] for row in rows]
    first = {shard.path for shard in Dataset.open(place, digests[3]).shards}
    told = main(StoresConfig(dataset=place, gc=True, keep_last=2)).result
    assert names_in(place) == before, "a dry run"
    done = main(StoresConfig(dataset=place, gc=True, keep_last=2, delete=True)).result
    assert done["unnamed"] == told["unnamed"]
    assert before - names_in(place) == {f"manifests/{digest}.json" for digest in digests[2:]}
    assert verify_dataset(place) == [], "what is gone on purpose is not missing"
    main(StoresConfig(dataset=place, gc=True, keep_last=1, delete=True))
    assert first & names_in(place) == set()
    assert verify_dataset(place) == []
    assert len(Dataset.open(place)) == 20
    with pytest.raises(DatasetError, match="those before number 4 were removed on purpose"):
        Dataset.open(place, digests[1])


def test_without_keep_last_only_what_no_generation_names_goes(place: str) -> None:
    storage.publish(f"{place}/shards/009-stray.tar", b"of a killed pack")
    before = names_in(place)
    main(StoresConfig(dataset=place, gc=True, delete=True))
    assert before - names_in(place) == {"shards/009-stray.tar"}
    assert main(StoresConfig(dataset=place, gc=True)).summary[-1] == "  nothing to remove"
    with pytest.raises(ValidationError, match=f"jobs.verify --dataset {place} --keys`"):
        StoresConfig(dataset=place, keys=True)
    assert verify_dataset(place) == []


def test_a_manifest_that_is_gone_by_accident_is_missing_still(place: str) -> None:
    digest = Dataset.open(place).manifest.parent
    storage.delete(f"{place}/manifests/{digest}.json")
    assert any("is missing" in problem for problem in verify_dataset(place))


def test_packing_goes_on_after_it(place: str, tmp_path: Path) -> None:
    main(StoresConfig(dataset=place, gc=True, keep_last=1, delete=True))
    append(tmp_path, place, range(30, 35))
    assert len(Dataset.open(place)) == 25
    assert verify_dataset(place) == []


def test_nothing_is_removed_beside_a_pack_and_no_pack_begins_beside_a_removal(
    place: str, tmp_path: Path
) -> None:
    storage.publish(f"{place}/plans/000005.json", b"{}")
    before = names_in(place)
    with pytest.raises(DatasetError, match="a pack has begun and not ended"):
        main(StoresConfig(dataset=place, gc=True, keep_last=1, delete=True))
    assert names_in(place) == before
    storage.delete(f"{place}/plans/000005.json")
    storage.publish(f"{place}/removing/0123.json", b"{}")
    with pytest.raises(DatasetError, match=r"something is being removed here.*removing/0123.json"):
        append(tmp_path, place, range(35))


def test_flags_that_belong_together_are_asked_for() -> None:
    for wrong in (
        {}, {"store": "s", "keep_last": 1}, {"dataset": "d", "keep_last": 1},
        {"dataset": "d", "delete": True}, {"store": "s", "gc": True, "erase": ("k",)},
    ):  # fmt: skip
        with pytest.raises(ValidationError, match=r"--"):
            StoresConfig.model_validate(wrong)
