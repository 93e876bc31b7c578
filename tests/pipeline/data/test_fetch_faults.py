"""What the loader makes of a store that gives wrong or too few bytes."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import storage
from pipeline.config import PackConfig, PreprocessConfig
from pipeline.data import Dataset, Loader, read_shard
from pipeline.data.keys import path_of
from pipeline.errors import DatasetError
from pipeline.packing.pack import pack
from pipeline.storage import RetryPolicy, retry_policy
from tests.servers import rgw
from tests.servers.fault_proxy import FaultProxy, Rule

COUNT = 40


@pytest.fixture
def dataset(fault_proxy: FaultProxy, s3_server: rgw.S3Server, tmp_path: Path) -> Iterator[Dataset]:
    """Forty images of noise in one shard on S3, each named by its seed."""
    for seed in range(COUNT):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{seed}.png")
    output = f"{s3_server.bucket()}/d"
    pack(PackConfig(source=(str(tmp_path),), output=output))
    with retry_policy(RetryPolicy(base_seconds=0.01, cap_seconds=0.1)):
        yield Dataset.open(output)


def read_all(dataset: Dataset) -> tuple[set[str], dict[str, str]]:
    """Keys of valid samples, whose pixels are compared with what was packed, and all errors."""
    good: set[str] = set()
    errors: dict[str, str] = {}
    with closing(Loader(dataset, global_batch_size=8, image_size=16, threads=2)) as loader:
        for batch in loader:
            errors |= batch.errors
            for key, image, valid in zip(
                batch.keys, batch.images.numpy(), batch.valid.tolist(), strict=True
            ):
                if valid:
                    rng = np.random.default_rng(int(Path(path_of(key)).stem))
                    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                    assert np.array_equal(image, pixels.transpose(2, 0, 1)), key
                    good.add(key)
    return good, errors


def test_a_byte_flipped_on_the_way_is_noticed_and_the_sample_fetched_again(
    dataset: Dataset, fault_proxy: FaultProxy
) -> None:
    offset = int(dataset.read_index(0).offsets[5]) + 300
    fault_proxy.rules = [Rule("^GET .*[.]tar", "flip", count=1, after_bytes=offset)]
    good, errors = read_all(dataset)
    assert (len(good), errors) == (COUNT, {})
    assert len([r for r in fault_proxy.requests if r.fault == "flip"]) == 1


def test_a_byte_flipped_every_time_masks_the_sample_and_says_why(
    dataset: Dataset, fault_proxy: FaultProxy
) -> None:
    index = dataset.read_index(0)
    fault_proxy.rules = [
        Rule("^GET .*[.]tar", "flip", count=1, after_bytes=int(index.offsets[5]) + 300),
        # By itself an image is asked for without what surrounds it.
        Rule("^GET .*[.]tar", "flip", after_bytes=300),
    ]
    good, errors = read_all(dataset)
    assert errors[index.keys[5]] == "checksum"
    assert len(good) + len(errors) == COUNT


def test_a_shard_cut_short_costs_the_samples_behind_the_cut_and_no_other(dataset: Dataset) -> None:
    index, url = dataset.read_index(0), dataset.shard_url(dataset.shards[0])
    storage.publish(url, storage.read(url, 0, int(index.offsets[30]) + 10))
    good, errors = read_all(dataset)
    assert errors == dict.fromkeys(index.keys[30:], "truncated")
    assert good == set(index.keys[:30])


def test_a_shard_cut_short_ends_what_reads_it_as_a_whole(dataset: Dataset) -> None:
    url = dataset.shard_url(dataset.shards[0])
    storage.publish(url, storage.read(url)[:-20_000])
    preprocess = PreprocessConfig(image_size=16, channels=3)
    with pytest.raises(DatasetError, match="cut short"):
        list(read_shard(dataset, dataset.shards[0], preprocess, 64))
