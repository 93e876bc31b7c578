from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.data import Dataset
from pipeline.data.shard_reader import read_shard
from pipeline.encoding.shard import encode_shard
from pipeline.errors import DatasetError
from tests.support.killing import tree
from tests.support.small_store import encode, identity_of, small_dataset, small_vae, write_images


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"), range(40))


def read_table(store: Any, receipt: Any) -> pa.Table:
    with pa.memory_map(storage.join(str(store), receipt.path)) as file:
        return pa.ipc.open_file(file).read_all()


def test_a_row_holds_the_latent_of_its_own_image_and_its_label(
    dataset: Dataset, tmp_path: Path
) -> None:
    vae, shard = small_vae(), dataset.shards[1]
    identity = identity_of(vae, dtype="float32", columns=("label",))
    receipt = encode_shard(vae, dataset, shard, identity, str(tmp_path))
    table = read_table(tmp_path, receipt)
    means = table.column("mean").combine_chunks().to_numpy_ndarray()
    assert table.num_rows == receipt.rows == shard.samples
    batches = read_shard(dataset, shard, vae.preprocess, 4, ("label",))
    for batch in batches:
        expected = vae.encode(batch.images).mean.detach().numpy()
        for row, key in enumerate(batch.keys):
            if key:
                place = table.column("key").to_pylist().index(key)
                np.testing.assert_allclose(means[place], expected[row], rtol=1e-4, atol=1e-5)
                assert table.column("label")[place].as_py() == batch.columns["label"][row]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_the_order_of_shards_change_no_byte(
    dataset: Dataset, tmp_path: Path, threads: int
) -> None:
    vae = small_vae()
    identity = identity_of(vae)
    for shard in dataset.shards:
        encode_shard(vae, dataset, shard, identity, str(tmp_path / "a"), threads=1)
    for shard in reversed(dataset.shards):
        encode_shard(vae, dataset, shard, identity, str(tmp_path / "b"), threads=threads)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_shard_with_a_receipt_is_not_touched_again(dataset: Dataset, tmp_path: Path) -> None:
    vae, shard = small_vae(), dataset.shards[0]
    first = encode_shard(vae, dataset, shard, identity_of(vae), str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert encode_shard(vae, dataset, shard, identity_of(vae), str(tmp_path)) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_image_that_cannot_be_read_is_listed_with_its_reason_and_the_law_holds(
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "images", range(20))
    picture = next((tmp_path / "images").rglob("*.png"))
    # Broken before it was packed: its bytes are the packed ones, and no image.
    picture.with_name("bad.png").write_bytes(picture.read_bytes()[:-30])
    dataset = small_dataset(tmp_path, range(20), verify="header")
    store = encode(small_vae(), dataset, tmp_path / "s")
    failed = [sample for shard in store.snapshot.shards for sample in shard.failed]
    assert [(sample.key.rsplit("/", 1)[-1], sample.reason) for sample in failed] == [
        ("bad%2Epng", "truncated")
    ]
    assert len(store) + len(failed) == len(dataset)
    assert failed[0].key not in {latent.key for latent in store}


def test_bytes_that_are_not_those_that_were_packed_fail_the_shard_and_leave_no_receipt(
    tmp_path: Path,
) -> None:
    dataset = small_dataset(tmp_path, range(15))
    vae, index = small_vae(), dataset.read_index(0)
    path = Path(dataset.shard_url(dataset.shards[0]))
    with path.open("r+b") as file:
        file.seek(int(index.offsets[2]) + 30)
        file.write(b"\0\0\0")
    with pytest.raises(DatasetError, match="not those that were packed"):
        encode_shard(vae, dataset, dataset.shards[0], identity_of(vae), str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()
