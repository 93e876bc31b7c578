"""A dataset that grows, seen by who reads it: sample by sample, before, during and after."""

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import PackConfig
from pipeline.data import Dataset, Loader
from pipeline.packing.pack import pack
from pipeline.packing.verify_dataset import prove_order, verify_dataset
from tests.pipeline.packing.test_pack import png, write

SIDE = 8


def read_in_order(dataset: Dataset) -> dict[str, tuple[bytes, str | None]]:
    """Pixels and label of every sample, by key, as an unshuffled epoch of the loader gives them."""
    found: dict[str, tuple[bytes, str | None]] = {}
    options: dict[str, Any] = {
        "global_batch_size": 16,
        "image_size": SIDE,
        "shuffle": False,
        "threads": 1,
    }
    with closing(Loader(dataset, **options, columns=("label",))) as loader:
        for batch in loader:
            assert batch.errors == {}
            for key, image, label in zip(
                batch.keys, batch.images.numpy(), batch.columns["label"], strict=True
            ):
                if key:
                    assert key not in found
                    found[key] = image.tobytes(), label
    return found


def images(size: tuple[int, int] = (SIDE, SIDE)) -> Any:
    rng = random.Random(11)
    return lambda: png(rng.randrange(2**30), size)


@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_thirty_nightly_appends_read_sample_by_sample_as_one_pack_of_the_final_state(
    tmp_path: Path, holdout: float
) -> None:
    rng, new, folder = random.Random(5), images(), tmp_path / "in"
    live: dict[str, bytes] = {}
    options = {"holdout": holdout, "shard_bytes": 9000, "workers": 1}
    grown = PackConfig(source=(str(folder),), output=str(tmp_path / "grown"), **options)
    for _ in range(30):
        gone = rng.sample(sorted(live), min(len(live), rng.randrange(3)))
        for name in gone:
            (folder / name).unlink()
            del live[name]
        for name in rng.sample(sorted(live), min(len(live), rng.randrange(3))):
            live[name] = new()
        for _ in range(rng.randrange(1, 6)):
            live[f"{rng.choice('abc')}/{rng.randrange(60)}.png"] = new()
        write(folder, live)
        keys = tuple(name.removesuffix(".png") for name in gone if name not in live)
        last = pack(grown.model_copy(update={"append": True, "remove": keys}))
    once = pack(grown.model_copy(update={"output": str(tmp_path / "once")}))
    assert last.generation > 20
    pairs = [(last.dataset, once.dataset)]
    if holdout:
        assert last.holdout
        assert once.holdout
        pairs += [(last.holdout, once.holdout)]
    read = [[read_in_order(Dataset.open(url)) for url in pair] for pair in pairs]
    for after_thirty, at_once in read:
        assert after_thirty == at_once
    assert sum(len(at_once) for _, at_once in read) == len(live)
    for url, _ in pairs:
        assert verify_dataset(url) == []
        assert prove_order(Dataset.open(url), (1, 3), 8) == []


def test_a_run_in_progress_reads_on_as_if_nothing_had_been_appended_or_removed(
    tmp_path: Path,
) -> None:
    new, folder = images(), tmp_path / "in"
    write(folder, {f"{n}.png": new() for n in range(60)})
    config = PackConfig(
        source=(str(folder),), output=str(tmp_path / "out"), shard_bytes=9000, workers=1
    )
    url = pack(config).dataset
    pinned = Dataset.open(url)

    def loader(dataset: Dataset) -> Loader:
        return Loader(dataset, global_batch_size=8, image_size=SIDE, seed=3, threads=1)

    with closing(loader(pinned)) as calm:
        expected = [(batch.keys, batch.images.clone()) for _ in range(2) for batch in calm]
    found = []
    with closing(loader(pinned)) as running:
        for batch in running:
            found.append((batch.keys, batch.images.clone()))
            if len(found) == 3:
                write(folder, {f"{n}.png": new() for n in (*range(5), *range(60, 70))})
                grown = pack(config.model_copy(update={"append": True, "remove": ("7", "8")}))
                assert (grown.added, grown.removed, grown.samples) == (15, 2, 68)
        state = running.state_dict()
    # Started again after the append, it finds its own generation by the digest.
    with closing(loader(Dataset.open(url, pinned.digest))) as continued:
        continued.load_state_dict(state)
        found += [(batch.keys, batch.images.clone()) for batch in continued]
    assert [keys for keys, _ in found] == [keys for keys, _ in expected]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(found, expected, strict=True))
